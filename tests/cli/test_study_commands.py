"""What the commands of studies print, and the exit codes that they end with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mvl.cli import main, study_commands
from mvl.core.errors import BAD, DONE
from mvl.study import status, tuning

FOUND: dict[str, Any] = {
    "study": "quick",
    "done": 1,
    "total": 3,
    "running": 1,
    "failed": 1,
    "missing": 0,
    "runs": [
        {"state": "done", "run": "a"},
        {"state": "running", "run": "b", "epoch": 4, "epochs": 9, "held": "node 7"},
        {"state": "failed", "run": "c", "error": "no space"},
    ],
}


def test_a_status_has_a_line_for_each_run_and_counts_what_is_not_done() -> None:
    lines = study_commands.show_status(FOUND).splitlines()
    assert lines[0].split() == ["done", "a"]
    assert lines[1].endswith("b  epoch 4/9  held by node 7")
    assert lines[2].endswith("c  no space")
    assert lines[3] == "quick: 1 of 3 runs done, 1 running, 1 failed"


@pytest.mark.parametrize(
    ("done", "complete", "code"), [(1, True, BAD), (3, True, DONE), (1, False, DONE)]
)
def test_only_an_incomplete_study_that_should_be_complete_is_bad(
    monkeypatch: pytest.MonkeyPatch, done: int, complete: bool, code: int
) -> None:
    monkeypatch.setattr(status, "study_status", lambda study, results: FOUND | {"done": done})
    args = Namespace(study="quick", results_dir=Path("x"), json=True, complete=complete)
    assert study_commands.study_status(args) == code


def test_the_trials_name_the_rates_and_the_grids_to_widen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"system": system, "lr": rate, "best_val_dice": dice, "largest_loss_rise": 0.0}
        for system, scores in {"inner": (0.5, 0.7, 0.6), "outer": (0.5, 0.6, 0.7)}.items()
        for rate, dice in zip((0.002, 0.004, 0.008), scores)
    ]
    path = tmp_path / "tuning.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    monkeypatch.setattr(tuning, "tune", lambda *words: path)
    assert main.main(["study", "tune", "hippocampus2_tuned"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}\n" and "inner: 0.004" in said.err and "outer: 0.008" in said.err
    assert [line for line in said.err.splitlines() if "widen" in line] == [
        "[tune] outer: no stable rate lies between two others; widen its grid"
    ]
