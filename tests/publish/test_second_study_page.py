"""The second study's page: numbers by rule, holes named, one figure."""

from typing import Any

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED
from mvl.publish import second_study_page
from mvl.publish.second_study_page import Regime, meaning, use_in_words

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
    assert second_study_page.sentence(tmp_path) == ""


def test_an_outcome_means_what_the_protocol_said():
    protocol = (ROOT / "book" / "protocol_2.md").read_text()
    used = meaning(LOWER, (EQUIVALENT, EQUIVALENT), True, True)
    off = meaning(EQUIVALENT, (UNDECIDED, EQUIVALENT), False, False)
    higher = meaning(HIGHER, (HIGHER, HIGHER), True, True)
    for text in (used, off, higher):
        assert text and all(f"{part}." in protocol for part in text.removesuffix(".").split(". "))
    assert meaning(UNDECIDED, (UNDECIDED,), True, True) == ""


def row(low: float, high: float) -> dict[str, Any]:
    """A difference with this 95 % interval, called different or equivalent as it says."""
    return {
        **dict(system="a", reference="b", planned=10, n_runs=10, n_folds=5),
        "boot_low": low,
        "boot_high": high,
        "difference": (low + high) / 2,
        "low": low,
        "high": high,
        "p_holm": 0.001 if low * high > 0 else 0.9,
        "p_equivalence": 0.001 if max(-low, high) < 0.01 else 0.9,
        "margin": 0.01,
    }


@pytest.mark.parametrize(
    ("gains", "shuffled", "said"),
    [
        ([(-0.02, -0.005), (-0.004, 0.001)], (-0.002, 0.003), ("does not raise", "less than 1")),
        ([(-0.03, 0.03), (-0.004, 0.001)], (-0.03, 0.03), ("is not shown to raise", "ViT.")),
        ([(0.02, 0.04), (-0.004, 0.001)], (0.02, 0.04), ("one frozen layer", "not in every")),
        ([(0.02, 0.04)], (0.02, 0.04), ("SmolLM2-135M raises the Dice", "ViT.")),
    ],
)
def test_the_plain_answer_follows_the_verdicts(gains, shuffled, said):
    found = [Regime(row(*gain), row(*shuffled), "", "", "") for gain in gains]
    assert all(words in second_study_page.plain_answer(found) for words in said)


def test_where_the_thresholds_of_use_disagree_neither_sentence_is_said():
    between = meaning(LOWER, (EQUIVALENT, EQUIVALENT), False, True)
    assert between == "Pretraining does not matter at this size of layer."
    rows = pd.DataFrame({"zero": [-0.6], "shuffled_tokens": [-2.4], "shuffled_weights": [-0.9]})
    assert use_in_words(rows) == (
        "loses 0.60 points when the layer is silenced, below the threshold of use (1), and 2.40"
        " when what it computes is disturbed, above it"
    )
    assert use_in_words(rows - 5) == "uses the layer and what it computes"
    assert use_in_words(rows * 0) == "does not use the layer"


def test_the_positive_control_is_named_with_its_number(tmp_path):
    found = second_study_page.facts(RECORDS, tmp_path)["second"]
    assert found["control"].startswith("**The design sees a layer that matters.**")
    assert "+2.00 [+1.39, +2.61]" in found["control"]
    assert second_study_page.facts(tmp_path, tmp_path)["second"]["control"] == ""


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
