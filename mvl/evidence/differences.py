"""Differences between arms over the same cases, with intervals and tests."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.evidence import run_pairs, stats
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter, covered, open_chapter, planned_pairs
from mvl.evidence.topics import TOPICS

OVERLAPS = {"jaccard": "IoU", "dice": "F1"}
"What a chapter that shows both calls them; where Dice stands alone it is called Dice."


def differences(chapter: Chapter) -> pd.DataFrame:
    """Paired differences of the topic's metrics for the chapter's contrasts:
    `mvl.evidence.stats.table` with the comparison in words.

    A contrast that cannot be taken keeps its row. The rows of one metric are the family of
    `p_holm`, holes included; `planned` counts the pairs of runs in the study's grid.
    """
    spec = TOPICS[chapter.topic]
    rows = [
        _difference(chapter, *pair, task, fraction, metric)
        for metric, pair, fraction, task in itertools.product(
            spec.metrics, chapter.contrasts, spec.compared or spec.fractions, chapter.tasks
        )
    ]
    table = stats.table(rows)

    words = []
    for row in table.itertuples():
        what = f"{OVERLAPS[row.metric]}: " if len(spec.metrics) > 1 else ""
        share = f"\nat {row.fraction:.0%} of the data" if len(spec.fractions) > 1 else ""
        words.append(f"{what}{minus(row.system, row.reference)}{share}")
    return table.assign(comparison=words)


def minus(system: str, reference: str) -> str:
    """`<system>` over `minus <reference>` in words; what both titles end with, after a comma, is
    said once."""
    parts = [title(name).split(", ") for name in (system, reference)]
    both = len(
        list(
            itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(reversed(parts[0][1:]), reversed(parts[1][1:]))
            )
        )
    )
    first, second = (", ".join(part[: len(part) - both]) for part in parts)
    return f"{first}\nminus {second}" + (f" ({', '.join(parts[0][-both:])})" if both else "")


def all_differences(study: str, results_dir: str | Path) -> pd.DataFrame:
    """`differences` of every chapter that the study covers, with its question in words as
    `question`; nothing is trained."""
    chapters = [
        open_chapter(topic, study, results_dir)
        for topic in covered(study)
        if TOPICS[topic].contrasts
    ]
    found = [
        differences(chapter).assign(question=TOPICS[chapter.topic].question) for chapter in chapters
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _difference(
    chapter: Chapter, system: str, reference: str, task: str, fraction: float, metric: str
) -> dict[str, Any]:
    planned = planned_pairs(chapter.plan, TOPICS[chapter.topic], system, reference, task, fraction)
    contrast = (system, reference, task, fraction, metric)
    try:
        if not planned:
            raise run_pairs.StatsError(f"not planned in the study `{chapter.study}`")
        return stats.row(stats.compare(chapter.cases, *contrast, planned=planned))
    except run_pairs.StatsError as error:
        # the row is named already, by the arms' titles
        unpaired = isinstance(error, run_pairs.NoPairs)
        why = "the two arms share no finished (fold, seed)" if unpaired else str(error)
        return stats.hole(*contrast, len(planned), why)
