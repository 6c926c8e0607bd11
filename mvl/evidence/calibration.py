"""How often each procedure errs: variance components of the recorded differences, and studies
simulated at them, with the truth known."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from mvl.core.config import ROOT
from mvl.evidence import decision, stats
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter, planned_pairs
from mvl.evidence.decision import LEVEL, MARGIN, MIN_FOLDS, TEST_OVER_TRAIN
from mvl.evidence.resampling import resample_weights
from mvl.evidence.stats import Pairs
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
    of_fold = (
        variances.fold
        + variances.run / seeds
        + variances.case / n
        + variances.residual / (n * seeds)
    )
    return (
        draw(shared / (1 - shared) * of_fold, 1, 1, 1)
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
    if folds == 1:
        return out | dict.fromkeys((RULE, FAMILY, RULE_SAME), np.zeros(studies, dtype=bool))
    p, p_same = _two_sided(means, TEST_OVER_TRAIN), _one_sided(MARGIN - abs(means.mean(1)), means)
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
    return scipy_stats.t.sf(
        distance / (units.std(1, ddof=1) * math.sqrt(1 / count + test_over_train)), count - 1
    )


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
        with contextlib.suppress(stats.StatsError):
            out[words] = stats.pair(chapter.cases, system, reference, task, planned=planned)
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


def page(chapter: Chapter) -> str:
    """Markdown: what single runs would say, the variances of a chapter's runs, each procedure's
    rates at them, or what is missing for that."""
    pairs = recorded(chapter)
    found = {words: c for words, p in pairs.items() if (c := components(p))}
    variances, missing = pool(list(found.values())), "; ".join(chapter.holes)
    data = (
        "Phantom data: "
        if chapter.smoke and "phantoms" in chapter.tasks
        else "Generated data: "
        if chapter.smoke
        else ""
    )
    parts = [
        f"### Study `{chapter.study}`",
        f"{data}{', '.join(chapter.tasks)}.{_overlaps(chapter)}",
    ]
    parts += [
        f"*Not yet recorded: {missing}. What follows is from the runs that are there.*"
    ] * bool(missing)
    parts += [single_runs(pairs)] * bool(pairs)
    if (
        variances is None
        or not variances.fold + variances.run + variances.case + variances.residual
    ):
        return "\n\n".join(
            [
                *parts,
                (
                    "No two arms of this chapter have two pairs of finished runs in common whose"
                    " difference varies: what varies between runs is not known, and nothing is"
                    " simulated."
                ),
            ]
        )
    parts += [variance_table(found, variances), *[f"*{variances.lumped}*"] * bool(variances.lumped)]
    family, blocks = max(1, len(chapter.contrasts) * len(chapter.tasks)), designs(chapter.plan)
    results = {design: rates(variances, *design, family) for design in blocks}
    return "\n\n".join([*parts, rate_tables(results, blocks), sentence(variances, results, family)])


def single_runs(pairs: dict[str, Pairs]) -> str:
    """Markdown: what a Wilcoxon test over the cases of each pair of runs alone says, counted."""
    lines = [
        "| difference | pairs of runs | higher | lower | neither |",
        "|---|---:|---:|---:|---:|",
    ]
    for words, p in pairs.items():
        called = [
            d.mean() for d in p.differences if d.any() and scipy_stats.wilcoxon(d).pvalue < LEVEL
        ]
        higher = sum(mean > 0 for mean in called)
        lines.append(
            f"| {words} | {len(p.units)} | {higher} | {len(called) - higher} |"
            f" {len(p.units) - len(called)} |"
        )
    return (
        "The papers' way, on these records: what a Wilcoxon test over the cases of each pair of"
        " runs alone says at 5 %.\n\n" + "\n".join(lines)
    )


def tests_table(differences: pd.DataFrame) -> str:
    """Markdown: every planned contrast with its tests and verdict
    (`mvl.evidence.differences.all_differences`); a hole keeps its row."""
    head = (
        "question",
        "difference",
        "pairs of runs",
        "points (95 % interval)",
        "p",
        "p, Holm",
        "p, equivalence",
        "Cohen's dz",
        "Wilcoxon, one run",
        "verdict",
    )
    rows = [_test_cells(row) for row in differences[differences["planned"] > 0].to_dict("records")]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (head, ("---", "---", *["---:"] * 7, "---"), *rows)
    )


def _test_cells(row: dict[Any, Any]) -> list[str]:
    from mvl.evidence.decision import verdict

    def number(key: str, shape: str = ".2g") -> str:
        return "–" if pd.isna(row[key]) else f"{row[key]:{shape}}"

    points = (
        "–"
        if row["hole"]
        else (
            f"{100 * row['difference']:+z.2f} ({100 * row['low']:+z.2f} to"
            f" {100 * row['high']:+z.2f})"
        )
    )
    word = "" if row["hole"] else verdict(row, "IoU" if row["metric"] == "jaccard" else "Dice")
    return [
        row["question"],
        " ".join(row["comparison"].split("\n")),
        f"{row['n_runs']} of {row['planned']}",
        points,
        *map(number, ("p_t", "p_holm", "p_equivalence")),
        number("dz", "+z.2f"),
        number("p_wilcoxon"),
        word or "not yet recorded",
    ]


def _overlaps(chapter: Chapter) -> str:
    """` Two folds have ... of their training cases in common ...` by share of the data; nothing
    where there is one fold."""
    blocks = chapter.plan.grid
    folds = sorted({fold for block in blocks for fold in block.get("folds", [0])})
    fractions = sorted(
        {float(share) for block in blocks for share in block.get("fractions", [1.0])}, reverse=True
    )
    shares = {f: shared_training(chapter.tasks[0], f, folds) for f in fractions}
    words = [
        f"{share:.0%} with {f:.0%} of the data" for f, share in shares.items() if share is not None
    ]
    return (
        f" Of a fold's training cases another fold trains, on average, on {', '.join(words)}."
        if words
        else ""
    )


def variance_table(found: dict[str, Components], variances: Components) -> str:
    """Markdown: standard deviation of each component in Dice points, by contrast and pooled."""
    lines = [
        "| difference | fold | run in fold | case | case by seed | folds x seeds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for words, c in {**found, "**pooled, used below**": variances}.items():
        numbers = [100 * math.sqrt(v) for v in (c.fold, c.run, c.case, c.residual)]
        lines.append(
            f"| {words} | {' | '.join(f'{n:.2f}' for n in numbers)} | {c.folds} x {c.seeds} |"
        )
    return "Standard deviation of a difference of Dice by source, in Dice points:\n\n" + "\n".join(
        lines
    )


def rate_tables(
    results: dict[tuple[int, int], pd.DataFrame], blocks: dict[tuple[int, int], list[str]]
) -> str:
    """Markdown: the share of studies of each design in which each procedure says "different", or
    "equivalent"."""
    head = [f"{folds} x {seeds}: {', '.join(blocks[folds, seeds])}" for folds, seeds in results]
    top = f"| procedure | {' | '.join(head)} |\n|---|{'---:|' * len(head)}"
    told = (
        (
            (
                'Says "different" where there is **no difference**; folds independent / correlated'
                " as the test assumes:"
            ),
            DIFFERENT,
            ("independent", "correlated"),
        ),
        (
            (
                f'Says "different" where the difference is **{100 * MARGIN:g} point** (folds'
                " correlated):"
            ),
            DIFFERENT,
            ("one_point",),
        ),
        (
            (
                'Says "equivalent" where there is no difference / where it is exactly'
                f" {100 * MARGIN:g} point (folds correlated):"
            ),
            EQUIVALENT,
            ("correlated", "one_point"),
        ),
    )
    parts = [
        f"Columns: folds x seeds, and the blocks of the study that have them; {STUDIES} simulated"
        " studies each. A dash: it cannot be taken."
    ]
    for words, names, columns in told:
        lines = [
            f"| {name} | {' | '.join(_cell(found, name, columns) for found in results.values())} |"
            for name in names
        ]
        parts.append("\n".join([words, "", top, *lines]))
    return "\n\n".join(parts)


def _cell(found: pd.DataFrame, name: str, columns: Sequence[str]) -> str:
    return (
        " / ".join(f"{found.loc[name, column]:.1%}" for column in columns)
        if name in found.index
        else "–"
    )


def sentence(
    variances: Components, results: dict[tuple[int, int], pd.DataFrame], family: int
) -> str:
    """What the tables come to, in words; the rates are those with folds correlated."""
    folds, seeds = largest = max(results)

    def rate(name: str, column: str) -> str:
        return f"{results[largest].loc[name, column]:.0%}"

    words = (
        f"In words: at these variances a Wilcoxon test over the {variances.cases} cases of one run,"
        f" as the papers would do it, finds a difference in **{rate(ONE, 'correlated')}** of"
        f" studies that have none ({rate(ONE, 'independent')} with independent folds). "
    )
    if folds < MIN_FOLDS:
        return words + f"With fewer than {MIN_FOLDS} folds our rule decides nothing."
    return (
        words + f"Over {folds} folds and {seeds} seed{'s' * (seeds > 1)} our rule does so in"
        f" **{rate(RULE, 'correlated')}**, and sees a true difference of one point in"
        f" {rate(RULE, 'one_point')} ({rate(FAMILY, 'one_point')} at the hardest step of Holm in"
        f" a family of {family}). It calls two arms that differ by exactly one point equivalent"
        f" in {rate(RULE_SAME, 'one_point')}, and two that do not differ in"
        f" {rate(RULE_SAME, 'correlated')}."
    )
