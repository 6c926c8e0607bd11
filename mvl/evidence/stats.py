"""Paired comparisons of two systems: interval first, then tests.

The unit of a test is the fold, the mean over its seeds and cases: runs of one fold share training
set and test cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mvl.evidence.decision import MARGIN, error_factor, t_reach
from mvl.evidence.resampling import hierarchical_means
from mvl.evidence.run_pairs import Pairs, StatsError, pair

ONE_FOLD = "one fold: what varies between training sets and test cases cannot be estimated"
ONE_PAIR = "interval over cases of one run pair; run-to-run variation not measured"
"What a reader has to know of an interval with one (fold, seed)."
COLUMNS = (
    "task system reference fraction metric comparison difference low high n_cases n_distinct n_runs"
    " n_folds planned complete unpaired boot_low boot_high p_t p_equivalence p_wilcoxon dz p_holm"
    " hole"
).split()
"""Columns of a table of comparisons. low, high: the interval that is printed (`shown_interval`);
boot_low, boot_high: the bootstrap's, which the rule asks too; p_holm: of `adjust`; hole: why the
two could not be compared, else empty."""


@dataclass(frozen=True)
class Interval:
    """A 95 % bootstrap interval of the mean difference."""

    difference: float
    "Mean over folds of the mean over their seeds and cases."
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Everything the book prints about two systems on one task at one fraction; what one fold
    cannot give is NaN."""

    pairs: Pairs
    "The differences."
    interval: Interval
    "Hierarchical bootstrap."
    p_t: float
    "Corrected resampled t-test over folds."
    p_equivalence: float
    "Two one-sided tests over folds."
    p_wilcoxon: float
    "The papers' way."
    dz: float
    "Cohen's dz over folds."

    @property
    def shown(self) -> tuple[float, float]:
        """The interval that is printed: the corrected t-test's over folds; with one fold, the
        bootstrap's over what there is."""
        return shown_interval(self.pairs, self.interval)


def bootstrap(pairs: Pairs, resamples: int = 10_000) -> Interval:
    """Percentile interval of the mean difference: draw folds with replacement, then seeds and cases
    within each.

    With one fold only its seeds and cases are drawn, with one (fold, seed) only the cases: that
    interval leaves out what varies between folds, or runs. With few folds it is too narrow (two or
    three: by far); read it beside the t-test.
    """
    means = hierarchical_means(pairs.folds, resamples)
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return Interval(float(pairs.fold_means.mean()), float(low), float(high))


def wilcoxon(pairs: Pairs) -> float:
    """Return p of the Wilcoxon signed-rank test over the cases of the first pair of runs, as the
    papers would do it.

    It takes the run's own luck for an effect: too many false positives.
    """
    values = pairs.differences[0]
    return float(stats.wilcoxon(values).pvalue) if values.any() else 1.0


def corrected_t(pairs: Pairs) -> float:
    """Return p of the corrected resampled t-test over fold means; NaN with one fold.

    Folds share training cases, so the variance is 1/n + test/train.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 52 (2003).
    """
    p = _upper_tail(pairs, float(pairs.fold_means.mean()))
    return 2 * min(p, 1 - p)


def standard_error(pairs: Pairs) -> float:
    """Nadeau and Bengio's standard error of the mean difference; NaN with one fold."""
    means = pairs.fold_means
    return float(means.std(ddof=1)) * error_factor(len(means)) if len(means) > 1 else math.nan


def shown_interval(pairs: Pairs, interval: Interval) -> tuple[float, float]:
    """The corrected t-interval over folds around the mean difference, 95 %; the given bootstrap
    interval where there is one fold."""
    if len(pairs.folds) < 2:
        return interval.low, interval.high
    reach = t_reach(standard_error(pairs), len(pairs.folds))
    return interval.difference - reach, interval.difference + reach


def _upper_tail(pairs: Pairs, distance: float) -> float:
    """p of a distance in standard errors; without any spread, t is infinite or, for no distance,
    0."""
    spread = standard_error(pairs)
    if spread:
        t = distance / spread
    else:
        t = math.copysign(math.inf, distance) if distance else 0.0
    return float(stats.t.sf(t, len(pairs.folds) - 1))


def tost(pairs: Pairs, margin: float = MARGIN) -> float:
    """Return the larger p of two one-sided corrected t-tests: a small one says that the mean
    difference lies within +-margin. NaN with one fold.

    Raises:
        StatsError: the margin is not positive.
    """
    if not margin > 0:
        raise StatsError(f"the equivalence margin must be positive, got {margin}")
    centre = float(pairs.fold_means.mean())
    return max(_upper_tail(pairs, distance) for distance in (margin + centre, margin - centre))


def cohens_dz(values: np.ndarray) -> float:
    """Cohen's dz of paired differences: their mean over their sd (n - 1); NaN for fewer than two or
    without spread."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()) / spread if spread else math.nan


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


def row(found: Comparison) -> dict[str, Any]:
    """A comparison as a row of `table`."""
    pairs, interval = found.pairs, found.interval
    low, high = found.shown
    return {
        "task": pairs.task,
        "system": pairs.system,
        "reference": pairs.reference,
        "fraction": pairs.fraction,
        "metric": pairs.metric,
        "comparison": f"{pairs.system} - {pairs.reference}",
        "difference": interval.difference,
        "low": low,
        "high": high,
        "n_cases": len(pairs.cases),
        "n_distinct": pairs.n_distinct,
        "n_runs": len(pairs.units),
        "n_folds": len(pairs.folds),
        "planned": pairs.n_planned,
        "complete": pairs.complete,
        "unpaired": len(pairs.unpaired),
        "boot_low": interval.low,
        "boot_high": interval.high,
        "p_t": found.p_t,
        "p_equivalence": found.p_equivalence,
        "p_wilcoxon": found.p_wilcoxon,
        "dz": found.dz,
        "hole": "",
    }


def hole(
    system: str, reference: str, task: str, fraction: float, metric: str, planned: int, why: str
) -> dict[str, Any]:
    """Two systems that could not be compared as a row of `table`: no runs, and why."""
    return {
        "task": task,
        "system": system,
        "reference": reference,
        "fraction": fraction,
        "metric": metric,
        **dict.fromkeys(("n_cases", "n_distinct", "n_runs", "n_folds", "unpaired"), 0),
        "planned": planned,
        "complete": False,
        "hole": why,
    }


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per comparison or hole, with `p_holm`; the rows of one metric are a family."""
    return adjust(pd.DataFrame(rows, columns=COLUMNS))


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
