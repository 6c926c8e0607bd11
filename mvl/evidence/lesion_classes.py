"""Scores by class of the picture: benign, malignant and normal, where nothing is to be found and an
empty mask is right."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd

from mvl.core.markdown import markdown_table
from mvl.evidence.arms import ordered, title
from mvl.evidence.chapter import Chapter

CLASS = re.compile(r"(benign|malignant|normal)_\d+$")
"Case ids that name their class (BUSI)."
EMPTY = ("true_negative", "false_positive")
"Statuses of a picture without a lesion: left empty, or marked."


def with_class(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases with their class as `kind`: read from the case id, else `lesion` or `no lesion` by
    their label."""
    named = cases["case"].astype(str).str.extract(CLASS, expand=False)
    other = cases["status"].map(lambda status: "no lesion" if status in EMPTY else "lesion")
    return cases.assign(kind=named.fillna(other) if len(cases) else pd.Series(dtype=str))


def with_lesion(chapter: Chapter) -> Chapter:
    """The chapter with only the test pictures that have a lesion."""
    return replace(
        chapter, cases=chapter.cases[~chapter.cases["status"].isin(EMPTY)].reset_index(drop=True)
    )


def class_table(chapter: Chapter) -> str:
    """Markdown table: IoU and F1 of each system by class, means over pictures and runs; an empty
    mask told apart."""
    if chapter.cases.empty:
        return f"No test picture is recorded in the study `{chapter.study}` yet."
    cases = with_class(chapter.cases)
    lesions = cases[~cases["status"].isin(EMPTY)]
    groups = [(kind, rows) for kind, rows in cases.groupby("kind")] + [
        ("with a lesion", lesions),
        ("all", cases),
    ]
    head = ["pictures", "system", "n", "IoU", "F1 (Dice)", "lesion missed"]
    head += ["left empty, rightly", "marked, wrongly"]
    table = [
        _row(str(kind), system, rows[rows["system"] == system])
        for kind, rows in groups
        for system in ordered(list(rows["system"]))
    ]
    runs = chapter.done.groupby("system").size().max()
    note = "n: case scores. " if runs > 1 else ""
    note += (
        "A picture without a lesion scores 1 when it is left empty and 0 when anything is marked:"
        " `all` mixes two questions."
    )
    return "\n".join([markdown_table(head, "llrrrrrr", table), "", note])


def _row(kind: str, system: str, rows: pd.DataFrame) -> list[str]:
    """One row of the table; a count that this kind of picture cannot have stays empty."""
    status = rows["status"]
    without = status.isin(EMPTY)

    cells = [f"{rows[m].mean():.3f}" for m in ("jaccard", "dice")]
    cells.append("" if without.all() else str((status == "missed").sum()))
    for word in EMPTY:
        cells.append(str((status == word).sum()) if without.any() else "")
    return [kind, title(system), str(len(rows)), *cells]
