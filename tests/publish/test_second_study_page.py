"""The second study's page: numbers by rule, holes named, one figure."""

import pandas as pd

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.publish import second_study_page

RECORDS = ROOT / "data" / "results"


def test_the_page_says_what_is_recorded_and_names_what_is_not(tmp_path):
    found = second_study_page.facts(RECORDS, tmp_path)["second"]
    assert found["figure"] and "<svg" in (tmp_path / second_study_page.FILE).read_text()
    assert "MedVisionLlama v3 minus ViT-Baseline, **-0.74 [-1.16, -0.32]" in found["answer"]
    assert "ViT-Baseline" not in found["use"]
    assert "(`hippocampus2_tuned`)" in found["progress"]


def test_nothing_recorded_says_so(tmp_path):
    found = second_study_page.facts(tmp_path, tmp_path)["second"]
    assert found["answer"].startswith("No contrast") and not found["figure"]
    assert found["sentence"] == found["bullets"] == ""


def test_the_positive_control_is_named_with_its_number(tmp_path):
    found = second_study_page.facts(RECORDS, tmp_path)["second"]
    assert found["control"].startswith("**The design sees a layer that matters.**")
    assert "+2.00 [+1.39, +2.61]" in found["control"]
    # what else the control's network says is printed with it
    assert "raise Dice there by +3.82 [+2.79, +4.85]" in found["control"]
    assert "loses 37.5 points" in found["control"] and "-0.32 [-1.08, +0.44]" in found["control"]
    assert "differs from the ViT alone by -0.03 points" in found["with_blocks"]
    assert second_study_page.facts(tmp_path, tmp_path)["second"]["control"] == ""


def test_the_gap_over_training_is_that_of_the_histories():
    study = second_study.PUBLISHED
    said = second_study_page.length_of_training([study], RECORDS)
    history = pd.read_csv(RECORDS / study / "history.csv")
    whole = history[history["fraction"] == 1.0]
    by_epoch = [
        whole[(whole["system"] == system)].groupby("epoch")["val_dice"].mean() * 100
        for system in (second_study.HYBRID, second_study.VIT)
    ]
    first, last = (by_epoch[0][epoch] - by_epoch[1][epoch] for epoch in (0, 19))
    late = [curve[19] - curve[14] for curve in by_epoch]
    assert f"lies {first:+.1f} points from" in said and f"{last:+.1f} after 20" in said
    assert f"the hybrid gains {late[0]:.2f}, the ViT {late[1]:.2f}" in said
    assert "with 10 % of the cases" in said and "after 80" in said
    assert second_study_page.length_of_training([], RECORDS) == ""


def test_what_was_asked_after_the_runs_is_described_and_named_as_such():
    said = second_study_page.described([second_study.UNMIXED, second_study.PUBLISHED], RECORDS)
    late = [line for line in said.splitlines() if ", asked after the runs: " in line]
    assert len(late) == 2 and "MedVisionLlama v3 minus ViT-Baseline, +1.92 [" in late[0]
    assert "mappers only minus ViT-Baseline, -0.54 [" in late[1].replace("v3, ", "")


def test_one_pair_has_no_interval_over_folds():
    asked = next(q for q in second_study.QUESTIONS if q.study == "heart_published")
    table = second_study.differences(asked, RECORDS)
    shown = second_study_page.contrast_table(asked, table, RECORDS).splitlines()
    for line, row in zip(shown[-3:], table.to_dict("records"), strict=True):
        assert ("[" in line.split(" | ")[1]) == (not row["hole"] and row["n_folds"] > 1)


def test_the_worst_case_of_the_tuned_study_is_shown(tmp_path):
    cases = pd.read_csv(RECORDS / "hippocampus2_tuned" / "cases.csv")
    alone = cases[(cases["system"] == "vit_baseline") & (cases["fraction"] == 1)]
    worst = alone.loc[alone["dice"].idxmin()]
    page = second_study_page.pictures(RECORDS)
    assert f"{worst['case']} (worst)" in page
    assert f"fold {worst['fold']}, seed {worst['seed']}" in page
    assert "the worst of all its folds and seeds" in page
    assert second_study_page.pictures(tmp_path) == "", "without kept masks nothing is drawn"


def test_a_contrast_leads_to_the_runs_of_both_arms():
    question = next(q for q in second_study.QUESTIONS if q.study == second_study.PUBLISHED)
    table = second_study.differences(question, RECORDS)
    text = second_study_page.contrast_table(question, table, RECORDS)
    for system in question.contrasts[0]:
        assert f"/{question.study}/runs/Task04_Hippocampus/{system}#fraction-1.0)" in text
