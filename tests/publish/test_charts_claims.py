"""The ledger's chart has a row for each claim with an interval, in margins, that says and leads to
what the verdict rests on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mvl.core import run_folder
from mvl.evidence.claims_ledger import PAPERS
from mvl.evidence.claims_verdicts import WORDS
from mvl.publish import charts_claims
from tests.publish.test_charts import facts, schema_faults
from tests.publish.test_claims_page import FOUND, LEDGER, entry


def chart(*entries):
    return facts(charts_claims.ledger(entries, run_folder.records_dir()))


def with_found(one, **numbers):
    found = replace(FOUND, **numbers)
    return replace(one, verdict=replace(one.verdict, numbers=(found,)))


def test_a_claim_is_a_row_in_units_of_its_margin():
    one = with_found(entry(), base=0.9)
    (row,) = chart(one)["rows"]
    margin = one.claim.margin
    places = [round(v / margin, 3) for v in (FOUND.low, FOUND.difference, FOUND.high)]
    assert [row["low"], row["middle"], row["high"]] == places
    assert row["reported"] == pytest.approx(one.claim.reported_gain * 0.1 / margin, abs=1e-3)


def test_a_row_says_verdict_interval_n_and_rule_and_leads_to_the_runs():
    found = chart(entry())
    says = found["texts"][found["rows"][0]["says"]]
    claim = LEDGER[0]
    assert says.startswith(f"{claim.short}: {WORDS[0]}\n")
    for words in ("95 % interval +4.00 to +6.00", "2 of 3 pairs of runs", f"Rule {claim.rule}:"):
        assert words in says
    href = "runs_hippocampus.html#Task04_Hippocampus-vit_baseline-0-1"
    assert found["rows"][0]["href"] == href


def test_use_of_the_layer_is_said_where_it_is_recorded():
    one = replace(entry(), study="hippocampus2_published")
    found = chart(one)
    assert "Use of the layer, Dice points: h = 0:" in found["texts"][0]


def test_an_interval_beyond_the_axis_is_cut_and_marked():
    far = with_found(entry(), low=-0.5, difference=-0.4, high=0.01)
    (row,) = chart(far)["rows"]
    assert row["low"] == row["middle"] == -charts_claims.REACH
    assert row["before"] and not row["beyond"]
    assert row["shape"] == charts_claims.charts.outline("<")


def test_switches_are_the_papers_and_verdicts_that_there_are():
    papers, verdicts = chart(entry(), entry(WORDS[3], LEDGER[1]))["switches"]
    assert [each["value"] for each in papers["choices"]] == [PAPERS["P1"]]
    assert [each["value"] for each in verdicts["choices"]] == [WORDS[0], WORDS[3]]
    assert not any(each["on"] for each in papers["choices"] + verdicts["choices"])


def test_what_has_no_interval_has_no_row():
    without = replace(entry(), verdict=replace(entry().verdict, numbers=()))
    unmeasured = with_found(entry(), n_runs=0)
    none = replace(entry(), verdict=None)
    records = run_folder.records_dir()
    assert charts_claims.ledger([without, unmeasured, none], records) == ""
    assert len(chart(without, entry())["rows"]) == 1


def test_the_specification_is_vega_lites():
    assert schema_faults(charts_claims.ledger([entry()], run_folder.records_dir())) == []
