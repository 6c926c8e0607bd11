"""Means over cases and runs, which never leave one out in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mvl.core.errors import MvlError


class MetricError(MvlError, ValueError):
    """A mask, spacing, tolerance or metric value that cannot be scored; the message says which and
    why."""


def mean(values: Sequence[float | int] | np.ndarray) -> float:
    """The mean, exactly rounded, of at least one finite number.

    Raises:
        MetricError: no value, or one that is not finite: a mean never leaves a case out in silence.
    """
    numbers = [float(v) for v in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise MetricError(
            f"cannot average {len(numbers)} values of which"
            f" {sum(not math.isfinite(v) for v in numbers)} are not finite"
        )
    return math.fsum(numbers) / len(numbers)
