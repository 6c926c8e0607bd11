"""What a run asks a cluster for follows the device that it is planned for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvl.bench import needs, plan
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


def test_own_data_are_planned_where_they_lie(own_data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MVL_DATA", raising=False)
    own_data(tmp_path / "data" / "Dataset123_Boxes", channels=2)
    study = tmp_path / "own.yaml"
    study.write_text(
        "title: Own\ntasks: [Dataset123_Boxes]\n"
        "grid: [{name: main, systems: [vit_baseline], folds: [0]}]\n"
        "data: {img_size: [16, 16, 16]}\ntrain: {train_epochs: 1}\n"
    )
    needs.write_needs(str(study), tmp_path / "needs.json", data_dir=tmp_path / "data")
    assert len(json.loads((tmp_path / "needs.json").read_text())) == 1
    costs = plan.plan(str(study), data_dir=tmp_path / "data")
    assert costs["runs"] == 1 and costs["hours"] > 0 and costs["download_bytes"] == 0
