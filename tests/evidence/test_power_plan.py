"""The plan's power: which contrasts a study has, where variances come from, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from mvl.cli import main as main_module
from mvl.core import run_folder
from mvl.core.config import ConfigError
from mvl.core.errors import USAGE
from mvl.evidence import power, power_plan, run_pairs, second_study
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, RANDOM, VIT

RECORDS = run_folder.records_dir()


def found(value: dict, system: str, reference: str, **more: object) -> list[dict]:
    """Return the rows of one difference."""
    wanted = {"system": system, "reference": reference, **more}
    return [row for row in value["rows"] if all(row[key] == fact for key, fact in wanted.items())]


def test_contrasts_are_the_chapters_with_their_families():
    plan = power_plan.contrasts("hippocampus")
    main = [c for c in plan if (c.system, c.reference, c.fraction) == (HYBRID, VIT, 1.0)]
    assert [(c.family, len(c.units)) for c in main] == [(5, 10)]
    few = [c for c in plan if (c.system, c.reference, c.fraction) == (HYBRID, VIT, 0.1)]
    assert [(c.family, len(c.units)) for c in few] == [(6, 5)]
    assert {c.metric for c in power_plan.contrasts("busi")} == {"dice", "jaccard"}


def test_a_family_is_as_large_as_the_one_that_the_tests_adjust():
    from mvl.evidence import differences

    table = differences.all_differences("busi", RECORDS)
    planned = table[(table["planned"] > 0) & (table["metric"] == "jaccard")]
    sizes = {c.family for c in power_plan.contrasts("busi") if c.metric == "jaccard"}
    assert sizes <= set(planned.groupby("question").size())


def test_arms_of_no_chapter_stand_against_the_baseline():
    plan = power_plan.contrasts("audit")
    arms = {c.system for c in plan}
    assert len(arms) == 6 and {c.reference for c in plan} == {"audit_loss"}


def test_against_compares_every_arm_with_one():
    plan = power_plan.contrasts("hippocampus", f"{HYBRID}_shuffled")
    assert {c.reference for c in plan} == {f"{HYBRID}_shuffled"}
    assert {VIT, HYBRID, RANDOM} <= {c.system for c in plan}
    assert {c.family for c in plan} == {len(plan)}
    assert all({fold for fold, _ in c.units} <= {0, 1, 2} for c in plan)
    with pytest.raises(ConfigError, match="no arm 'nothing'"):
        power_plan.contrasts("hippocampus", "nothing")


def test_variances_are_those_of_the_records():
    value = power_plan.power_plan("hippocampus", designs=["5x1"], families=[1, 3])
    (row,) = found(value, HYBRID, VIT, fraction=0.1)
    cases = pd.read_csv(RECORDS / "hippocampus" / "cases.csv")
    pairs = run_pairs.pair(cases, HYBRID, VIT, "Task04_Hippocampus", 0.1)
    # one seed: what varies between folds is the fold's own share and the cases', together
    assert row["sd"] == pytest.approx(100 * pairs.fold_means.std(ddof=1))
    assert row["sd_upper"] == pytest.approx(row["sd"] * power.upper_factor(5))
    assert row["detectable"]["3"] == pytest.approx(100 * power.detectable(row["sd"] / 100, 5, 3))
    assert row["equivalence"] == pytest.approx(power.power_of_equivalence(row["sd"] / 100, 5))
    assert row["at_upper"] < row["equivalence"]


def test_one_point_cannot_be_decided_on_breast_ultrasound():
    value = power_plan.power_plan("busi", designs=["10x3"])
    rows = found(value, LLM4SEG, CNN)
    assert len(rows) == 2 and all(row["equivalence"] < 0.05 for row in rows)


def test_another_studys_records_stand_in_for_the_same_arms():
    value = power_plan.power_plan("paper", ["hippocampus"], designs=["5x1"])
    row = found(value, HYBRID, VIT, fraction=1.0)[0]
    assert row["source"] == "hippocampus" and (row["measured_folds"], row["measured_seeds"]) == (
        5,
        2,
    )
    assert {row["source"] for row in power_plan.power_plan("paper")["rows"]} == {"not measured"}


def test_an_assumed_sd_fills_only_what_is_not_measured():
    value = power_plan.power_plan("hippocampus", sd=0.5)
    (missing,) = found(value, "unetpp", VIT)
    assert (missing["source"], missing["sd"]) == ("assumed", 0.5)
    (there,) = found(value, HYBRID, VIT, fraction=1.0)
    assert there["source"] == "hippocampus" and there["sd"] != 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"designs": ["5"]}, "'5' is no design"),
        ({"designs": ["11x1"]}, "'11x1' is no design"),
        ({"designs": ["3x0"]}, "'3x0' is no design"),
        ({"sd": 0.0}, "--sd must be positive"),
        ({"sources": ["hipocampus"]}, "hippocampus"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        power_plan.power_plan("hippocampus", **words)


def test_the_command_prints_a_table_and_json(capsys):
    words = ["plan", "busi", "--power", "--designs", "3x1", "1x1"]
    assert main_module.main(words) == 0
    text = capsys.readouterr().out
    assert "llm4seg - cmunext jaccard" in text and "one fold: nothing is tested" in text
    assert main_module.main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["largest_sd_for_equivalence"]["3"] == pytest.approx(0.3145, abs=1e-4)
    assert value["largest_sd_for_equivalence"]["1"] is None
    (row,) = found(value, LLM4SEG, CNN, metric="jaccard", folds=3)
    line = next(line for line in text.splitlines() if line.startswith("llm4seg - cmunext jaccard"))
    assert f"{row['sd']:.2f}" in line and f"{row['detectable']['1']:.2f}" in line


def test_options_of_power_without_it_are_wrong_usage(capsys):
    assert main_module.main(["plan", "busi", "--sd", "1"]) == USAGE
    assert "--sd belongs to --power" in capsys.readouterr().err


@pytest.mark.parametrize("study", second_study.STUDIES)
def test_every_study_of_the_protocol_has_an_answer_for_each_contrast(study: str) -> None:
    rows = power_plan.power_plan(study)["rows"]
    assert rows and all(row["sd"] > 0 and row["detectable"]["1"] > 0 for row in rows)
    for row in rows:
        assert row["family"] in (1, 2, 3)
        assert row["detectable"][str(row["family"])] >= row["detectable"]["1"]


def test_the_protocols_families_are_those_that_its_page_adjusts() -> None:
    asked = {
        (q.study, pair, len(q.contrasts)) for q in second_study.QUESTIONS for pair in q.contrasts
    }
    planned = {
        (study, (c.system, c.reference), c.family)
        for study in second_study.STUDIES
        for c in power_plan.contrasts(study)
    }
    assert asked <= planned


def test_designs_are_the_protocols() -> None:
    """Folds and seeds of row 1, row 3 and row 5 (book/protocol_2.md)."""
    shapes = {
        (study, row["system"], row["reference"], row["fraction"]): (row["folds"], row["seeds"])
        for study in ("hippocampus2_published", "isic", "kvasir")
        for row in power_plan.power_plan(study)["rows"]
    }
    published = ("hippocampus2_published", HYBRID)
    assert shapes[*published, VIT, 1.0] == shapes[*published, VIT, 0.1] == (5, 2)
    assert shapes[*published, f"{HYBRID}_identity", 1.0] == (5, 1)
    for study in ("isic", "kvasir"):
        assert shapes[study, LLM4SEG, CNN, 1.0] == (5, 1)
        assert shapes[study, LLM4SEG, f"{LLM4SEG}_transformer", 1.0] == (3, 1)


def test_pictures_have_the_protocols_own_margin(tmp_path: Path) -> None:
    value = power_plan.power_plan("kvasir", sd=0.1, results_dir=tmp_path)
    assert value["margin"] == pytest.approx(0.4) and EQUIVALENCE_POINTS == 1
    assert value["largest_sd_for_equivalence"]["5"] == pytest.approx(
        0.4 * 100 * power.largest_sd(5)
    )
    row = found(value, LLM4SEG, CNN)[0]
    assert row["metric"] == "jaccard"
    assert row["equivalence"] == pytest.approx(power.power_of_equivalence(0.001, 5, 0.004))


def test_a_contrast_without_records_says_whose_variances_it_takes(tmp_path: Path) -> None:
    (tmp_path / "busi").symlink_to(RECORDS / "busi")
    rows = power_plan.power_plan("kvasir", results_dir=tmp_path)["rows"]
    assert found({"rows": rows}, LLM4SEG, CNN)[0]["source"] == "busi"
    (other,) = found({"rows": rows}, LLM4SEG, f"{LLM4SEG}_shuffled")
    assert other["source"] == "busi: llm4seg - cmunext"
    assert other["sd"] == found({"rows": rows}, LLM4SEG, CNN)[0]["sd"]


def test_a_contrast_without_runs_takes_the_nearest_that_are_measured():
    (row,) = found(power_plan.power_plan("heart_published"), HYBRID, f"{HYBRID}_shuffled")
    assert row["source"] == f"heart_published: {HYBRID} - {VIT}"
    (row,) = found(power_plan.power_plan("heart_tuned"), HYBRID, VIT)
    assert row["source"] == "heart_published"
