"""The landing page's figure: each reported gain and each measured difference at its number."""

from dataclasses import replace

import numpy as np

from mvl.evidence import claims_ledger
from mvl.evidence.claims_evidence import Found
from mvl.evidence.claims_verdicts import Verdict
from mvl.evidence.decision import WITHDRAWN
from mvl.publish import figure_reported

CLAIMS = {claim.id: claim for claim in claims_ledger.load_claims()}


def found(middle: float, study: str, **more) -> Found:
    numbers = {"difference": middle, "low": middle - 0.01, "high": middle + 0.01, "base": 0.8}
    return Found("A minus B", "dice", 3, n_runs=3, n_folds=3, study=study, **numbers, **more)


def entry(name: str, *studies: tuple[str, Found]) -> claims_ledger.Entry:
    (study, first), *rest = [(s, Verdict("not decided", "Why.", (f,))) for s, f in studies]
    return claims_ledger.Entry(CLAIMS[name], study, first, tuple(rest))


def marks(axis) -> set[float]:
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 1]
    return {round(float(line.get_xdata()[0]), 3) for line in lines}


def test_reported_and_measured_stand_at_their_numbers():
    gain = entry(
        "mean_dice",
        ("hippocampus2_published", found(-0.02, "hippocampus2_published")),
        ("hippocampus", found(0.03, "hippocampus")),
    )
    old = entry(
        "v1_gain", ("hippocampus", found(-0.025, "hippocampus", systems=("medvisionllama_v1",)))
    )
    axis = figure_reported.reported_and_measured([gain, old]).axes[0]
    assert marks(axis) == {13.0, -2.0, 3.0, 5.0, -2.5}, "0.87 - 0.74 and 0.79 - 0.74, and ours"
    words = [text.get_text() for text in axis.texts]
    assert "Hippocampus by person, as published: -2.00 [-3.00, -1.00]" in words
    assert any(word.startswith(WITHDRAWN) for word in words)
    bars = [line for line in axis.get_lines() if list(np.unique(line.get_xdata()).round(2)) == [10]]
    assert len(bars) == 2, "half of the room of 20 points that a baseline of 0.8 leaves"


def test_an_interval_that_leaves_the_axis_ends_in_an_arrowhead():
    wide = replace(found(-0.11, "heart_published"), low=-0.3, high=0.09)
    claim = entry("mean_dice", ("heart_published", wide))
    axis = figure_reported.reported_and_measured([claim]).axes[0]
    left, right = axis.get_xlim()
    assert marks(axis) == {13.0, left}, "the mark itself lies beyond the axis"
    (drawn,) = [line for line in axis.get_lines() if list(line.get_xdata()) == [left, 9.0]]
    assert "<" in {line.get_marker() for line in axis.get_lines()} and right > 9
    assert drawn.get_ydata()[0] == 1.0


def test_an_interim_difference_says_how_many_pairs_it_has():
    half = replace(found(-0.02, "hippocampus2_tuned"), n_planned=10)
    claim = entry("mean_dice", ("hippocampus2_tuned", half))
    axis = figure_reported.reported_and_measured([claim]).axes[0]
    assert any("3 of 10 pairs, " in text.get_text() for text in axis.texts)


def test_a_claim_without_a_measured_difference_is_left_out_and_none_is_a_hole():
    claim = entry("mean_dice", ("hippocampus", found(0.0, "hippocampus")))
    empty = replace(claim, verdict=Verdict("not decided", "Nothing."))
    text = [t.get_text() for t in figure_reported.reported_and_measured([empty]).texts]
    assert "no claim of a gain" in " ".join(text).replace("\n", " ")


def test_each_regime_has_a_look_of_its_own():
    published, tuned, first = map(
        figure_reported.look, ("heart_published", "left_atrium", "hippocampus")
    )
    assert figure_reported.look("hippocampus2_published") == published
    assert figure_reported.look("isic") == tuned
    assert len({published, tuned, first}) == 3
