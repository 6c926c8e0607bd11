"""Where a run is survives a checkpoint; signals are noted while a run goes on, and their handlers
put back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mvl.core.progress import Interrupted, Progress, largest_loss_rise, signals
from mvl.training import checkpoints


def test_progress_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    before = Progress(
        epoch=3,
        step=2,
        losses=[0.1, 0.2],
        history=[{"epoch": 0, "train_loss": 0.5}],
        best_dice=0.7,
        skipped=1,
    )
    checkpoints.save(tmp_path, 11, {"progress": vars(before)})
    assert Progress(**checkpoints.load(tmp_path)["progress"]) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_ends_nothing(number: signal.Signals) -> None:
    old = signal.getsignal(number)
    with signals() as caught:
        os.kill(os.getpid(), number)
        assert caught == [number]
    assert signal.getsignal(number) is old
    assert Interrupted(number, "again").code == 128 + number


def test_handlers_come_back_after_an_error() -> None:
    old = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="x"), signals():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGTERM) is old


def test_the_largest_rise_is_found_with_its_epoch() -> None:
    def rise(*losses: float) -> tuple[float, int | None]:
        return largest_loss_rise([{"train_loss": loss} for loss in losses])

    assert rise(1.0, 0.5, 0.75, 0.25, 0.5) == (0.25, 2)
    assert rise(1.0, 0.5, 0.75, 1.5) == (0.75, 3)
    assert rise(3.0, 2.0, 1.0) == rise(1.0) == rise() == (0.0, None)


def test_an_interrupted_run_says_in_words_how_it_goes_on() -> None:
    stopped = Interrupted(signal.SIGINT, "mvl train --study quick")
    assert stopped.code == 130
    assert "the same cell goes on" in str(stopped) and "`mvl train --study quick`" in str(stopped)
