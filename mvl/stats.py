"""Paired comparisons of two systems: interval first, then tests, each saying over what it counts (cases, or (fold, seed) runs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

MARGIN = 0.01
"Equivalence margin in Dice: one point."
TEST_OVER_TRAIN = 1 / 7
"Cases of a fold's test set over those of its full training set (10 % and 70 %)."
ONE_RUN = "one (fold, seed) pair: what varies between runs cannot be estimated"
ONE_PAIR = "interval over cases of one run pair; run-to-run variation not measured"
"What a reader has to know of an interval with one (fold, seed)."
CHUNK = 4_000_000
"Random draws held at once by the bootstrap."


class StatsError(ValueError):
    """The two systems cannot be compared; the message says which cases or runs do not pair."""


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

    @property
    def unit_means(self) -> np.ndarray:
        """Mean difference of each (fold, seed)."""
        return np.array([d.mean() for d in self.differences])

    @property
    def cases(self) -> np.ndarray:
        """All differences in one array; a case counts once per seed."""
        return np.concatenate(self.differences)


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval of the mean difference."""

    difference: float
    "Mean over (fold, seed) of the mean over cases."
    low: float
    "Lower end."
    high: float
    "Upper end."
    level: float
    "Nominal coverage."
    over: str
    "What was resampled."
    n_units: int
    "(fold, seed) pairs."
    n_cases: int
    "Case pairs."


@dataclass(frozen=True)
class Test:
    """A p-value, or None with the reason in `note`."""

    name: str
    "Which test, over what."
    statistic: float | None
    "Its statistic."
    p: float | None
    "Two-sided p-value (TOST: the larger of its two one-sided ones)."
    n: int
    "Values that entered."
    note: str = ""
    "What the reader has to know."

    __test__ = False


@dataclass(frozen=True)
class Effect:
    """Cohen's dz: mean difference over the sd (n - 1) of the differences; None with the reason in `note`."""

    dz: float | None
    "Effect size."
    n: int
    "Differences that entered."
    note: str = ""
    "What the reader has to know."


@dataclass(frozen=True)
class Comparison:
    """Everything the book prints about two systems on one task at one fraction."""

    pairs: Pairs
    "The differences."
    interval: Interval
    "Hierarchical bootstrap."
    t_test: Test
    "Corrected resampled t-test over runs."
    equivalence: Test
    "Two one-sided tests over runs."
    wilcoxon: Test
    "The papers' way."
    effect: Effect
    "Cohen's dz over runs."


def pair(cases: pd.DataFrame, system: str, reference: str, task: str, fraction: float = 1.0, metric: str = "dice") -> Pairs:
    """Pair two systems' rows of `cases.csv` by (fold, seed, case).

    Raises:
        StatsError: a (fold, seed) that both have holds other cases in each, a value is not finite, or nothing pairs.
    """
    chosen = cases[(cases["task"] == task) & (cases["fraction"] == fraction)]
    ours, theirs = (_by_unit(chosen[chosen["system"] == name], metric) for name in (system, reference))
    units = sorted(set(ours) & set(theirs))
    if not units:
        raise StatsError(f"{system} and {reference} share no finished (fold, seed) on {task} at fraction {fraction}")
    for unit in units:
        if not ours[unit].index.equals(theirs[unit].index):
            odd = sorted(set(ours[unit].index) ^ set(theirs[unit].index))
            raise StatsError(f"{task} fold {unit[0]} seed {unit[1]}: {system} and {reference} were not scored on the same cases: {odd[:5]}")
    differences = tuple((ours[u] - theirs[u]).to_numpy(dtype=np.float64) for u in units)
    if not all(np.isfinite(d).all() for d in differences):
        raise StatsError(f"{metric} of {system} or {reference} on {task} holds values that are not finite")
    return Pairs(system, reference, task, float(fraction), metric, tuple(units), differences, tuple(sorted(set(ours) ^ set(theirs))))


def _by_unit(rows: pd.DataFrame, metric: str) -> dict[tuple[int, int], pd.Series]:
    if rows[metric].isna().any():
        raise StatsError(f"{metric} is empty or NaN in {int(rows[metric].isna().sum())} rows; a mean would leave them out in silence")
    return {(int(f), int(s)): unit.groupby("case")[metric].mean().sort_index() for (f, s), unit in rows.groupby(["fold", "seed"])}


