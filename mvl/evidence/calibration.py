"""How often each procedure errs: variance components of the recorded differences, and studies
simulated at them, with the truth known."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mvl.core.config import ROOT
from mvl.evidence import decision, run_pairs
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter, planned_pairs
from mvl.evidence.decision import LEVEL, MARGIN, MIN_FOLDS, TEST_OVER_TRAIN
from mvl.evidence.resampling import resample_weights
from mvl.evidence.run_pairs import Pairs
from mvl.evidence.topics import TOPICS
from mvl.study.grid import Study

STUDIES, RESAMPLES, SEED = 4000, 1000, 0
"Simulated studies of each design, bootstrap resamples in each, and the seed of both."
CORRELATION = TEST_OVER_TRAIN / (1 + TEST_OVER_TRAIN)
"Correlation of two folds' differences that the corrected t-test assumes: 1/8."
ONE, POOLED, PLAIN = (
    "Wilcoxon over the cases of one run",
    "Wilcoxon over cases of all runs",
    "t-test over runs, not corrected",
)
CORRECTED, INTERVAL = "corrected t-test over folds", "bootstrap interval without 0"
RULE, FAMILY = "our rule (interval and corrected t-test)", "our rule, hardest step of Holm"
SAME, RULE_SAME = "two one-sided tests over folds", "our rule (interval and both tests)"
DIFFERENT, EQUIVALENT = (ONE, POOLED, PLAIN, CORRECTED, INTERVAL, RULE, FAMILY), (SAME, RULE_SAME)


@dataclass(frozen=True)
class Components:
    """Variances of a case's difference between two arms, each the share of one source; what could
    not be told apart is in `lumped`."""

    fold: float
    "Training set and what the fold's cases have in common."
    run: float
    "Seeds of one fold."
    case: float
    "Cases, the same in each seed of their fold."
    residual: float
    "Case by seed."
    folds: int
    "Folds that it is estimated from."
    seeds: int
    "Seeds in the fold that has most."
    cases: int
    "Cases of a fold, the median."

    def of_fold_mean(self, seeds: int, cases: int) -> float:
        """Variance of a fold's mean over so many seeds and cases."""
        return self.fold + self.run / seeds + self.case / cases + self.residual / (cases * seeds)

    @property
    def lumped(self) -> str:
        """What the runs could not tell apart, in words; empty where they could."""
        if self.seeds == 1:
            return (
                "One seed a fold: run and fold are one number, shown under fold, and so are case"
                " and case by seed, under the latter."
            )
        return (
            "One fold: its own share is not measured and taken as none, so the rates below are"
            " lower bounds."
            if self.folds == 1
            else ""
        )


def components(pairs: Pairs) -> Components | None:
    """Estimates by the method of moments, negative ones set to 0; None for one pair of runs, which
    shows no variation between runs.

    Folds with several seeds give run, case and residual; the variance of the fold means, less their
    share in it, gives fold.
    """
    if len(pairs.units) < 2:
        return None
    several = [d for d in pairs.folds if len(d) > 1]
    freedom = sum((len(d) - 1) * (d.shape[1] - 1) for d in several)
    run = case = 0.0
    if freedom:
        rest = [d - d.mean(0) - d.mean(1, keepdims=True) + d.mean() for d in several]
        residual = sum(float((r**2).sum()) for r in rest) / freedom
        run = _excess([d.mean(1) for d in several], [residual / d.shape[1] for d in several])
        case = _excess([d.mean(0) for d in several], [residual / len(d) for d in several])
    else:
        residual = _excess([row for d in pairs.folds for row in d], [0.0] * len(pairs.units))
    inside = np.mean([run / len(d) + case / d.shape[1] + residual / d.size for d in pairs.folds])
    fold = max(0.0, float(pairs.fold_means.var(ddof=1) - inside)) if len(pairs.folds) > 1 else 0.0
    return Components(
        fold,
        run,
        case,
        residual,
        len(pairs.folds),
        max(map(len, pairs.folds)),
        int(np.median([d.shape[1] for d in pairs.folds])),
    )


def _excess(groups: Sequence[np.ndarray], known: Sequence[float]) -> float:
    """Pooled variance within groups beyond what is known to be in it, at least 0."""
    freedom = [len(values) - 1 for values in groups]
    pooled = sum(float(((values - values.mean()) ** 2).sum()) for values in groups) / max(
        1, sum(freedom)
    )
    return max(0.0, pooled - float(np.average(known, weights=freedom) if sum(freedom) else 0.0))


def pool(found: Sequence[Components]) -> Components | None:
    """Average the components over contrasts, those only that tell most apart; None without any."""
    if not found:
        return None

    orders = [(min(c.folds, 2) + min(c.seeds, 2), c.folds * c.seeds) for c in found]
    best = [c for c, order in zip(found, orders) if order == max(orders)]
    fold, run, case, residual = (
        float(np.mean([getattr(c, name) for c in best]))
        for name in ("fold", "run", "case", "residual")
    )
    cases = int(np.median([c.cases for c in best]))
    return Components(fold, run, case, residual, best[0].folds, best[0].seeds, cases)


