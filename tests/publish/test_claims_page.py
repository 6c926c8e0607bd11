"""The figure has a line, a word and a marker for each claim; the page has its numbers, its rule and
links to its runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mvl.core import run_folder
from mvl.core.config import ROOT
from mvl.evidence import claims_ledger, claims_text
from mvl.evidence.claims_evidence import Found
from mvl.evidence.claims_ledger import Entry, load_claims
from mvl.evidence.claims_verdicts import WORDS, Verdict
from mvl.publish import claims_page
from mvl.publish.style import VERDICTS

LEDGER = load_claims()
FOUND = Found(
    "A minus B",
    "dice",
    3,
    ("Task04_Hippocampus/vit_baseline/fraction-0.1_fold-2_seed-0",),
    (
        "hippocampus/runs/Task04_Hippocampus/vit_baseline/fraction-0.1_fold-0_seed-0",
        "hippocampus/runs/Task04_Hippocampus/vit_baseline/fraction-0.1_fold-1_seed-0",
    ),
    2,
    1,
    8,
    4,
    0.05,
    0.04,
    0.06,
)


def entry(word=WORDS[0], claim=LEDGER[0]):
    verdict = Verdict(
        word,
        "The sentence. Study `hippocampus`; a limit.",
        (FOUND,),
        2,
        FOUND.runs,
        FOUND.missing,
        ("a reason",),
    )
    return Entry(claim, "hippocampus", verdict)


def test_every_word_has_a_meaning_an_ink_and_a_marker_of_its_own():
    assert tuple(claims_page.MEANINGS) == tuple(VERDICTS) == WORDS and len(
        {marker for _, marker in VERDICTS.values()}
    ) == len(WORDS)


def test_the_figure_shows_each_claim_with_its_word():
    entries = [entry(word, claim) for word, claim in zip(WORDS, LEDGER)]
    figure = claims_page.at_a_glance(entries)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert (
        all(e.claim.short in said and e.word in said for e in entries)
        and claims_ledger.PAPERS["P1"] in said
    )
    assert {line.get_marker() for line in figure.axes[0].lines} >= {
        VERDICTS[word][1] for word in WORDS
    }


def test_generated_data_have_no_verdict_in_the_figure():
    figure = claims_page.at_a_glance([replace(entry(), verdict=None)], ["phantoms"])
    said = " ".join(
        text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))
    )
    assert "no verdict" in said and "phantom" in said and not figure.axes


def test_a_claims_section_has_numbers_rule_runs_and_holes():
    text = claims_page.section(entry(), run_folder.records_dir(), ["02_llm_hybrid"])
    assert (
        "(claim-mean-dice)=" in text
        and "**Reproduced.** The sentence." in text
        and "MedVisionLlama Dice **0.87**" in text
    )
    conjunction = claims_page.section(
        replace(entry(), claim=next(c for c in LEDGER if c.id == "ten_tasks")),
        run_folder.records_dir(),
        [],
    )
    assert "while those that were run hold, the others leave it open. Margin" in conjunction
    assert (
        "Rule `gain`" in text
        and "Margin 1 Dice point: fixed in the protocol before the runs." in text
    )
    assert "(notebooks/02_llm_hybrid.ipynb)" in text
    assert (
        "2 runs](https://github.com/" in text
        and "/vit_baseline#fraction-0.1)" in text
        and "Missing: ViT-Baseline at 10%, 1." in text
    )
    assert "notebooks/" not in claims_page.section(entry(), run_folder.records_dir(), [])


def test_the_landing_page_speaks_of_the_main_claims():
    entries = [entry(claim=claim) for claim in LEDGER]
    lines = claims_page.headline(entries).splitlines()[2:]
    says = (
        "**+5.00 [+4.00, +6.00] Dice points**, A minus B: a reason (2 of 3 pairs; 4 cases x 2"
        " seeds) |"
    )
    assert len(lines) == 5 and all("| **reproduced** | " in line and says in line for line in lines)
    assert (
        claims_page.summary(entries)
        == "35 claims of the papers: 35 reproduced. 3 implied and tested by us: 3 reproduced."
    )
    assert sum(", implied: " in line for line in lines) == 2


@pytest.mark.parametrize("shown", [(), ("02_llm_hybrid", "06_llm4seg")])
def test_the_table_has_a_row_for_each_claim(shown):
    text = claims_page.table(
        [entry(claim=claim) for claim in LEDGER], run_folder.records_dir(), shown
    )
    assert "| P(false) 0.003 to 0.17, n = 10 tasks |" in text, (
        "what the paper's own numbers can carry"
    )
    assert (
        text.count("| reproduced |") == len(LEDGER)
        and "+5.00 [+4.00, +6.00] Dice points, 2 of 3 pairs" in text
    )
    assert ("notebooks/06_llm4seg.ipynb" in text) == bool(shown)


def test_the_facts_of_the_pages(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(claims_page.claims_ledger, "load_claims", lambda: LEDGER[:2])
    found = claims_page.facts(("quick",), run_folder.records_dir(), (), tmp_path)
    assert (
        not found["judged"]
        and "<svg" in (tmp_path / claims_page.FILE).read_text()
        and found["headline"] == ""
    )
    assert (
        "### Higher Dice than the ViT alone" in found["sections"]
        and "2 claims of the papers: 2 not evidence" in found["summary"]
    )


def test_what_other_studies_say_and_what_would_decide_stand_in_the_section():
    claim = next(claim for claim in LEDGER if claim.id == "mean_dice")
    one = entry(claim=claim)
    whole = replace(one, elsewhere=(("hippocampus2_tuned", one.verdict),), needs="Ten folds.")
    text = claims_page.section(whole, run_folder.records_dir(), ())
    assert "*In other studies*: Hippocampus by person, tuned (`hippocampus2_tuned`): " in text
    assert "*What would decide it*: Ten folds." in text
    assert "*Of its study*: at the first study's rate" in text
    published = replace(one, study="hippocampus2_published")
    assert "first study's rate" not in claims_page.section(published, run_folder.records_dir(), ())
    assert claims_text.use(published, run_folder.records_dir()).startswith("h = 0: -0.60; tokens")
    assert claims_text.use(one, run_folder.records_dir()) == "", "the first study recorded no use"


def test_the_use_of_the_layer_stands_beside_runs_alone():
    [claim] = [claim for claim in LEDGER if claim.id == "mean_dice"]
    records = ROOT / "data" / "results"
    judged = claims_ledger.judge(
        claim, claims_ledger.read_evidence("hippocampus2_published", records)
    )
    entry = Entry(claim, "hippocampus2_published", judged)
    assert claims_text.use(entry, records).startswith("h = 0: -")
    tenth = replace(entry, claim=replace(claim, fractions=(0.1,)))
    assert claims_text.use(tenth, records).startswith("h = 0: -1.16; tokens"), "its own share's"
    without = replace(entry, verdict=replace(judged, runs=()))
    assert claims_text.use(without, records) == ""


def test_verdicts_of_the_same_runs_are_named_as_one_finding() -> None:
    entries = claims_ledger.ledger(run_folder.records_dir())
    against = [entry for entry in entries if entry.word == "contradicted"]
    by_runs = [set(entry.verdict.numbers[0].runs) for entry in against]
    sets = set(map(frozenset, by_runs))
    said = claims_page.summary(entries)
    assert f"The {len(against)} contradicted rest on {len(sets)} different sets of runs" in said
    assert len(sets) < len(against)
    assert "35 claims of the papers: none reproduced, " in said
    alone = [entry for entry in entries if entry.word != "contradicted"]
    assert "contradicted rest" not in claims_page.summary(alone)
