"""The page on how often each procedure errs: what single runs say, variances and rates in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from scipy import stats as scipy_stats

from mvl.core.markdown import markdown_table
from mvl.evidence.arms import caveat
from mvl.evidence.calibration import (
    DIFFERENT,
    EQUIVALENT,
    FAMILY,
    ONE,
    RULE,
    RULE_SAME,
    STUDIES,
    Components,
    components,
    designs,
    pool,
    rates,
    recorded,
    shared_training,
)
from mvl.evidence.chapter import Chapter
from mvl.evidence.decision import LEVEL, MARGIN, MIN_FOLDS
from mvl.evidence.run_pairs import Pairs


def page(chapter: Chapter) -> str:
    """Markdown: what single runs would say, the variances of a chapter's runs, each procedure's
    rates at them, or what is missing for that."""
    pairs = recorded(chapter)
    found = {words: c for words, p in pairs.items() if (c := components(p))}
    variances, missing = pool(list(found.values())), "; ".join(chapter.holes)
    data = f" ({caveat(chapter.tasks)})" if chapter.smoke else ""
    parts = [
        f"### Study `{chapter.study}`",
        f"{', '.join(chapter.tasks)}{data}.{_overlaps(chapter)}",
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
    rows = []
    for words, p in pairs.items():
        called = [
            d.mean() for d in p.differences if d.any() and scipy_stats.wilcoxon(d).pvalue < LEVEL
        ]
        higher = sum(mean > 0 for mean in called)
        n = len(p.units)
        rows.append((words, n, higher, len(called) - higher, n - len(called)))
    head = "difference | pairs of runs | higher | lower | neither"
    return (
        "The papers' way, on these records: what a Wilcoxon test over the cases of each pair of"
        f" runs alone says at 5 %.\n\n{markdown_table(head, 'lrrrr', rows)}"
    )


def tests_table(differences: pd.DataFrame) -> str:
    """Markdown: every planned contrast with its tests and verdict
    (`mvl.evidence.differences.all_differences`); a hole keeps its row."""
    head = (
        "question | difference | pairs of runs | points (95 % interval) | p | p, Holm |"
        " p, equivalence | Cohen's dz | Wilcoxon, one run | verdict"
    )
    rows = [_test_cells(row) for row in differences[differences["planned"] > 0].to_dict("records")]
    return markdown_table(head, "llrrrrrrrl", rows)


def _test_cells(row: dict[Any, Any]) -> list[str]:
    from mvl.evidence.decision import verdict

    def number(key: str, shape: str = ".2g") -> str:
        return "–" if pd.isna(row[key]) else f"{row[key]:{shape}}"

    points, word = "–", ""
    if not row["hole"]:
        mid, low, high = (f"{100 * row[key]:+z.2f}" for key in ("difference", "low", "high"))
        points = f"{mid} ({low} to {high})"
        word = verdict(row, "IoU" if row["metric"] == "jaccard" else "Dice")
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
    rows = []
    for words, c in {**found, "**pooled, used below**": variances}.items():
        numbers = [f"{100 * math.sqrt(v):.2f}" for v in (c.fold, c.run, c.case, c.residual)]
        rows.append([words, *numbers, f"{c.folds} x {c.seeds}"])
    table = markdown_table(
        "difference | fold | run in fold | case | case by seed | folds x seeds", "lrrrrr", rows
    )
    return f"Standard deviation of a difference of Dice by source, in Dice points:\n\n{table}"


def rate_tables(
    results: dict[tuple[int, int], pd.DataFrame], blocks: dict[tuple[int, int], list[str]]
) -> str:
    """Markdown: the share of studies of each design in which each procedure says "different", or
    "equivalent"."""
    head = [f"{folds} x {seeds}: {', '.join(blocks[folds, seeds])}" for folds, seeds in results]
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
        rows = [[name, *(_cell(f, name, columns) for f in results.values())] for name in names]
        table = markdown_table(["procedure", *head], "l" + "r" * len(head), rows)
        parts.append(f"{words}\n\n{table}")
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
