"""The second study's page: numbers by rule, holes named, one figure."""

from mvl.core.config import ROOT
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED
from mvl.publish import second_study_page
from mvl.publish.second_study_page import meaning

RECORDS = ROOT / "data" / "results"


def test_the_page_says_what_is_recorded_and_names_what_is_not(tmp_path):
    found = second_study_page.facts(RECORDS, tmp_path)["second"]
    assert found["figure"] and "<svg" in (tmp_path / second_study_page.FILE).read_text()
    assert "MedVisionLlama v3 minus ViT-Baseline, **-0.74 [-1.16, -0.32]" in found["answer"]
    assert "| ViT-Baseline |" not in found["use"]
    assert "(`hippocampus2_tuned`)" in found["progress"]


def test_nothing_recorded_says_so(tmp_path):
    found = second_study_page.facts(tmp_path, tmp_path)["second"]
    assert found["answer"].startswith("No contrast") and not found["figure"]
    assert second_study_page.sentence(tmp_path) == ""


def test_an_outcome_means_what_the_protocol_said():
    protocol = (ROOT / "book" / "protocol_2.md").read_text()
    lower = meaning(LOWER, (EQUIVALENT, EQUIVALENT), True, True)
    assert lower == (
        "The layer takes part and does not help. Pretraining does not matter at this size of layer."
    )
    assert all(f"{part}." in protocol for part in lower.removesuffix(".").split(". "))
    assert meaning(EQUIVALENT, (UNDECIDED, EQUIVALENT), False, False) == (
        "Training left the layer unused."
    )
    assert meaning(HIGHER, (HIGHER, HIGHER), True, True).startswith("The hybrid helps")
    assert meaning(UNDECIDED, (UNDECIDED,), True, True) == ""


def test_the_positive_control_is_named_with_its_number(tmp_path):
    found = second_study_page.facts(RECORDS, tmp_path)["second"]
    assert found["control"].startswith("**The design sees a layer that matters.**")
    assert "+2.00 [+1.39, +2.61]" in found["control"]
    assert second_study_page.facts(tmp_path, tmp_path)["second"]["control"] == ""
