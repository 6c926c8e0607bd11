"""The page on how often each procedure errs: what it shows, and what it says is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mvl.evidence import calibration
from mvl.evidence.calibration import ONE, Components
from mvl.evidence.chapter import Chapter
from mvl.evidence.differences import differences
from mvl.evidence.topics import HYBRID, VIT
from mvl.publish import calibration_page

PLANTED = Components(
    fold=0.4e-4, run=0.1e-4, case=0.5e-4, residual=1e-4, folds=5, seeds=2, cases=12
)


@pytest.fixture
def chapter(tmp_path: Path) -> Chapter:
    """A study of two arms, three folds and two seeds on phantoms, all done."""
    plan = tmp_path / "own.yaml"
    plan.write_text(
        f"title: t\ntasks: [phantoms]\ngrid: [{{name: main, systems: [{VIT}, {HYBRID}], folds: [0,"
        " 1, 2], seeds: [0, 1]}]\ndata: {img_size: [24, 24, 24]}\nmodel: {patch_size: [4, 4,"
        " 4]}\n"
    )
    values = calibration.simulate(PLANTED, 3, 2, np.random.default_rng(3), 1)[0]
    rows = [
        {
            "task": "phantoms",
            "system": s,
            "fraction": 1.0,
            "fold": f,
            "seed": n,
            "case": f"{f}-{c}",
            "label": "foreground",
            "dice": 0.8 + (s == HYBRID) * values[f, n, c],
        }
        for s in (VIT, HYBRID)
        for f in range(3)
        for n in range(2)
        for c in range(12)
    ]
    empty = pd.DataFrame()
    return Chapter("llm_hybrid", str(plan), tmp_path, empty, pd.DataFrame(rows), empty, ())


def test_the_page_shows_variances_and_rates(chapter: Chapter) -> None:
    text = calibration_page.page(chapter)
    assert "phantom data" in text and "| 3 x 2: main |" in text and "3 x 2 |" in text
    assert "as the papers would do it" in text and f"| {ONE} |" in text
    assert "MedVisionLlama v3 minus ViT-Baseline | 6 |" in text and "Not yet recorded" not in text


def test_the_page_says_what_is_missing(chapter: Chapter) -> None:
    one = replace(
        chapter,
        cases=chapter.cases[(chapter.cases["fold"] == 0) & (chapter.cases["seed"] == 0)],
        holes=("ViT: 5 runs",),
    )
    text = calibration_page.page(one)
    assert (
        "Not yet recorded: ViT: 5 runs" in text
        and "nothing is simulated" in text
        and "one run, as the papers" not in text
    )
    none = calibration_page.page(replace(chapter, cases=chapter.cases.iloc[:0]))
    assert "nothing is simulated" in none


def test_the_table_of_tests_keeps_holes_and_gives_them_no_verdict(chapter: Chapter) -> None:
    whole = calibration_page.tests_table(differences(chapter).assign(question="q"))
    assert "| q | MedVisionLlama v3 minus ViT-Baseline | 6 of 6 |" in whole
    dropped = replace(
        chapter,
        cases=chapter.cases[~((chapter.cases["fold"] == 2) & (chapter.cases["system"] == VIT))],
    )
    text = calibration_page.tests_table(differences(dropped).assign(question="q"))
    assert "| 4 of 6 |" in text and "not decided, incomplete" in text
    empty = calibration_page.tests_table(
        differences(replace(chapter, cases=chapter.cases.iloc[:0])).assign(question="q")
    )
    assert "| 0 of 6 | – |" in empty and "not yet recorded" in empty
