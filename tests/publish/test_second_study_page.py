"""The second study's page: numbers by rule, holes named, one figure."""

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.publish import second_study_answer, second_study_page

RECORDS = ROOT / "data" / "results"


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A folder that the page's figure was written into, and what the page prints."""
    folder = tmp_path_factory.mktemp("staged")
    return folder, second_study_page.facts(RECORDS, folder)["second"]


def test_the_page_says_what_is_recorded_and_names_what_is_not(staged):
    folder, found = staged
    assert found["figure"] and "<svg" in (folder / second_study_page.FILE).read_text()
    assert "MedVisionLlama v3 minus ViT-Baseline, **-0.74 [-1.16, -0.32]" in found["answer"]
    assert "ViT-Baseline" not in found["use"]
    assert "(`hippocampus2_tuned`)" in found["progress"]


def test_nothing_recorded_says_so(tmp_path):
    found = second_study_page.facts(tmp_path, tmp_path)["second"]
    assert found["answer"].startswith("No contrast") and not found["figure"]
    assert found["sentence"] == found["in_brief"] == ""


def test_use_is_shown_by_study_and_share_and_arms_without_a_layer_are_named(staged):
    use = staged[1]["use"]
    assert "as published, 10 % of the data**: Dice points lost or won" in use
    isic = use[use.index("**Skin lesions") :]
    alone = next(line for line in isic.splitlines() if "mappers only" in line)
    assert alone.endswith("| has no layer |") and "uses the layer" not in alone
    hybrid = next(line for line in isic.splitlines() if "/llm4seg#" in line)
    assert "| 4 | uses the layer" in hybrid, "how many runs lose a point stands beside the word"


def test_the_gap_over_training_is_that_of_pairs_of_runs(tmp_path):
    study = second_study.PUBLISHED
    shown = second_study_page.length_of_training([study], RECORDS)
    assert "10 % of the data" in shown and second_study_page.length_of_training([], RECORDS) == ""
    history = pd.read_csv(RECORDS / study / "history.csv")
    whole = history[(history["fraction"] == 1.0) & (history["epoch"] >= 15)]
    mean = whole.groupby("system")["val_dice"].mean() * 100
    line = next(row for row in shown.splitlines() if "| 20 |" in row)
    last = mean[second_study.HYBRID] - mean[second_study.VIT]
    assert line.endswith(f"{last:+z.2f} |")
    third = history[(history["fraction"] == 1.0) & history["epoch"].between(10, 14)]
    before = third.groupby("system")["val_dice"].mean() * 100
    assert abs(last) < abs(before[second_study.HYBRID] - before[second_study.VIT])
    assert "It still closes in 2 of these 2 rows: what is said of the sign" in shown
    heart = second_study_page.length_of_training(["heart_published"], RECORDS)
    assert (
        "It still closes in 1 of these 1 rows, and is wider than in the first quarter in" in heart
    )
    # a hybrid of one fold is set beside the ViT of that fold, and none beside none
    (tmp_path / study).mkdir()
    alone = history["system"] == second_study.VIT
    one = alone | ((history["system"] == second_study.HYBRID) & (history["fold"] == 0))
    for kept, pairs in ((one, "| 2 | 20 |"), (alone, ""), (alone & ~alone, "")):
        history[kept].to_csv(tmp_path / study / "history.csv", index=False)
        found = second_study_page.length_of_training([study], tmp_path)
        assert pairs in found and bool(found) == bool(pairs)
    one_fold = whole[whole["fold"] == 0].groupby("system")["val_dice"].mean() * 100
    paired = one_fold[second_study.HYBRID] - one_fold[second_study.VIT]
    history[one].to_csv(tmp_path / study / "history.csv", index=False)
    assert f"{paired:+z.2f} |" in second_study_page.length_of_training([study], tmp_path)


def test_what_was_asked_after_the_runs_is_described_and_named_as_such():
    said = second_study_page.described([second_study.UNMIXED, second_study.PUBLISHED], RECORDS)
    late = [line for line in said.splitlines() if ", asked after the runs: " in line]
    assert len(late) == 2 and "MedVisionLlama v3 minus ViT-Baseline, +1.92 [" in late[0]
    assert "mappers only minus ViT-Baseline, -0.54 [" in late[1].replace("v3, ", "")


def test_one_fold_has_no_interval_over_folds():
    row = {"metric": "dice", "difference": 0.01, "low": -0.02, "high": 0.04, "n_folds": 1}
    assert second_study_answer.in_points(row) == "+1.00"
    assert second_study_answer.in_points(row | {"n_folds": 2}) == "+1.00 [-2.00, +4.00]"


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
