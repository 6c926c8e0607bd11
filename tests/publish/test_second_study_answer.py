"""The second study's answer in words follows the verdicts, and the protocol's own sentences."""

import shutil
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED
from mvl.publish import second_study_answer
from mvl.publish.second_study_answer import (
    Regime,
    meaning,
    of_pictures,
    on_subject,
    plain_answer,
    use_in_words,
    what_is_open,
)


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
        (
            [(-0.02, -0.005), (-0.004, 0.001)],
            (-0.002, 0.003),
            ("does not raise", "margin of 1 point."),
        ),
        ([(-0.03, 0.03), (-0.004, 0.001)], (-0.03, 0.03), ("is not shown to raise", "ViT.")),
        ([(0.02, 0.04), (-0.004, 0.001)], (0.02, 0.04), ("one frozen layer", "not in every")),
        ([(0.02, 0.04)], (0.02, 0.04), ("SmolLM2-135M raises the Dice", "ViT.")),
    ],
)
def test_the_plain_answer_follows_the_verdicts(gains, shuffled, said):
    found = [Regime(row(*gain), row(*shuffled), row(*gain), "", "", "") for gain in gains]
    assert all(words in plain_answer(found) for words in said)


def test_where_the_thresholds_of_use_disagree_neither_sentence_is_said():
    between = meaning(LOWER, (EQUIVALENT, EQUIVALENT), False, True)
    assert between == "Pretraining does not matter at this size of layer."
    by_mappers = meaning(LOWER, (EQUIVALENT, EQUIVALENT), False, True, EQUIVALENT)
    assert by_mappers == f"{between} What helps or harms is the mappers."
    nothing = meaning(EQUIVALENT, (EQUIVALENT, EQUIVALENT), False, True, EQUIVALENT)
    assert nothing == between, "where v3 equals the ViT, nothing helps or harms"
    published = second_study_answer._found(second_study.PUBLISHED, 1.0, ROOT / "data" / "results")
    assert published.protocol == by_mappers
    behind = second_study_answer.of_mappers(published)
    assert behind.startswith(" (the hybrid minus its mappers alone: -0.25 [")
    assert behind.endswith("+0.28], an interval that holds the whole difference, too)")
    narrow = replace(published, mappers=published.mappers | {"low": -0.004})
    assert "whole" not in second_study_answer.of_mappers(narrow)
    assert second_study_answer.of_mappers(replace(published, protocol=between)) == ""
    costs = {"zero": -0.6, "mean": -0.9, "shuffled_tokens": -2.4, "shuffled_weights": -0.9}
    rows = pd.DataFrame([costs])
    assert use_in_words(rows) == (
        "loses 0.60 points when the layer is silenced, below the threshold of use (1), and 2.40"
        " when what it computes is disturbed, above it"
    )
    assert use_in_words(rows - 5) == "uses the layer and what it computes"
    assert use_in_words(rows * 0) == "does not use the layer"
    constant = pd.DataFrame([costs | {"zero": -9, "shuffled_tokens": 0, "shuffled_weights": -9}])
    assert use_in_words(constant) == (
        "uses the layer and what it computes, one vector for all tokens"
    )


def test_what_is_open_names_studies_until_their_runs_are_there(tmp_path, monkeypatch):
    records = ROOT / "data" / "results"
    everything = what_is_open(tmp_path)
    assert everything.startswith("Hippocampus by person, as published (98 of 98); ")
    assert "Skin lesions (ISIC 2017), LLM4Seg (24 of 24)" in everything
    shutil.copytree(records / "isic", tmp_path / "isic")
    assert "Skin lesions" not in what_is_open(tmp_path)
    runs = pd.read_csv(records / "isic" / "runs.csv")
    runs.loc[runs["system"] == "cmunext", "state"] = "missing"
    monkeypatch.setattr(second_study_answer, "read_runs", lambda *_: runs)
    monkeypatch.setattr(second_study, "progress", lambda _: [("isic", 19, 24)])
    assert what_is_open(tmp_path).endswith(", LLM4Seg (5 of 24; none of *CMUNeXt*)")
    monkeypatch.setattr(second_study, "progress", lambda _: [("isic", 24, 24)])
    assert what_is_open(tmp_path) == "nothing"


def test_what_lacks_runs_is_not_said(monkeypatch):
    complete = second_study.differences

    def lacking(question, results):
        return complete(question, results).assign(complete=False)

    records = ROOT / "data" / "results"
    assert "as published, 10 % of the data: MedVisionLlama v3 minus ViT-Baseline" in on_subject(
        "few-shot", records
    )
    monkeypatch.setattr(second_study, "differences", lacking)
    assert on_subject("few-shot", records) == ""


def test_pictures_are_said_as_soon_as_their_first_question_is_complete(tmp_path):
    records = ROOT / "data" / "results"
    said, *_ = of_pictures(records)
    assert said.startswith("On skin lesions (ISIC 2017), LLM4Seg differs from its CNN alone by **")
    assert "-75.3 to -0.3 points, and 4 of 5 runs" in said
    assert " From its mappers alone it differs by **-0.08 [" in said
    assert "(not decided, the bootstrap over cases reaches beyond the margin); in the 3" in said
    assert said.endswith("it does not use the layer (-0.6 to -0.2 points).")
    assert of_pictures(tmp_path) == []
    shutil.copytree(records / "isic", tmp_path / "isic")
    runs = pd.read_csv(tmp_path / "isic" / "runs.csv")
    mappers = runs["system"] == "llm4seg_identity"
    runs[~mappers].to_csv(tmp_path / "isic" / "runs.csv", index=False)
    every = pd.read_csv(tmp_path / "isic" / "cases.csv")
    every[every["system"] != "llm4seg_identity"].to_csv(
        tmp_path / "isic" / "cases.csv", index=False
    )
    (without,) = of_pictures(tmp_path)
    assert "mappers" not in without and ", and from itself trained with" in without
    shuffled = runs["system"] == "llm4seg_shuffled"
    runs[~(shuffled & (runs["fold"] == 0))].to_csv(tmp_path / "isic" / "runs.csv", index=False)
    cases = pd.read_csv(tmp_path / "isic" / "cases.csv")
    lacking = (cases["system"] == "llm4seg_shuffled") & (cases["fold"] == 0)
    cases[~lacking].to_csv(tmp_path / "isic" / "cases.csv", index=False)
    (without,) = of_pictures(tmp_path)
    assert "shuffled" not in without and "CNN alone by **+0.35 [" in without
    for name in ("runs.csv", "cases.csv"):
        rows = pd.read_csv(tmp_path / "isic" / name)
        lacking = (rows["system"] == "cmunext") & (rows["fold"] == 0)
        rows[~lacking].to_csv(tmp_path / "isic" / name, index=False)
    assert of_pictures(tmp_path) == [], "a run of the CNN is missing"


def test_what_is_described_alone_has_no_verdict():
    records = ROOT / "data" / "results"
    lines = on_subject("peers", records).splitlines()
    assert len(lines) == 3 and all(line.endswith(" Dice points**") for line in lines)
    assert all(line.endswith(")") for line in on_subject("version 1", records).splitlines())
