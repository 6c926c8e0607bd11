"""One rule decides: chapter, ledger and calibration have the same word for the same numbers."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from mvl.core.config import ROOT
from mvl.evidence import calibration, decision, resampling, stats
from mvl.evidence.claims_evidence import UNITS, Found
from mvl.evidence.claims_verdicts import as_gain
from mvl.evidence.decision import UNDECIDED, Numbers, decide
from tests.evidence.made_pairs import pairs_of

DONE = {"planned": 5, "done": 5, "folds": 5}
WORDS = [
    ((0.02, 0.04, 0.01, 0.9), "higher"),
    ((-0.04, -0.02, 0.01, 0.9), "lower"),
    ((-0.005, 0.005, 0.9, 0.01), "equivalent"),
    ((-0.01, 0.01, 0.9, 0.049), "equivalent"),
    ((0.001, 0.005, 0.01, 0.01), "equivalent"),
    ((-0.005, 0.005, 0.9, 0.06), "not decided"),
    ((-0.011, 0.005, 0.9, 0.01), "not decided"),
    ((0.02, 0.04, 0.06, 0.9), "not decided"),
    ((-0.001, 0.04, 0.01, 0.9), "not decided"),
    ((0.02, 0.04, math.nan, math.nan), "not decided"),
]


@pytest.mark.parametrize(("numbers", "word"), WORDS)
def test_the_rule(numbers, word):
    assert decide(Numbers(*numbers, **DONE)).word == word


def test_what_withholds_a_word_is_said():
    clear = (0.02, 0.04, 0.01, 0.9)
    why = [str(decide(Numbers(*clear, *rest))) for rest in ((), (5, 4, 4), (5, 3, 3), (2, 2, 2))]
    assert why == [
        "not decided, not planned in this study",
        "not decided, incomplete, 1 planned pair of runs missing",
        "not decided, incomplete, 2 planned pairs of runs missing",
        "not decided, too few runs, 2 folds where 3 are needed",
    ]
    assert "3 planned runs missing" in str(decide(Numbers(*clear, 5, 3, 3, 3)))
    wide, torn = ((-0.011, 0.005, 0.9, p) for p in (0.01, 0.06))
    beyond = "not decided, the bootstrap over cases reaches beyond the margin"
    assert str(decide(Numbers(*wide, **DONE))) == beyond, "the tests alone would call it equivalent"
    assert str(decide(Numbers(*torn, **DONE))) == "not decided"
    arms = ("vit_baseline", "medvisionllama_v1")
    untuned = decide(Numbers(*clear, **DONE), systems=arms)
    tuned = decide(Numbers(*clear, **DONE), systems=arms, study="hippocampus2_tuned")
    assert tuned.word not in (untuned.word, UNDECIDED), "there each arm has a rate of its own"
    assert untuned.word == "withdrawn" and "0.032" in untuned.why


@pytest.mark.parametrize(("folds", "seeds"), [(5, 2), (3, 1), (2, 1), (1, 3)])
@pytest.mark.parametrize("effect", [0.0, 0.004, 0.012, 0.03, -0.03])
def test_chapter_ledger_and_calibration_say_the_same(folds, seeds, effect):
    rng = np.random.default_rng([folds, seeds, round(1e4 * abs(effect))])
    shown = rng.normal(effect, 0.004, (1, folds, seeds, 12)) + rng.normal(
        0, 0.003, (1, folds, 1, 1)
    )
    pairs = pairs_of(*shown[0])
    pairs = replace(pairs, planned=pairs.units)
    # The calibration's weights are those that the bootstrap of these shapes draws.
    weights = resampling.resample_weights(
        tuple(d.shape for d in pairs.folds), 500, np.random.default_rng([0, 0])
    )
    interval, t, same = stats.bootstrap(pairs, 500), stats.corrected_t(pairs), stats.tost(pairs)
    compared = stats.Comparison(pairs, interval, t, same, p_wilcoxon=math.nan, dz=math.nan)
    row = stats.table([stats.row(compared)]).iloc[0].to_dict()
    found = Found(
        "w",
        "dice",
        folds * seeds,
        (),
        (),
        folds * seeds,
        folds,
        12,
        12,
        0.0,
        row["low"],
        row["high"],
        interval.low,
        interval.high,
        t,
        same,
        systems=("new", "old"),
    )
    simulated = calibration.decisions(shown, weights)
    chapter = decision.decided(row)
    assert chapter == found.decision()
    assert bool(simulated[calibration.RULE_SAME][0]) == (chapter.word == "equivalent")
    assert bool(simulated[calibration.RULE][0]) == (chapter.word in ("higher", "lower"))


def test_a_claims_words_are_the_decisions_where_nothing_is_decided():
    from mvl.evidence.claims_ledger import load_claims

    open_ = Found("w", "dice", 3, (), (), 3, 3, 9, 9, 0.01, -0.02, 0.04, -0.02, 0.04, 0.5, 0.5)
    claim = next(claim for claim in load_claims() if claim.id == "not_complexity")
    assert as_gain(open_, claim)[0] == open_.decision().word == decision.UNDECIDED


def test_every_metric_has_a_margin_with_its_reason_and_no_other_place_has_one():
    assert set(decision.MARGINS) == set(UNITS)
    assert [name for name, margin in decision.MARGINS.items() if margin.protocol] == ["dice"]
    assert all(margin.value > 0 and margin.reason for margin in decision.MARGINS.values())
    late = [m.reason for name, m in decision.MARGINS.items() if name not in ("dice", "jaccard")]
    assert all("set with the ledger" in reason for reason in late)
    later = [name for name, m in decision.MARGINS.items() if "second protocol fixed" in m.reason]
    assert later == ["nsd", "hd95_mm"], "book/protocol_2.md fixes these and no other"
    assert not re.search(r"^margin *=", (ROOT / "data" / "claims.toml").read_text(), re.M)
    elsewhere = [
        path.name
        for path in (ROOT / "mvl").rglob("*.py")
        if re.search(
            r"^(MARGIN|LEVEL|EQUIVALENCE_POINTS|MIN_FOLDS) = [\d./ ]+$", path.read_text(), re.M
        )
    ]
    assert elsewhere == ["decision.py"]


def test_the_printed_interval_is_the_tests():
    pairs = pairs_of([0.01, 0.02], [0.03], [0.02])
    low, high = stats.shown_interval(pairs, stats.bootstrap(pairs, 100))
    p = stats.corrected_t(pairs)
    reach = (high - low) / 2
    t = pairs.fold_means.mean() / stats.standard_error(pairs)
    assert low + reach == pytest.approx(pairs.fold_means.mean())
    assert reach == pytest.approx(4.3026527 * stats.standard_error(pairs))
    assert (p < 0.05) == (low > 0) and t > 0
