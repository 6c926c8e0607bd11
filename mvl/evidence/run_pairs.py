"""Pairs of runs: two systems' scores of the same cases at the same folds and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mvl.core.errors import MvlError


def cases_and_seeds(distinct: int, pairs: int, times: str = "seeds") -> str:
    """How many cases a number of case pairs is of: `130 cases x 2 seeds`, so that no case passes
    for two; `times`: what each case is asked again for."""
    if pairs == distinct:
        return f"{distinct} cases"
    return (
        f"{distinct} cases x {pairs // distinct} {times}"
        if distinct and pairs % distinct == 0
        else f"{pairs} pairs of {distinct} cases"
    )


class StatsError(MvlError, ValueError):
    """The two systems cannot be compared; the message says which cases or runs do not pair."""


class NoPairs(StatsError):
    """The two systems have no finished pair of runs in common."""


@dataclass(frozen=True)
class Pairs:
    """Differences of two systems over the same cases of the same (fold, seed)."""

    system: str
    "What is tested."
    reference: str
    "What it is tested against; a difference is system minus reference."
    task: str
    "Task name."
    fraction: float
    "Share of the training cases."
    metric: str
    "Column of cases.csv."
    units: tuple[tuple[int, int], ...]
    "(fold, seed) of each pair of runs."
    differences: tuple[np.ndarray, ...]
    "Per unit, one difference per case (mean over labels), cases in order."
    unpaired: tuple[tuple[int, int], ...]
    "(fold, seed) that only one of the two has: holes, not used."
    planned: tuple[tuple[int, int], ...] = ()
    """(fold, seed) at which the study's grid has both; empty: it was not said, and those of either
    are taken."""
    shared: bool = False
    "True where every fold is asked about the same cases."

    @cached_property
    def folds(self) -> tuple[np.ndarray, ...]:
        """Per fold, in order, the differences (seeds, cases)."""
        order = sorted({fold for fold, _ in self.units})
        return tuple(
            np.stack([d for (f, _), d in zip(self.units, self.differences) if f == fold])
            for fold in order
        )

    @property
    def fold_means(self) -> np.ndarray:
        """Mean difference of each fold over its seeds and cases: the units of the tests."""
        return np.array([d.mean() for d in self.folds])

    @property
    def n_planned(self) -> int:
        """Pairs of runs that there should be."""
        return len(self.planned) or len(self.units) + len(self.unpaired)

    @property
    def complete(self) -> bool:
        """True when every planned pair is there."""
        return len(self.units) == self.n_planned

    @property
    def n_distinct(self) -> int:
        """Test cases, each counted once: folds test different ones, unless they are `shared`."""
        counts = [d.shape[1] for d in self.folds]
        return max(counts) if self.shared else sum(counts)

    @property
    def cases(self) -> np.ndarray:
        """All differences in one array; a case counts once per seed."""
        return np.concatenate(self.differences)


def pair(
    cases: pd.DataFrame,
    system: str,
    reference: str,
    task: str,
    fraction: float = 1.0,
    metric: str = "dice",
    planned: Sequence[tuple[int, int]] = (),
) -> Pairs:
    """Pair two systems' rows of `cases.csv` by (fold, seed, case); of the planned (fold, seed)
    alone where they are given.

    Raises:
        StatsError: the runs of a fold were not all scored on the same cases, a value is not finite,
            or nothing pairs.
    """
    chosen = cases[(cases["task"] == task) & (cases["fraction"] == fraction)]
    ours, theirs = (
        _by_unit(chosen[chosen["system"] == name], metric, set(planned))
        for name in (system, reference)
    )
    units = sorted(set(ours) & set(theirs))
    if not units:
        raise NoPairs(
            f"{system} and {reference} share no finished (fold, seed) on {task} at fraction"
            f" {fraction}"
        )
    of_fold = {fold: ours[fold, seed].index for fold, seed in reversed(units)}
    for unit in units:
        for odd in (set(arm[unit].index) ^ set(of_fold[unit[0]]) for arm in (ours, theirs)):
            if odd:
                raise StatsError(
                    f"{task} fold {unit[0]} seed {unit[1]}: {system} and {reference} were not"
                    f" scored on the same cases: {sorted(odd)[:5]}"
                )
    differences = tuple((ours[u] - theirs[u]).to_numpy(dtype=np.float64) for u in units)
    if not all(np.isfinite(d).all() for d in differences):
        raise StatsError(
            f"{metric} of {system} or {reference} on {task} holds values that are not finite"
        )
    return Pairs(
        system,
        reference,
        task,
        float(fraction),
        metric,
        tuple(units),
        differences,
        tuple(sorted(set(ours) ^ set(theirs))),
        tuple(sorted(set(planned))),
    )


def _by_unit(
    rows: pd.DataFrame, metric: str, planned: set[tuple[int, int]]
) -> dict[tuple[int, int], pd.Series]:
    if rows[metric].isna().any():
        raise StatsError(
            f"{metric} is empty or NaN in {int(rows[metric].isna().sum())} rows; a mean would leave"
            " them out in silence"
        )
    means = rows.groupby(["fold", "seed", "case"])[metric].mean()
    found = {(int(f), int(s)): unit for (f, s), unit in means.groupby(level=["fold", "seed"])}
    return {
        u: unit.droplevel(["fold", "seed"])
        for u, unit in found.items()
        if not planned or u in planned
    }
