"""What a run asks a cluster for follows the device that it is planned for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvl.bench import needs
from mvl.core import run_folder
from mvl.core.config import ConfigError
from mvl.study import grid


def test_what_a_cluster_is_asked_for(tmp_path: Path) -> None:
    needs.write_needs("quick", tmp_path / "needs.json")
    asked = json.loads((tmp_path / "needs.json").read_text())
    assert set(asked) == {run_folder.run_name(config) for config in grid.study_runs("quick")}
    assert all(
        500 < need["mem_mb"] < 4000 and need["minutes"] == 60 and need["gpu"] == 0
        for need in asked.values()
    )
    needs.write_needs("quick", tmp_path / "gpu.json", "4xh100")
    on_cards = json.loads((tmp_path / "gpu.json").read_text())
    assert all(
        on_cards[run]["gpu"] == 1 and on_cards[run]["mem_mb"] > need["mem_mb"] + needs.CUDA_HOST_MB
        for run, need in asked.items()
    )
    with pytest.raises(ConfigError, match="unknown device"):
        needs.write_needs("quick", tmp_path / "none.json", "cuda")
