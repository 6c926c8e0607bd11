"""A line is a run; arms can be switched, and what is shown is the Dice or its difference to the
reference's run of the same fold and seed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvl.core import run_folder
from mvl.evidence.chapter import open_chapter
from mvl.publish import charts_curves
from tests.publish.test_charts import facts, schema_faults


@pytest.fixture(scope="module")
def chapter():
    return open_chapter("llm_hybrid", "hippocampus", run_folder.records_dir())


@pytest.fixture(scope="module")
def chart(chapter):
    return facts(charts_curves.curves(chapter))


def run_of(chart, measure, place):
    (row,) = [
        row
        for row in chart["rows"]
        if row["measure"] == measure and row["href"].endswith(f"#Task04_Hippocampus-{place}")
    ]
    return row


def history(chapter, system):
    rows = chapter.history
    own = rows[(rows["system"] == system) & (rows["fold"] == 3) & (rows["seed"] == 1)]
    return own.sort_values("epoch")["val_dice"].tolist()


def test_a_line_is_a_run_and_leads_to_it(chapter, chart):
    row = run_of(chart, "dice", "medvisionllama_v3-1-fold-3_seed-1")
    values = history(chapter, "medvisionllama_v3")
    assert row["value"] == [round(value, 4) for value in values]
    assert row["epoch"] == list(range(1, len(values) + 1))
    enlarged = run_of(chart, "late", "medvisionllama_v3-1-fold-3_seed-1")["value"]
    assert enlarged == row["value"][-len(enlarged) :], "an enlargement is not rounded further"
    says = chart["texts"][row["says"]]
    best = max(values)
    assert says.startswith("MedVisionLlama v3, fold 3, seed 1")
    assert f"Epoch {values.index(best) + 1} is kept: validation Dice {best:.3f}" in says


def test_the_difference_is_to_the_same_fold_and_seed_in_points(chapter, chart):
    row = run_of(chart, "gain", "medvisionllama_v3-1-fold-3_seed-1")
    ours, theirs = history(chapter, "medvisionllama_v3"), history(chapter, "vit_baseline")
    expected = [round(100 * (a - b), 2) for a, b in zip(ours, theirs)]
    assert row["value"] == expected[-len(row["value"]) :] and len(row["value"]) == 10
    assert not any(r["arm"] == "vit_baseline" for r in chart["rows"] if r["measure"] == "gain")


def test_arms_are_told_by_dash_too_and_all_on_at_first(chart):
    arms, measures = chart["switches"]
    dashes = {tuple(choice["dash"]) for choice in arms["choices"]}
    assert len(dashes) == len(arms["choices"]) == 4
    assert all(choice["on"] for choice in arms["choices"])
    assert measures["one"] and [choice["on"] for choice in measures["choices"]].count(True) == 1


def test_without_a_history_there_is_no_chart(chapter):
    assert charts_curves.curves(replace(chapter, history=chapter.history.iloc[:0])) == ""


def test_the_specification_is_vega_lites(chapter):
    assert schema_faults(charts_curves.curves(chapter)) == []
