"""A dot is a test case's paired difference; it says every arm's score, and leads to the viewer
where that has the case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvl.core import run_folder
from mvl.evidence.chapter import open_chapter
from mvl.evidence.example_masks import load_drawn
from mvl.publish import charts_cases
from tests.publish.test_charts import facts, schema_faults


@pytest.fixture(scope="module")
def chapter():
    return open_chapter("llm_hybrid", "hippocampus", run_folder.records_dir())


@pytest.fixture(scope="module")
def chart(chapter):
    return facts(charts_cases.case_dots(chapter))


def test_a_dot_is_the_mean_over_seeds_of_the_paired_difference(chapter, chart):
    cases = chapter.cases
    arm = "medvisionllama_v3_random"
    dots = [row for row in chart["rows"] if row["arm"] == arm]
    assert len(dots) == cases["case"].nunique()
    mean = cases[cases["system"] == arm]["dice"].mean()
    base = cases[cases["system"] == "vit_baseline"]["dice"].mean()
    gains = [dot["gain"] for dot in dots]
    assert sum(gains) / len(gains) == pytest.approx(100 * (mean - base), abs=1e-2)
    scores = [dot["score"] for dot in dots]
    assert scores == sorted(scores), "arrow keys walk from left to right"


def test_a_dot_says_the_score_of_each_arm(chapter, chart):
    one = chart["rows"][0]
    lines = chart["texts"][one["says"]].split("\n")
    name = lines[0].split(",")[0]
    own = chapter.cases[chapter.cases["case"] == name].groupby("system")["dice"].mean()
    for system, words in (
        ("vit_baseline", "ViT-Baseline"),
        ("medvisionllama_v3_mlp", "v3, matched MLP"),
    ):
        assert any(line.startswith(f"{words}: {own[system]:.3f}") for line in lines)


def test_a_click_leads_to_the_viewer_where_it_has_the_case_else_to_the_run(chapter, chart):
    shown = {one.case for one in load_drawn(chapter)[0]}
    led = {row["href"].split("#case=")[1] for row in chart["rows"] if row["href"].startswith("08_")}
    assert led == shown and len(shown) >= 3
    others = [row for row in chart["rows"] if not row.get("seen")]
    place = "../runs_hippocampus.html#Task04_Hippocampus-medvisionllama_v3-1-fold-"
    assert others[0]["href"].startswith(place)


def test_one_arm_is_shown_at_first(chart):
    (group,) = chart["switches"]
    assert group["one"] and [choice["on"] for choice in group["choices"]] == [True, False, False]


def test_without_runs_there_is_no_chart(chapter):
    assert charts_cases.case_dots(replace(chapter, cases=chapter.cases.iloc[:0])) == ""
    alone = chapter.cases[chapter.cases["system"] == "medvisionllama_v3"]
    assert charts_cases.case_dots(replace(chapter, cases=alone)) == ""
    base = chapter.cases[chapter.cases["system"] == "vit_baseline"]
    assert charts_cases.case_dots(replace(chapter, cases=base)) == ""


def test_the_specification_is_vega_lites(chapter):
    assert schema_faults(charts_cases.case_dots(chapter)) == []
