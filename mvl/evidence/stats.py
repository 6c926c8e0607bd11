"""Paired comparisons of two systems: interval first, then tests, each saying over what it counts
(cases, runs or folds).

The unit of a test is the fold, the mean over its seeds and cases: runs of one fold share training
set and test cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mvl.evidence.decision import MARGIN, TEST_OVER_TRAIN, t_reach
from mvl.evidence.resampling import hierarchical_means
from mvl.evidence.run_pairs import Pairs, StatsError, pair

ONE_RUN = "one (fold, seed) pair: what varies between runs cannot be estimated"
ONE_FOLD = "one fold: what varies between training sets and test cases cannot be estimated"
ONE_PAIR = "interval over cases of one run pair; run-to-run variation not measured"
"What a reader has to know of an interval with one (fold, seed)."


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval of the mean difference."""

    difference: float
    "Mean over folds of the mean over their seeds and cases."
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
    """Cohen's dz: mean difference over the sd (n - 1) of the differences; None with the reason in
    `note`."""

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
    "Corrected resampled t-test over folds."
    equivalence: Test
    "Two one-sided tests over folds."
    wilcoxon: Test
    "The papers' way."
    effect: Effect
    "Cohen's dz over folds."

    @property
    def shown(self) -> tuple[float, float]:
        """The interval that is printed: the corrected t-test's over folds; with one fold, the
        bootstrap's over what there is."""
        return shown_interval(self.pairs, self.interval)


