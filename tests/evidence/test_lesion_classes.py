"""Scores by class: the class is read from the case's name, empty masks are counted apart, and
nothing is averaged over both."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mvl.evidence import lesion_classes
from mvl.evidence.chapter import Chapter
from mvl.evidence.topics import CNN, LLM4SEG
from mvl.publish import figures_cases

CASES = (
    ("benign_001", "ok", 0.6, 0.75),
    ("benign_002", "missed", 0.0, 0.0),
    ("malignant_003", "ok", 0.5, 2 / 3),
    ("normal_001", "true_negative", 1.0, 1.0),
    ("normal_002", "false_positive", 0.0, 0.0),
)


def chapter(cases: tuple[tuple[str, str, float, float], ...] = CASES) -> Chapter:
    run = {"study": "busi", "task": "BUSI", "fraction": 1.0, "fold": 0, "seed": 0}
    rows = [
        run | {"system": s, "case": c, "status": status, "jaccard": j, "dice": d}
        for s in (CNN, LLM4SEG)
        for c, status, j, d in cases
    ]
    done = pd.DataFrame([{"system": s, "state": "done"} for s in (CNN, LLM4SEG)])
    return Chapter(
        "llm4seg", "busi", Path("data/runs"), done, pd.DataFrame(rows), pd.DataFrame(), ()
    )


def test_the_class_is_in_the_name_or_in_the_label() -> None:
    kinds = (
        lesion_classes.with_class(chapter().cases).drop_duplicates("case").set_index("case")["kind"]
    )
    assert kinds.tolist() == ["benign", "benign", "malignant", "normal", "normal"]
    other = lesion_classes.with_class(
        pd.DataFrame({"case": ["shape_001", "x"], "status": ["missed", "true_negative"]})
    )
    assert other["kind"].tolist() == ["lesion", "no lesion"]


def test_the_table_tells_empty_masks_apart() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lesion_classes.class_table(chapter()).splitlines()[2:12]
    ]
    table = {(row[0], row[1]): row[2:] for row in rows}
    first = {
        kind: table[kind, "CMUNeXt"]
        for kind in ("benign", "malignant", "normal", "with a lesion", "all")
    }
    assert first["benign"] == ["2", "0.300", "0.375", "1", "", ""]
    assert first["normal"] == ["2", "0.500", "0.500", "", "1", "1"]
    assert first["with a lesion"][:2] == ["3", f"{(0.6 + 0.5) / 3:.3f}"] and first["with a lesion"][
        3:
    ] == ["1", "", ""]
    assert first["all"] == ["5", "0.420", f"{(0.75 + 2 / 3 + 1) / 5:.3f}", "1", "1", "1"]


def test_pictures_without_a_lesion_can_be_left_out() -> None:
    lesions = lesion_classes.with_lesion(chapter())
    assert sorted(lesions.cases["case"].unique()) == ["benign_001", "benign_002", "malignant_003"]
    assert lesions.cases["jaccard"].mean() == pytest.approx(1.1 / 3)


def test_nothing_recorded_is_said_and_drawn() -> None:
    empty = Chapter(
        "llm4seg",
        "busi",
        Path("data/runs"),
        pd.DataFrame(),
        chapter().cases.iloc[:0],
        pd.DataFrame(),
        ("LLM4Seg: 1 run",),
    )
    assert "No test picture is recorded" in lesion_classes.class_table(empty)
    figures_cases.overlap_by_class(lesion_classes.with_class(empty.cases), empty.holes)
    assert lesion_classes.with_lesion(empty).cases.empty
