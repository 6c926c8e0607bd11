"""The page has every comparison and layer; each claim of the ledger has a cell that is right."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.core.config import ROOT
from mvl.evidence.claims_ledger import load_claims
from mvl.evidence.reported_evidence import COMPARISONS, DEEPSEEK, LLAMA
from mvl.publish import reported_page

IDS = [claim.id for claim in load_claims()]
BOOK = ROOT / "book"
CASES = {
    "Task01_BrainTumour": 484,
    "Task02_Heart": 20,
    "Task03_Liver": 131,
    "Task04_Hippocampus": 260,
    "Task05_Prostate": 32,
    "Task06_Lung": 63,
    "Task07_Pancreas": 281,
    "Task08_HepaticVessel": 303,
    "Task09_Spleen": 41,
    "Task10_Colon": 126,
}
"Labelled cases of the Decathlon as shipped."


def test_test_sets_are_the_whole_part_of_a_tenth():
    assert reported_page.test_sizes() == {task: n // 10 for task, n in CASES.items()}


def test_three_tasks_cannot_reach_the_level():
    lines = reported_page.reach_table().splitlines()[2:]
    barred = [line.split("`")[1] for line in lines if "**no**" in line]
    assert barred == ["Task02_Heart", "Task05_Prostate", "Task09_Spleen"] and len(lines) == 10
    assert reported_page.reported_counts() == (60, 42, 41)


def test_the_layer_figure_is_whole():
    assert (
        len(reported_page.layers(LLAMA, "frozen"))
        == len(reported_page.layers(LLAMA, "trained"))
        == 16
    )
    for metric in ("iou_percent", "f1_percent"):
        assert len(reported_page.layers(DEEPSEEK, "frozen", metric)) == 4
    frozen = reported_page.layers(LLAMA, "frozen")
    assert frozen[0] == 76.71 and max(frozen) == frozen[3] == 77.72
    first, second = reported_page.layers_table().splitlines()[2:4]
    assert "| 16 | 77.45 | 0.25 | 77.72 | 77.89 |" in first
    assert "| 15 | 77.49 | 0.16 | 77.72 | 77.77 |" in second


def test_the_cnn_lies_below_the_layers_and_the_transformer_within():
    cnn, hybrid = reported_page.beside_layers().splitlines()[2:]
    assert cnn.startswith("| CMUNeXt | 76.87 | 0.020 | < 0.001 |")
    assert hybrid.startswith("| CMUNeXt + Transformer | 77.27 | 0.25 |")


def test_the_tables_show_every_comparison_and_what_is_assumed():
    shown = reported_page.false_claims_table(("P1", "P1-v1")) + reported_page.false_claims_table(
        ("P2",)
    )
    assert all(f"| {comparison.words} |" in shown for comparison in COMPARISONS)
    assert "| 0.04, 0.05 | < 0.001 |" in shown, "version 3's spreads are reported"
    assert "| 0.04, (0.06) |" in shown, "MissFormer's is not"
    assert "| (0.05), (0.05) | 0.026 | 0.006 | < 0.001 |" in shown, "nor version 1's"
    swin = next(line for line in shown.splitlines() if "Swin-UNet" in line)
    assert swin.endswith("| 0.17 | 0.10 | 0.032 | 0.003 |")


@pytest.mark.parametrize(
    ("value", "words"), [(0.0004, "< 0.001"), (0.0264, "0.026"), (0.1, "0.10"), (0.382, "0.38")]
)
def test_a_probability_in_words(value, words):
    assert reported_page.probability(value) == words


def test_every_cell_belongs_to_a_claim_and_every_claim_has_one():
    known = {comparison.claim for comparison in COMPARISONS} - {""}
    assert (known | set(reported_page.CELLS) | set(reported_page.WORDS)) <= set(IDS)
    cells = {claim: reported_page.cell(claim) for claim in IDS}
    assert all(text and "|" not in text and len(text) <= 75 for text in cells.values())


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ("mean_dice", "P(false) < 0.001, n = 10 tasks"),
        ("better_than_swin", "P(false) 0.003 to 0.17, n = 10 tasks"),
        ("v1_gain", "P(false) < 0.001 to 0.048, n = 10 tasks assumed"),
        ("few_shot_10", "P(false) < 0.001 to 0.076, n = 10 tasks assumed"),
        ("sixty_of_sixty", "at most 42 of 60 can reach p < 0.05 by Wilcoxon; 41 reported"),
        ("llm4seg_gain", "P(false) 0.027 to 0.36, n = 234 pictures assumed; best of 16 layers"),
        ("llm4seg_frozen_as_trained", "-0.12 [-0.29, +0.04] IoU points over 16 layers"),
        ("llm4seg_semantic", "IoU +10.6 points, +10.9 at a trained transformer; no spread given"),
        ("llm4seg_effective_rank", "modes 7.46 against 5.51 (6.93 trained); no interval given"),
        ("rank_4", reported_page.NOTHING),
        ("pretraining", "nothing reported"),
    ],
)
def test_cells(claim, text):
    assert reported_page.cell(claim) == text


def made_cases(task: str = "BUSI") -> pd.DataFrame:
    """Two runs of each of two arms whose scores go together by a known correlation."""
    ours = np.array([0.1, 0.4, 0.5, 0.9])
    arms = {"a": ours, "b": np.array([0.2, 0.3, 0.7, 0.8])}
    rows = [
        {"task": task, "system": s, "fraction": f, "fold": fold, "seed": 0, "case": c, "dice": v}
        for s, scores in arms.items()
        for f, fold, sign in ((1.0, 0, 1), (1.0, 1, 1), (0.1, 0, -1))
        for c, v in enumerate(scores if s == "a" else sign * scores)
    ]
    return pd.DataFrame(rows)


def test_correlation_and_spread_are_measured_over_cases_of_whole_data():
    cases = made_cases()
    found = reported_page.measured(cases, "a", "b", "dice")
    first = cases[(cases["fraction"] == 1) & (cases["fold"] == 0)]
    a, b = (first[first["system"] == s]["dice"].to_numpy() for s in "ab")
    expected = np.corrcoef(a, b)[0, 1], a.std(ddof=1), b.std(ddof=1), 2
    assert found == pytest.approx(expected)
    assert reported_page.measured(cases, "a", "c", "dice") is None
    assert reported_page.measured(made_cases("phantoms"), "a", "b", "dice") is None
    assert reported_page.measured_table(cases) == ""


def test_the_published_records_show_r_and_s():
    text = reported_page.facts(("hippocampus", "busi"), run_folder.records_dir())["reported"][
        "measured"
    ]
    assert re.search(r"MedVisionLlama v3 and ViT-Baseline, Dice \| 10 \| 0\.98 \|", text)
    assert re.search(r"LLM4Seg and CMUNeXt, IoU \| 3 \| 0\.89 \|", text)


def test_a_study_without_records_has_the_page_all_the_same(tmp_path):
    facts = reported_page.facts(("quick",), tmp_path)["reported"]
    assert facts["measured"] == "" and facts["possible"] == 42 and facts["corrected"] == 36
    assert facts["transformers"] == ["77.27", "77.06"]


def test_the_page_asks_for_facts_that_there_are(tmp_path):
    asked = set(re.findall(r"(?<!_)\breported\.(\w+)", (BOOK / "reported_evidence.md").read_text()))
    assert asked == set(reported_page.facts(("quick",), tmp_path)["reported"])


def test_citations_have_entries_and_entries_are_whole():
    text = (BOOK / "references.bib").read_text()
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.M | re.S)
    keys = [key for key, _ in entries]
    assert len(set(keys)) == len(keys) == text.count("\n@") + 1
    for key, body in entries:
        for field in ("author", "title", "year"):
            assert re.search(rf"\b{field} = \{{.", body), f"{key} has no {field}"
    pages = "\n".join(path.read_text() for path in BOOK.glob("*.md"))
    cited = {
        k.strip() for group in re.findall(r"\{cite:\w+\}`([^`]+)`", pages) for k in group.split(",")
    }
    assert cited <= set(keys)


@pytest.mark.parametrize(
    "number",
    "2406.16964 2604.01833 2507.00754 2503.01835 2404.09556 2505.04720 2409.17763 2510.07041 "
    "2103.05247".split(),
)
def test_the_literature_of_the_question_is_listed(number):
    assert f"arXiv:{number}" in (BOOK / "references.bib").read_text()
