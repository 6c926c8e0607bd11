"""Where a run is, and how it is asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import FrameType
from typing import Any


class Interrupted(SystemExit):
    """SIGINT or SIGTERM arrived; the run is checkpointed. `code` is 130 or 143, `command` goes
    on."""

    def __init__(self, signum: int, command: str) -> None:
        super().__init__(128 + signum)
        self.command = command

    def __str__(self) -> str:
        """The words that a notebook shows, where the exit code alone would tell nothing."""
        return f"stopped after a checkpoint; the same cell goes on, and so does `{self.command}`"


@dataclass
class Progress:
    """Where a run is: everything that a checkpoint holds beside the tensors."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_dice: float = -1.0
    best_epoch: int = -1
    runtime_s: float = 0.0
    cpu_s: float = 0.0
    frozen_sha256: str = ""
    skipped: int = 0
    "Steps that fp16 overflowed in; the optimiser took none of them."
    skipped_in_a_row: int = 0
    gradients: list[dict[str, Any]] = field(default_factory=list)
    "Rows of gradients.csv so far."


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to while the block runs, in place of ending the
    process."""
    caught: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def largest_loss_rise(history: list[dict[str, Any]]) -> tuple[float, int | None]:
    """The largest rise of the mean training loss from one epoch to the next, and the epoch that
    rose; 0 and None where it never did."""
    losses = [row["train_loss"] for row in history]
    rises = [
        (after - before, epoch) for epoch, (before, after) in enumerate(pairwise(losses), start=1)
    ]
    rise, epoch = max(rises, key=lambda pair: pair[0], default=(0.0, None))
    return (rise, epoch) if rise > 0 else (0.0, None)
