"""The page's section on the second protocol: every planned contrast has a line with its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.evidence import power_plan, second_study
from mvl.publish import protocol_power


@pytest.fixture(scope="module")
def table() -> str:
    return protocol_power.power_table()


def test_every_planned_contrast_has_a_line(table: str) -> None:
    planned = sum(len(power_plan.contrasts(study)) for study in second_study.STUDIES)
    assert len(table.splitlines()) == planned + 2 and "not measured" not in table


def test_a_line_has_the_plans_figures(table: str) -> None:
    (row, *_) = power_plan.power_plan("kvasir")["rows"]
    (line, *_) = [line for line in table.splitlines() if line.startswith("| Polyps (Kvasir-SEG)")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        "LLM4Seg minus CMUNeXt",
        "5 x 1",
        f"{row['sd']:.2f}",
        f"{row['detectable']['1']:.2f}",
        f"{row['equivalence']:.0%} within 0.4",
        protocol_power._in_words(row["source"]),
    ]


def test_the_page_asks_for_what_is_given() -> None:
    text = (ROOT / "book" / "statistics.md").read_text()
    assert "{{ statistics.protocol_power }}" in text
    assert "{{ statistics.protocol_calibration }}" in text
    assert "{{ statistics.own_calibration }}" in text


def test_calibration_is_simulated_at_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "mvl.evidence.calibration_families.table", lambda found: seen.append(found) or "x"
    )
    assert protocol_power.calibration_table() == "x"
    assert (seen[0].folds, seen[0].seeds, seen[0].cases) == (5, 2, 26)


def test_every_recorded_family_holds_its_rate_at_its_own_variances() -> None:
    lines = protocol_power.own_calibration_table().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    studies = {row[0] for row in cells}
    assert {"Left atrium, tuned", "Heart, as published"} <= studies
    assert "Skin lesions (ISIC 2017), LLM4Seg" in studies, "pictures too, by their own variances"
    for *_, called, covered in cells:
        assert float(called.rstrip("%")) <= 5.6 and 93 <= float(covered.rstrip("%")) <= 97


def test_without_records_no_family_is_simulated(tmp_path: Path) -> None:
    assert protocol_power.own_calibration_table(tmp_path) == ""


def test_a_source_is_named_in_words() -> None:
    words = protocol_power._in_words("hippocampus: medvisionllama_v3 - vit_baseline")
    assert words.endswith(": MedVisionLlama v3 minus ViT-Baseline") and "_" not in words
