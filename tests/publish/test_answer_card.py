"""The card under a chapter's title says each verdict once, from the runs."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence import differences, second_study
from mvl.evidence.chapter import Chapter, open_chapter
from mvl.evidence.topics import TOPICS
from mvl.publish import answer_card, second_study_answer

RECORDS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def hybrid() -> Chapter:
    return open_chapter("llm_hybrid", "hippocampus", RECORDS)


def test_it_has_a_line_for_each_verdict_with_the_first_difference(hybrid: Chapter) -> None:
    table = differences.differences(hybrid)
    text = answer_card.card(hybrid)
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    first = 100 * table.iloc[0]["difference"]
    assert len(lines) == 1 and lines[0].startswith("- **Equivalent within 1 Dice point**: ")
    assert f"**{first:+z.2f}**" in lines[0] and f"{len(table) - 1} more differences" in lines[0]
    rest = 100 * table["difference"].iloc[1:]
    assert lines[0].endswith(f"{rest.min():+z.2f} to {rest.max():+z.2f}")
    assert "Read with care" in text


def test_other_numbers_give_another_word_and_no_caution(
    hybrid: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = differences.differences(hybrid)
    higher = ["difference", "low", "high", "boot_low", "boot_high"]
    moved = table.assign(
        **{name: table[name] + 0.05 for name in higher}, p_holm=0.001, p_equivalence=1.0
    )
    monkeypatch.setattr(answer_card, "differences", lambda chapter: moved)
    text = answer_card.card(hybrid)
    assert "- **Higher**: " in text and "quivalent" not in text


def test_a_hole_is_counted_and_an_empty_chapter_says_so(
    hybrid: Chapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = differences.differences(hybrid)
    table.loc[0, "n_runs"] = 0
    monkeypatch.setattr(answer_card, "differences", lambda chapter: table)
    assert "- **Not yet recorded**: 1 difference\n" in answer_card.card(hybrid)
    nothing = Chapter(
        hybrid.topic,
        hybrid.study,
        hybrid.results_dir,
        hybrid.runs.assign(state="missing"),
        hybrid.cases.iloc[:0],
        pd.DataFrame(),
        (),
    )
    assert "No run of this chapter" in answer_card.card(nothing)


def test_a_chapter_without_differences_gives_its_mean_or_its_claims() -> None:
    baseline = open_chapter("baseline", "hippocampus", RECORDS)
    assert f"{baseline.done['dice'].mean():.3f}" in answer_card.card(baseline)
    maps = open_chapter("qualitative", "hippocampus", RECORDS)
    text = answer_card.of_claims(maps, "08_qualitative")
    assert text.count("\n- ") == 3 and "Smoother masks: **" in text


def test_the_first_studys_chapter_says_what_the_second_study_found(hybrid: Chapter) -> None:
    said = answer_card.of_second_study(hybrid)
    assert second_study_answer.sentence(RECORDS, "../second_study.html") in said
    assert answer_card.of_second_study(replace(hybrid, study="quick")) == ""
    few = answer_card.of_second_study(open_chapter("few_shot", "hippocampus", RECORDS))
    line = "MedVisionLlama v3 minus ViT-Baseline **-0.87 [-1.36, -0.38] Dice points** (lower)"
    assert line in few
    assert few.count("\n- ") in (2, 4), "both questions of each regime that is complete"


def test_each_chapter_of_a_subject_has_one_of_its_own() -> None:
    subjects = {second_study_answer.subject_of(question) for question in second_study.FAMILIES}
    for topic, subject in answer_card.SUBJECTS.items():
        assert topic in TOPICS and any(each.startswith(subject) for each in subjects)
    assert len(set(answer_card.SUBJECTS.values())) == len(answer_card.SUBJECTS)
