"""Power against simulated studies, against scipy's noncentral t, and against known cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from mvl.evidence import calibration, power, stats
from mvl.evidence.calibration import Components
from mvl.evidence.decision import LEVEL, MARGIN, TEST_OVER_TRAIN, error_factor
from tests.evidence.made_pairs import pairs_of

PLANTED = Components(4e-6, 3e-6, 2e-5, 4e-5, folds=5, seeds=2, cases=26)


def fold_means(folds: int, sd: float, difference: float, studies: int = 40_000) -> np.ndarray:
    """Draw fold means (studies, folds), correlated as the corrected t-test assumes."""
    rng = np.random.default_rng(folds)
    own = rng.normal(difference, sd, (studies, folds))
    return own + rng.normal(0, sd * math.sqrt(TEST_OVER_TRAIN), (studies, 1))


@pytest.mark.parametrize(("folds", "family", "ratio"), [(3, 1, 2.0), (5, 3, 2.0), (10, 6, 1.0)])
def test_power_of_a_difference_is_the_share_of_simulated_studies(folds, family, ratio):
    sd = 0.005
    difference = ratio * sd
    means = fold_means(folds, sd, difference)
    error = means.std(1, ddof=1) * math.sqrt(1 / folds + TEST_OVER_TRAIN)
    p = 2 * scipy_stats.t.sf(abs(means.mean(1)) / error, folds - 1)
    said = power.power_of_difference(difference, sd, folds, family)
    assert said == pytest.approx((p * family < LEVEL).mean(), abs=0.01)


@pytest.mark.parametrize(
    ("folds", "sd", "difference"),
    [(3, 0.003, 0.0), (5, 0.006, 0.0), (5, 0.004, 0.004), (10, 0.006, 0.01), (10, 0.02, 0.0)],
)
def test_power_of_equivalence_is_the_share_of_simulated_studies(folds, sd, difference):
    means = fold_means(folds, sd, difference)
    error = means.std(1, ddof=1) * math.sqrt(1 / folds + TEST_OVER_TRAIN)
    distance = MARGIN - abs(means.mean(1))
    said = power.power_of_equivalence(sd, folds, MARGIN, difference)
    both = scipy_stats.t.sf(distance / error, folds - 1) < LEVEL
    assert said == pytest.approx(both.mean(), abs=0.01)


def test_the_simulated_tests_are_the_projects_own():
    for means in fold_means(5, 0.004, 0.004, studies=40):
        pairs = pairs_of(*([mean] for mean in means))
        error = means.std(ddof=1) * error_factor(5)
        t = scipy_stats.t.sf(abs(means.mean()) / error, 4)
        same = scipy_stats.t.sf((MARGIN - abs(means.mean())) / error, 4)
        assert stats.corrected_t(pairs) == pytest.approx(2 * t)
        assert stats.tost(pairs) == pytest.approx(same)


def test_power_is_the_noncentral_t_where_scipy_has_it():
    for folds, centre in ((3, 2.0), (5, 3.0), (10, 1.5)):
        critical = scipy_stats.t.isf(LEVEL / 2, folds - 1)
        exact = scipy_stats.nct.sf(critical, folds - 1, centre)
        exact += scipy_stats.nct.cdf(-critical, folds - 1, centre)
        difference = centre * error_factor(folds)
        assert power.power_of_difference(difference, 1.0, folds) == pytest.approx(exact, abs=1e-6)


def test_power_without_correlation_is_that_of_the_plain_paired_t_test(monkeypatch):
    # G*Power's example of a paired t-test: dz = 0.5, n = 34, alpha .05 two-sided gives .808
    monkeypatch.setattr(power, "error_factor", lambda folds: 1 / math.sqrt(folds))
    assert power.power_of_difference(0.5, 1.0, 34) == pytest.approx(0.8077, abs=5e-4)


def test_without_a_difference_the_test_keeps_its_level():
    for folds, family in ((2, 1), (5, 1), (5, 6), (10, 3)):
        found = power.power_of_difference(0.0, 0.01, folds, family)
        assert found == pytest.approx(LEVEL / family, abs=1e-6)


def test_a_detectable_difference_is_found_with_the_power_that_is_asked():
    for folds, family in ((2, 6), (3, 1), (5, 3), (10, 6)):
        seen = power.detectable(0.004, folds, family)
        assert power.power_of_difference(seen, 0.004, folds, family) == pytest.approx(power.POWER)
    assert power.detectable(0.008, 5) == pytest.approx(2 * power.detectable(0.004, 5))


def test_equivalence_at_the_margin_itself_is_called_in_five_per_cent():
    assert power.power_of_equivalence(0.001, 5, MARGIN, MARGIN) == pytest.approx(LEVEL, abs=1e-4)


def test_the_largest_sd_for_equivalence_is_that_of_three_five_and_ten_folds():
    found = [100 * power.largest_sd(folds) for folds in (3, 5, 10)]
    assert found == pytest.approx([0.3145, 0.4772, 0.6387], abs=1e-4)
    assert power.power_of_equivalence(power.largest_sd(5), 5) == pytest.approx(power.POWER)
    assert power.largest_sd(5, 2 * MARGIN) == pytest.approx(2 * power.largest_sd(5))


def test_one_fold_decides_nothing():
    assert power.power_of_difference(0.5, 0.001, 1) == 0
    assert power.power_of_equivalence(0.0001, 1) == 0
    assert power.detectable(0.001, 1) is None and power.largest_sd(1) is None


def test_the_sd_of_a_fold_is_that_of_simulated_folds():
    for seeds in (1, 2, 4):
        drawn = calibration.simulate(PLANTED, 2, seeds, np.random.default_rng(seeds), 4000)
        simulated = drawn.mean((2, 3)).std()
        assert power.fold_sd(PLANTED, seeds, 26) == pytest.approx(simulated, rel=0.03)


def test_seeds_help_only_where_records_tell_runs_from_folds():
    one_seed = replace(PLANTED, run=0.0, case=0.0, seeds=1)
    assert power.fold_sd(one_seed, 2, 26) == power.fold_sd(one_seed, 1, 26)
    assert power.fold_sd(PLANTED, 2, 26) < power.fold_sd(PLANTED, 1, 26)
    assert power.fold_sd(one_seed, 1, 104) < power.fold_sd(one_seed, 1, 26)


def test_the_upper_limit_lies_above_the_true_sd_in_four_of_five_studies():
    measured = np.random.default_rng(0).normal(0, 1, (40_000, 5)).std(1, ddof=1)
    assert (measured * power.upper_factor(5) > 1).mean() == pytest.approx(0.8, abs=0.01)
