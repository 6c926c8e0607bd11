"""What the commands of studies print, and the exit codes that they end with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from mvl.cli import study_commands
from mvl.core.errors import BAD, DONE
from mvl.study import status

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
