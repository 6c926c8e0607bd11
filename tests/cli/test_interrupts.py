"""Ctrl-C at any moment of a command's start: exit 130, one line, nothing half-written."""

from __future__ import annotations

import pytest

from mvl.cli import main
from tests.cli.interrupts import commands, interrupt
from tests.faults.figures import record_figure


@pytest.mark.parametrize(
    ("times", "seed"), [(12, 0), pytest.param(200, 1, marks=pytest.mark.faults)]
)
def test_a_start_that_is_interrupted_ends_with_130_and_leaves_nothing(
    times, seed, own_data, tmp_path, capsys
):
    own_data(tmp_path / "Boxes", shape=(8, 8, 8))
    wrong = interrupt(tmp_path, times, seed)
    words = f"seed {seed}; six commands in turn, in their first three seconds"
    record_figure("start_interrupts", times - len(wrong), times, words)
    assert wrong == []
    assert main.main(commands(tmp_path)[2]) == 0, capsys.readouterr().err