def bootstrap(
    pairs: Pairs, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of the mean difference: draw folds with replacement, then seeds and cases
    within each.

    With one fold only its seeds and cases are drawn, with one (fold, seed) only the cases, and
    `over` says so: that interval leaves out what varies between folds, or runs. With few folds it
    is too narrow (two or three: by far); read it beside the t-test.
    """
    means = hierarchical_means(pairs.folds, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    over = "folds, seeds and cases"
    if len(pairs.folds) == 1:
        drawn = "seeds and cases" if len(pairs.units) > 1 else "cases only"
        over = f"{drawn} ({_too_few(pairs)})"
    return Interval(
        float(pairs.fold_means.mean()),
        float(low),
        float(high),
        level,
        over,
        len(pairs.units),
        len(pairs.cases),
    )


def wilcoxon(pairs: Pairs) -> Test:
    """Wilcoxon signed-rank over the cases of the first pair of runs, as the papers would do it: it
    takes the run's own luck for an effect."""
    (fold, seed), values = pairs.units[0], pairs.differences[0]
    name = f"Wilcoxon over the cases of one run, fold {fold} seed {seed} (the papers' way)"
    if not values.any():
        return Test(name, 0.0, 1.0, len(values), "every difference is zero")
    result = stats.wilcoxon(values)
    note = "treats cases of one training run as independent of it; too many false positives"
    return Test(name, float(result.statistic), float(result.pvalue), len(values), note)


def corrected_t(pairs: Pairs, test_over_train: float = TEST_OVER_TRAIN) -> Test:
    """Corrected resampled t-test over fold means: folds share training cases, so the variance is
    1/n + test/train. None with one fold.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003).
    """
    name, n = "corrected resampled t-test over folds (means over seeds)", len(pairs.folds)
    spread = standard_error(pairs, test_over_train)
    if spread is None:
        return Test(name, None, None, n, _too_few(pairs))
    t, p = _t_and_p(float(pairs.fold_means.mean()), spread, n)
    return Test(name, t, min(1.0, 2 * min(p, 1 - p)), n)


def _too_few(pairs: Pairs) -> str:
    return ONE_RUN if len(pairs.units) == 1 else ONE_FOLD


def standard_error(pairs: Pairs, test_over_train: float = TEST_OVER_TRAIN) -> float | None:
    """Nadeau and Bengio's standard error of the mean difference; None with one fold."""
    means = pairs.fold_means
    return (
        None
        if len(means) < 2
        else float(means.std(ddof=1)) * math.sqrt(1 / len(means) + test_over_train)
    )


def shown_interval(pairs: Pairs, interval: Interval) -> tuple[float, float]:
    """The corrected t-interval over folds around the mean difference, 95 %; the given bootstrap
    interval where there is one fold."""
    spread = standard_error(pairs)
    if spread is None:
        return interval.low, interval.high
    reach = t_reach(spread, len(pairs.folds))
    return interval.difference - reach, interval.difference + reach


def _t_and_p(distance: float, spread: float, n: int) -> tuple[float, float]:
    """t and the upper-tail p of `distance`; without any spread, t is infinite or, for no distance,
    0."""
    if spread:
        t = distance / spread
    else:
        t = math.copysign(math.inf, distance) if distance else 0.0
    return t, float(stats.t.sf(t, n - 1))


def tost(pairs: Pairs, margin: float = MARGIN, test_over_train: float = TEST_OVER_TRAIN) -> Test:
    """Two one-sided corrected t-tests: a small p says that the mean difference lies within
    +-margin. None with one fold.

    Raises:
        StatsError: the margin is not positive.
    """
    if not margin > 0:
        raise StatsError(f"the equivalence margin must be positive, got {margin}")
    name, spread, n = (
        f"equivalence within ±{margin:g} over folds",
        standard_error(pairs, test_over_train),
        len(pairs.folds),
    )
    if spread is None:
        return Test(name, None, None, n, _too_few(pairs))
    centre = float(pairs.fold_means.mean())
    t, p = max(
        (_t_and_p(distance, spread, n) for distance in (margin + centre, margin - centre)),
        key=lambda pair: pair[1],
    )
    return Test(name, t, p, n)


def cohens_dz(values: np.ndarray) -> Effect:
    """Cohen's dz of paired differences over folds; None for fewer than two or without spread."""
    if len(values) < 2:
        return Effect(None, len(values), ONE_FOLD)
    spread = float(values.std(ddof=1))
    return (
        Effect(float(values.mean()) / spread, len(values))
        if spread
        else Effect(None, len(values), "the differences do not vary")
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: valid for any dependence within the family.

    Written here, for statsmodels collects garbage at every call: a third of a second beside torch,
    hundreds of times for the book.

    NaN is a planned test without a result: it counts towards the family as p = 1 and stays NaN.
    Whatever it becomes later, the other values cannot rise.

    Raises:
        StatsError: a value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise StatsError(f"p-values must lie in [0, 1], got {list(p_values)}")
    known = np.nan_to_num(values, nan=1.0)
    order = known.argsort()
    steps = known[order] * np.arange(len(known), 0, -1)
    adjusted = np.empty_like(known)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in np.where(np.isnan(values), np.nan, adjusted)]


def compare(
    cases: pd.DataFrame,
    system: str,
    reference: str,
    task: str,
    fraction: float = 1.0,
    metric: str = "dice",
    margin: float = MARGIN,
    planned: Sequence[tuple[int, int]] = (),
) -> Comparison:
    """Interval, tests and effect size of system minus reference on one task at one fraction, over
    the planned (fold, seed) where given."""
    pairs = pair(cases, system, reference, task, fraction, metric, planned)
    return Comparison(
        pairs,
        bootstrap(pairs),
        corrected_t(pairs),
        tost(pairs, margin),
        wilcoxon(pairs),
        cohens_dz(pairs.fold_means),
    )


def table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per comparison for figures and the book; p-values that one fold cannot give are NaN.
    Its rows of one metric are a family.

    low, high: the interval that is printed (`shown_interval`); boot_low, boot_high: the
    bootstrap's, which the rule asks too.
    """
    columns = [
        "task",
        "system",
        "reference",
        "fraction",
        "metric",
        "comparison",
        "difference",
        "low",
        "high",
        "n_cases",
        "n_distinct",
        "n_runs",
        "n_folds",
        "planned",
        "complete",
        "unpaired",
        "boot_low",
        "boot_high",
        "p_t",
        "p_equivalence",
        "p_wilcoxon",
        "dz",
    ]
    return adjust(
        pd.DataFrame(
            [
                [
                    c.pairs.task,
                    c.pairs.system,
                    c.pairs.reference,
                    c.pairs.fraction,
                    c.pairs.metric,
                    f"{c.pairs.system} - {c.pairs.reference}",
                    c.interval.difference,
                    *c.shown,
                    c.interval.n_cases,
                    c.pairs.n_distinct,
                    c.interval.n_units,
                    len(c.pairs.folds),
                    c.pairs.n_planned,
                    c.pairs.complete,
                    len(c.pairs.unpaired),
                    c.interval.low,
                    c.interval.high,
                    c.t_test.p,
                    c.equivalence.p,
                    c.wilcoxon.p,
                    c.effect.dz,
                ]
                for c in comparisons
            ],
            columns=columns,
        ).astype(dict.fromkeys(columns[-4:], float))
    )


def adjust(rows: pd.DataFrame) -> pd.DataFrame:
    """Add `p_holm`: Holm over the rows of one metric, which are the family's planned contrasts.

    A row that is not complete counts towards the family's size and has no adjusted p: an interim
    value decides nothing. A row of no planned pair is not of the family.
    """
    out = rows.assign(p_holm=math.nan)
    final = out["p_t"].where(out["complete"].eq(True)).astype(float)
    for _, family in out[out["planned"] > 0].groupby("metric"):
        out.loc[family.index, "p_holm"] = holm(final[family.index].tolist())
    return out