def bootstrap(pairs: Pairs, resamples: int = 10_000, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of the mean difference: draw (fold, seed) pairs with replacement, then cases within each.

    With one (fold, seed) only the cases are drawn, and `over` says so: that interval leaves the variation between runs out. With few
    units it is too narrow (two or three: by far); read it beside the t-test.
    """
    means = hierarchical_means(pairs.differences, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    over = "(fold, seed) and cases" if len(pairs.units) > 1 else f"cases only ({ONE_RUN})"
    return Interval(float(pairs.unit_means.mean()), float(low), float(high), level, over, len(pairs.units), len(pairs.cases))


def hierarchical_means(differences: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap distribution (resamples,) of the mean over units of the mean over cases."""
    sizes = np.array([len(d) for d in differences])
    table = np.zeros((len(differences), sizes.max()))
    for row, values in zip(table, differences):
        row[: len(values)] = values
    step = max(1, CHUNK // table.size)
    return np.concatenate([_one_chunk(table, sizes, min(step, resamples - start), rng) for start in range(0, resamples, step)])


def _one_chunk(table: np.ndarray, sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    units = rng.integers(len(sizes), size=(count, len(sizes), 1))
    drawn = sizes[units]
    index = (rng.random((count, *table.shape), dtype=np.float32) * drawn).astype(np.int32)
    index = np.minimum(index, drawn - 1)
    kept = np.arange(table.shape[1]) < drawn
    sums = np.where(kept, table.ravel()[units * table.shape[1] + index], 0).sum(-1)
    return (sums / drawn[..., 0]).mean(-1)


def wilcoxon(pairs: Pairs) -> Test:
    """Wilcoxon signed-rank over all case pairs, as the papers would do it: it takes the runs' own variation for an effect."""
    name, note = "Wilcoxon over cases (the papers' way)", "treats cases of one training run as independent of it; too many false positives"
    values = pairs.cases
    if not values.any():
        return Test(name, 0.0, 1.0, len(values), "every difference is zero")
    result = stats.wilcoxon(values)
    return Test(name, float(result.statistic), float(result.pvalue), len(values), note)


def corrected_t(pairs: Pairs, test_over_train: float | None = None) -> Test:
    """Corrected resampled t-test over (fold, seed) mean differences: folds share training cases, so the variance is 1/n + test/train.

    `test_over_train` defaults to the protocol's 1/7 over the fraction used. None with one (fold, seed).

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003).
    """
    name = "corrected resampled t-test over (fold, seed)"
    spread = standard_error(pairs, test_over_train)
    if spread is None:
        return Test(name, None, None, 1, ONE_RUN)
    t, p = _t_and_p(float(pairs.unit_means.mean()), spread, len(pairs.units))
    return Test(name, t, min(1.0, 2 * min(p, 1 - p)), len(pairs.units))


def standard_error(pairs: Pairs, test_over_train: float | None = None) -> float | None:
    """Nadeau and Bengio's standard error of the mean difference; None with one (fold, seed)."""
    means, ratio = pairs.unit_means, TEST_OVER_TRAIN / pairs.fraction if test_over_train is None else test_over_train
    return None if len(means) < 2 else float(means.std(ddof=1)) * math.sqrt(1 / len(means) + ratio)


def _t_and_p(distance: float, spread: float, n: int) -> tuple[float, float]:
    """t and the upper-tail p of `distance`; without any spread, t is infinite or, for no distance, 0."""
    t = distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0
    return t, float(stats.t.sf(t, n - 1))


def tost(pairs: Pairs, margin: float = MARGIN, test_over_train: float | None = None) -> Test:
    """Two one-sided corrected t-tests: a small p says that the mean difference lies within +-margin. None with one (fold, seed).

    Raises:
        StatsError: the margin is not positive.
    """
    if not margin > 0:
        raise StatsError(f"the equivalence margin must be positive, got {margin}")
    name, spread = f"equivalence within ±{margin:g} over (fold, seed)", standard_error(pairs, test_over_train)
    if spread is None:
        return Test(name, None, None, 1, ONE_RUN)
    centre, n = float(pairs.unit_means.mean()), len(pairs.units)
    t, p = max((_t_and_p(distance, spread, n) for distance in (margin + centre, margin - centre)), key=lambda pair: pair[1])
    return Test(name, t, p, n)


def cohens_dz(values: np.ndarray) -> Effect:
    """Cohen's dz of paired differences; None for fewer than two or without spread."""
    if len(values) < 2:
        return Effect(None, len(values), ONE_RUN)
    spread = float(values.std(ddof=1))
    return Effect(float(values.mean()) / spread, len(values)) if spread else Effect(None, len(values), "the differences do not vary")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: valid for any dependence within the family.

    Raises:
        StatsError: a value outside [0, 1] (NaN too): a family is corrected whole or not at all.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise StatsError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order, adjusted, largest = sorted(range(len(p_values)), key=lambda i: p_values[i]), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = float(largest)
    return adjusted


def compare(cases: pd.DataFrame, system: str, reference: str, task: str, fraction: float = 1.0, metric: str = "dice",
            margin: float = MARGIN) -> Comparison:
    """Interval, tests and effect size of system minus reference on one task at one fraction."""
    pairs = pair(cases, system, reference, task, fraction, metric)
    return Comparison(pairs, bootstrap(pairs), corrected_t(pairs), tost(pairs, margin), wilcoxon(pairs), cohens_dz(pairs.unit_means))


def paired_difference(cases: pd.DataFrame, system: str, reference: str, metric: str = "dice") -> dict[str, float | int]:
    """Mean difference, 95 % interval and n of two systems in rows of one task and fraction: difference, low, high, n_cases, n_runs.

    Raises:
        StatsError: the rows hold several tasks or fractions, or do not pair.
    """
    arms = cases[["task", "fraction"]].drop_duplicates()
    if len(arms) != 1:
        raise StatsError(f"expected rows of one task and fraction, got {arms.to_dict('records')}")
    found = bootstrap(pair(cases, system, reference, str(arms["task"].iloc[0]), float(arms["fraction"].iloc[0]), metric))
    return {"difference": found.difference, "low": found.low, "high": found.high, "n_cases": found.n_cases, "n_runs": found.n_units}


def table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per comparison for figures and the book; p-values that one run cannot give are NaN."""
    columns = ["task", "system", "reference", "fraction", "metric", "comparison", "difference", "low", "high", "n_cases", "n_runs",
               "unpaired", "interval_over", "p_t", "p_equivalence", "p_wilcoxon", "dz"]
    number = lambda value: math.nan if value is None else value
    return pd.DataFrame([[
        c.pairs.task, c.pairs.system, c.pairs.reference, c.pairs.fraction, c.pairs.metric, f"{c.pairs.system} - {c.pairs.reference}",
        c.interval.difference, c.interval.low, c.interval.high, c.interval.n_cases, c.interval.n_units, len(c.pairs.unpaired),
        c.interval.over, number(c.t_test.p), number(c.equivalence.p), number(c.wilcoxon.p), number(c.effect.dz),
    ] for c in comparisons], columns=columns)
