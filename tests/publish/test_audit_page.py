"""The audit's pages: a finding with its evidence, and what each fault is worth once it is run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.evidence.audit_findings import KNOWN, load_findings, measured, worth
from mvl.publish import audit_page

ROW: dict[str, Any] = {
    "fault": "the test cases choose the epoch",
    "system": "faulty",
    "reference": "clean",
    "study": "audit",
    "done": 3,
    "planned": 3,
    "reported": 0.9,
    "reported_on": "test cases",
    "resized": 0.85,
    "gap": 0.05,
    "dice": 0.84,
    "difference": 0.0123,
    "low": -0.0045,
    "high": 0.0291,
    "p": 0.04,
    "n_cases": 78,
    "n_runs": 3,
}


def line_of(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> str:
    """The table's only line, of `ROW` with these facts changed."""
    table = pd.DataFrame([ROW | changed])
    monkeypatch.setattr(audit_page, "worth", lambda results: table)
    return audit_page.worth_table(Path("data/runs")).splitlines()[-1]


def test_a_difference_has_points_interval_n_and_p(monkeypatch: pytest.MonkeyPatch) -> None:
    line = line_of(monkeypatch)
    assert "+1.23 [-0.45, +2.91] to `clean`; n = 78 cases of 3 folds, p = 0.04 |" in line
    assert "| 0.9000 on test cases | 0.8500 | +5.00 | 0.8400 |" in line
    assert "[3 of 3](" in line and "faulty#fraction-1.0)" in line
    assert "one fold, no p" in line_of(monkeypatch, p=math.nan)


def test_what_is_not_recorded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = dict.fromkeys(("reported", "resized", "gap", "dice", "difference", "p"), math.nan)
    line = line_of(monkeypatch, done=0, **nothing)
    assert "| 0 of 3 | – on test cases | – | – | – | not yet recorded |" in line
    assert line_of(monkeypatch, reference="faulty", **nothing).endswith("| – |  |")


def test_a_finding_shows_its_words_its_measure_and_its_command() -> None:
    for finding in load_findings():
        text = audit_page.finding_page(finding)
        assert text.startswith(f"### {finding.title}\n") and KNOWN[finding.known] in text
        assert f"```bash\n{finding.command}\n```" in text and finding.consequence in text
        assert ("**README or paper says.**" in text) is bool(finding.says)
        assert ("**Measured.**" in text) is bool(finding.measure)
    one = next(finding for finding in load_findings() if finding.measure)
    assert measured(one) in audit_page.finding_page(one)
    assert "**Measured.**" not in audit_page.finding_page(replace(one, measure=""))


def test_the_facts_are_of_every_finding_and_name_the_repository() -> None:
    records = run_folder.records_dir()
    facts = audit_page.facts(("hippocampus",), records, "https://example.org/here")
    pages = "\n".join(facts["audit_pages"].values())
    assert facts["audit_count"] == len(load_findings()) == pages.count("### ")
    assert "REPOSITORY" not in pages and "https://example.org/here/blob/main/mvl" in pages
    assert sum(facts["audit_known"].values()) == facts["audit_count"]
    assert facts["audit_worth"].count("\n") == len(worth(records)) + 1


def test_a_book_of_another_study_has_no_table() -> None:
    facts = audit_page.facts(("quick",), run_folder.records_dir(), "")
    assert "published book" in facts["audit_worth"] and facts["audit_answer"] == ""
