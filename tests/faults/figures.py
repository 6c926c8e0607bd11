"""Where a test leaves a figure of the table that `make faults` prints: `record_figure(key, value,
n, words)`."""

from __future__ import annotations

import os
from pathlib import Path

from mvl.evidence.faults import FIGURES, keep_figure

PLACE = "MVL_FAULT_FIGURES"
"""Environment variable with the JSON file that figures go to; without it nothing is written, so
that a single test changes no record."""


def record_figure(key: str, value: float, n: int, words: str = "") -> None:
    """Keep one measured figure: `value` of `n` came out right (or a rate over `n`), said in
    `words`; never a target.

    Raises:
        KeyError: the table has no such row; lists those there are.
    """
    if key not in FIGURES:
        raise KeyError(f"{key!r} is no row of mvl.evidence.faults.FIGURES: {', '.join(FIGURES)}")
    if place := os.environ.get(PLACE):
        keep_figure(Path(place), key, float(value), int(n), words)
