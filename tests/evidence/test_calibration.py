"""Variance components against planted ones, each simulated decision against the function that
decides, and rates against what is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mvl.evidence import calibration, decision, resampling, stats, topics
from mvl.evidence.calibration import (
    CORRECTED,
    FAMILY,
    INTERVAL,
    ONE,
    PLAIN,
    POOLED,
    RULE,
    RULE_SAME,
    SAME,
    Components,
)
from mvl.evidence.chapter import planned_pairs
from mvl.evidence.topics import HYBRID, VIT
from mvl.study.grid import load_study
from tests.evidence.made_pairs import pairs_of

PLANTED = Components(
    fold=0.4e-4, run=0.1e-4, case=0.5e-4, residual=1e-4, folds=5, seeds=2, cases=12
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_components_of_a_large_study_are_the_planted_ones() -> None:
    found = calibration.components(
        pairs_of(*calibration.simulate(replace(PLANTED, cases=40), 300, 3, rng(), 1)[0])
    )
    assert (found.folds, found.seeds, found.cases, found.lumped) == (300, 3, 40, "")
    for name, tolerance in (("fold", 0.25), ("run", 0.25), ("case", 0.1), ("residual", 0.05)):
        assert getattr(found, name) == pytest.approx(getattr(PLANTED, name), rel=tolerance), name


def test_components_by_hand() -> None:
    found = calibration.components(
        pairs_of(*np.array([[[0.0, 0.02], [0.02, 0.04]], [[0.1, 0.12], [0.1, 0.12]]]))
    )
    assert found.residual == pytest.approx(0)
    assert found.case == pytest.approx(0.0002)
    assert found.run == pytest.approx(0.0001)
    assert found.fold == pytest.approx(0.09**2 / 2 - (0.0001 / 2 + 0.0002 / 2))


def test_what_cannot_be_told_apart_is_said() -> None:
    one_seed = calibration.components(pairs_of(*calibration.simulate(PLANTED, 40, 1, rng(), 1)[0]))
    assert one_seed.run == one_seed.case == 0 and "one number" in one_seed.lumped
    assert one_seed.residual == pytest.approx(PLANTED.case + PLANTED.residual, rel=0.25)
    one_fold = calibration.components(pairs_of(*calibration.simulate(PLANTED, 1, 3, rng(), 1)[0]))
    assert one_fold.fold == 0 and "lower bounds" in one_fold.lumped
    assert (
        calibration.components(pairs_of(*calibration.simulate(PLANTED, 1, 1, rng(), 1)[0])) is None
    )


def test_pooling_takes_those_that_tell_most_apart() -> None:
    better = [replace(PLANTED, fold=1e-4), replace(PLANTED, fold=3e-4)]
    assert calibration.pool([*better, replace(PLANTED, fold=9.0, seeds=1)]).fold == pytest.approx(
        2e-4
    )
    assert calibration.pool([]) is None


@pytest.mark.parametrize(("folds", "seeds", "effect"), [(5, 2, 0.0), (3, 1, 0.012), (4, 1, 0.002)])
def test_each_decision_is_that_of_the_function_that_decides(
    folds: int, seeds: int, effect: float
) -> None:
    studies = calibration.simulate(PLANTED, folds, seeds, rng(1), 6) + effect
    weights = resampling.resample_weights([(seeds, 12)] * folds, 300, np.random.default_rng([0, 0]))
    said = calibration.decisions(studies, weights, family=3)
    for i, study in enumerate(studies):
        pairs = pairs_of(*study)
        interval, t, same = stats.bootstrap(pairs, 300), stats.corrected_t(pairs), stats.tost(pairs)
        whole = {"planned": folds, "done": folds, "folds": folds}
        word = decision.decide(decision.Numbers(interval.low, interval.high, t, same, **whole)).word
        hardest = stats.holm([t, math.nan, math.nan])[0]
        strict = decision.decide(
            decision.Numbers(interval.low, interval.high, hardest, same, **whole)
        ).word
        assert said[CORRECTED][i] == (t < 0.05) and said[SAME][i] == (same < 0.05)
        assert said[INTERVAL][i] == (interval.low > 0 or interval.high < 0)
        assert (said[RULE][i], said[RULE_SAME][i]) == (
            word in ("higher", "lower"),
            word == "equivalent",
        )
        assert said[FAMILY][i] == (strict in ("higher", "lower"))


def test_one_run_gives_no_test_and_our_rule_decides_nothing() -> None:
    found = calibration.rates(PLANTED, 1, 1, studies=200, resamples=100)
    assert CORRECTED not in found.index and PLAIN not in found.index
    assert (found.loc[[RULE, RULE_SAME]] == 0).all(axis=None)
    assert found.loc[ONE, "independent"] > 0.2 and found.loc[INTERVAL, "independent"] > 0.2


@pytest.mark.parametrize(("folds", "seeds"), [(5, 2), (3, 1)])
def test_rates_under_the_model_that_the_test_assumes(folds: int, seeds: int) -> None:
    found = calibration.rates(PLANTED, folds, seeds, family=5, resamples=200)
    assert 0.035 <= found.loc[CORRECTED, "correlated"] <= 0.065
    assert found.loc[CORRECTED, "independent"] <= 0.045
    assert found.loc[RULE, "correlated"] <= found.loc[CORRECTED, "correlated"]
    assert found.loc[FAMILY, "correlated"] <= found.loc[RULE, "correlated"]
    assert found.loc[ONE, "correlated"] > 0.2 and found.loc[POOLED, "correlated"] > 0.2
    assert found.loc[SAME, "one_point"] <= 0.065
    assert found.loc[RULE, "one_point"] > found.loc[FAMILY, "one_point"]


def test_runs_of_one_fold_are_not_independent() -> None:
    """Where the fold is what varies, a corrected test over (fold, seed) pairs errs more often than
    it says; over folds it does not."""
    studies = calibration.simulate(
        replace(PLANTED, run=1e-6, residual=1e-5), 5, 2, rng(2), 3000, calibration.CORRELATION
    )
    runs, means = studies.mean(-1).reshape(3000, -1), studies.mean((2, 3))
    over_runs, over_folds = (
        (calibration._two_sided(units, decision.TEST_OVER_TRAIN) < 0.05).mean()
        for units in (runs, means)
    )
    assert over_runs > 0.1 and 0.03 <= over_folds <= 0.07


def test_rates_are_the_same_every_time() -> None:
    assert calibration.rates(PLANTED, 2, 1, studies=50, resamples=50).equals(
        calibration.rates(PLANTED, 2, 1, studies=50, resamples=50)
    )


def test_folds_share_training_cases_less_at_small_fractions() -> None:
    full, tenth = (
        calibration.shared_training("Task04_Hippocampus", fraction, (0, 1, 2))
        for fraction in (1.0, 0.1)
    )
    assert 0.5 < full < 1 and tenth < calibration.CORRELATION
    assert (
        calibration.shared_training("Task04_Hippocampus", 1.0, (0,)) is None
        and calibration.shared_training("none", 1.0, (0, 1)) is None
    )


def test_designs_follow_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        f"title: t\ntasks: [phantoms]\ngrid: [{{name: main, systems: [{VIT}, {HYBRID}], folds: [0,"
        " 1, 2], seeds: [0, 1]}]\ndata: {img_size: [24, 24, 24]}\nmodel: {patch_size: [4, 4,"
        " 4]}\n"
    )
    plan = load_study(str(path))
    assert calibration.designs(plan) == {(3, 2): ["main"]}
    found = planned_pairs(plan, topics.TOPICS["llm_hybrid"], HYBRID, VIT, "phantoms", 1.0)
    assert found == tuple((f, s) for f in range(3) for s in range(2))
