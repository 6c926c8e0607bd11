"""Pairs of runs made from numbers, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvl.evidence.run_pairs import Pairs


def pairs_of(*folds: Sequence[float] | np.ndarray) -> Pairs:
    """Two arms by their differences in each fold: (seeds, cases), or (cases,) of one seed."""
    arrays = [np.atleast_2d(np.asarray(fold, float)) for fold in folds]
    units = tuple((k, s) for k, fold in enumerate(arrays) for s in range(len(fold)))
    differences = tuple(seed for fold in arrays for seed in fold)
    return Pairs("new", "old", "task", 1.0, "dice", units, differences, ())
