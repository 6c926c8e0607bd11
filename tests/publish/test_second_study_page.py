"""The second study's page: numbers by rule, holes named, one figure."""

from mvl.core.config import ROOT
from mvl.publish import second_study_page

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