def simulate(
    variances: Components,
    folds: int,
    seeds: int,
    rng: np.random.Generator,
    studies: int = STUDIES,
    shared: float = 0.0,
) -> np.ndarray:
    """Differences (studies, folds, seeds, cases) with no true difference; `shared` is the
    correlation of two folds' means."""

    def draw(variance: float, *shape: int) -> np.ndarray:
        return rng.normal(0, math.sqrt(variance), (studies, *shape))

    n = variances.cases
    return (
        draw(shared / (1 - shared) * variances.of_fold_mean(seeds, n), 1, 1, 1)
        + draw(variances.fold, folds, 1, 1)
        + draw(variances.run, folds, seeds, 1)
        + draw(variances.case, folds, 1, n)
        + draw(variances.residual, folds, seeds, n)
    )


def decisions(
    differences: np.ndarray, weights: np.ndarray, family: int = 1
) -> dict[str, np.ndarray]:
    """What each procedure says of each of (studies, folds, seeds, cases): True for "different", or
    "equivalent" under `EQUIVALENT`.

    `weights` are those of `mvl.evidence.resampling.resample_weights`. A procedure that needs
    several runs or folds is left out where there is one.
    """
    studies, folds, seeds, _ = differences.shape
    flat = differences.reshape(studies, -1)
    runs = differences.mean(-1).reshape(studies, -1)
    means = differences.mean((2, 3))
    low, high = np.quantile(weights @ flat.T, [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    out = {
        ONE: _wilcoxon(differences[:, 0, 0]),
        POOLED: _wilcoxon(flat),
        INTERVAL: (low > 0) | (high < 0),
    }
    if folds * seeds > 1:
        out[PLAIN] = _two_sided(runs, 0.0) < LEVEL
    if folds > 1:
        p = _two_sided(means, TEST_OVER_TRAIN)
        p_same = _one_sided(MARGIN - abs(means.mean(1)), means)
        out |= {CORRECTED: p < LEVEL, SAME: p_same < LEVEL}
    if folds < MIN_FOLDS:
        return out | dict.fromkeys((RULE, FAMILY, RULE_SAME), np.zeros(studies, dtype=bool))
    said = {
        name: decision.words(low, high, p * size, p_same)
        for name, size in ((RULE, 1), (FAMILY, family))
    }
    out[RULE_SAME] = said[RULE] == decision.EQUIVALENT
    return out | {
        name: np.isin(word, (decision.HIGHER, decision.LOWER)) for name, word in said.items()
    }


def _wilcoxon(values: np.ndarray) -> np.ndarray:
    return scipy_stats.wilcoxon(values, axis=1, method="asymptotic").pvalue < LEVEL


def _two_sided(units: np.ndarray, test_over_train: float) -> np.ndarray:
    return 2 * _one_sided(abs(units.mean(1)), units, test_over_train)


def _one_sided(
    distance: np.ndarray, units: np.ndarray, test_over_train: float = TEST_OVER_TRAIN
) -> np.ndarray:
    """Upper-tail p (studies,) of a distance at the standard error of the mean over units (studies,
    units)."""
    count = units.shape[1]
    error = units.std(1, ddof=1) * decision.error_factor(count, test_over_train)
    return scipy_stats.t.sf(distance / error, count - 1)


def rates(
    variances: Components,
    folds: int,
    seeds: int,
    family: int = 1,
    studies: int = STUDIES,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Share of simulated studies in which each procedure says its word: nothing there with folds
    independent and correlated, one point there.

    Rows: procedures. Columns: independent, correlated, one_point (correlated).
    """
    rng = np.random.default_rng(SEED)
    weights = resample_weights([(seeds, variances.cases)] * folds, resamples, rng)
    independent, correlated = (
        simulate(variances, folds, seeds, rng, studies, shared) for shared in (0.0, CORRELATION)
    )
    truths = {
        "independent": independent,
        "correlated": correlated,
        "one_point": correlated + MARGIN,
    }
    said = {name: decisions(d, weights, family) for name, d in truths.items()}
    return pd.DataFrame(
        {name: {p: float(v.mean()) for p, v in word.items()} for name, word in said.items()}
    )


def recorded(chapter: Chapter) -> dict[str, Pairs]:
    """The pairs of runs of each of the chapter's contrasts, Dice on all the data, by its words;
    those without any are left out."""
    out = {}
    for (system, reference), task in itertools.product(chapter.contrasts, chapter.tasks):
        words = f"{title(system)} minus {title(reference)}" + (
            f", {task}" if len(chapter.tasks) > 1 else ""
        )
        planned = planned_pairs(chapter.plan, TOPICS[chapter.topic], system, reference, task, 1.0)
        with contextlib.suppress(run_pairs.StatsError):
            out[words] = run_pairs.pair(chapter.cases, system, reference, task, planned=planned)
    return out


def designs(plan: Study) -> dict[tuple[int, int], list[str]]:
    """(folds, seeds) of the study's blocks, largest first, with the blocks' names."""
    out: dict[tuple[int, int], list[str]] = {}
    for block in plan.grid:
        out.setdefault((len(block.get("folds", [0])), len(block.get("seeds", [0]))), []).append(
            str(block["name"])
        )
    return dict(sorted(out.items(), reverse=True))


def shared_training(task: str, fraction: float, folds: Sequence[int]) -> float | None:
    """Mean share of a fold's training cases that another of the folds trains on too; None without a
    committed split or a second fold."""
    from mvl.datasets.splits import read_split, select

    path = ROOT / "data" / "splits" / f"{task}.json"
    if not path.is_file() or len(folds) < 2:
        return None
    trained = [set(select(read_split(path), fold, fraction, path).train) for fold in folds]
    return float(np.mean([len(a & b) / len(a) for a, b in itertools.permutations(trained, 2)]))
