"""Weights lie where `MVL_WEIGHTS` says, asked anew each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.weights.paths import weights_dir
from mvl.weights.wheels import source_files


def test_the_variable_goes_before_the_folder_of_the_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    assert weights_dir() == tmp_path
    assert {file.parent for file in source_files("minilm-l6")} == {tmp_path / "minilm-l6"}
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("MVL_WEIGHTS")
        else:
            monkeypatch.setenv("MVL_WEIGHTS", unset)
        assert weights_dir() == ROOT / "data" / "raw" / "weights"
