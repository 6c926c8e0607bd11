"""Chance, reach and picking are what simulation, scipy and closed forms say; the grid is whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mvl.evidence import reported_evidence
from mvl.evidence.reported_evidence import COMPARISONS, Comparison, EvidenceError


def test_the_probability_is_that_of_a_paired_t_test_of_scores_with_these_moments():
    generator = np.random.default_rng(0)
    scores = generator.multivariate_normal([0.8, 0.77], [[0.0025, 0.001], [0.001, 0.0016]], 12)
    ours, theirs = scores.T
    correlation = float(np.corrcoef(ours, theirs)[0, 1])
    sds = float(ours.std(ddof=1)), float(theirs.std(ddof=1))
    found = reported_evidence.false_claim(float((ours - theirs).mean()), *sds, 12, correlation)
    expected = stats.ttest_rel(ours, theirs, alternative="greater").pvalue
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("gain", "sds", "n", "correlation", "expected"),
    [
        (0.13, (0.04, 0.05), 10, 0.0, 6e-5),
        (0.05, (0.05, 0.05), 10, 0.0, 0.026),
        (0.05, (0.05, 0.05), 10, 0.5, 0.006),
        (0.05, (0.05, 0.05), 10, 0.8, 0.0004),
        (0.02, (0.04, 0.05), 10, 0.5, 0.10),
        (0.0, (0.04, 0.05), 10, 0.5, 0.5),
    ],
)
def test_known_values_of_the_probability(gain, sds, n, correlation, expected):
    assert reported_evidence.false_claim(gain, *sds, n, correlation) == pytest.approx(
        expected, rel=0.1
    )


@pytest.mark.parametrize(
    ("sds", "n", "correlation"),
    [
        ((1.0, 1.0), 1, 0.0),
        ((1.0, 1.0), 9, 1.1),
        ((1.0, 1.0), 9, 1.0),
        ((0.0, 0.0), 9, 0.0),
    ],
)
def test_what_cannot_be_asked_is_refused(sds, n, correlation):
    with pytest.raises(EvidenceError):
        reported_evidence.false_claim(0.1, *sds, n, correlation)


@pytest.mark.parametrize("n", range(1, 13))
def test_the_smallest_p_is_scipys_when_all_differences_point_one_way(n):
    exact = stats.wilcoxon(np.arange(1, n + 1), method="exact").pvalue
    assert reported_evidence.smallest_p(n) == pytest.approx(float(exact))


def test_a_test_set_without_cases_is_refused():
    with pytest.raises(EvidenceError):
        reported_evidence.smallest_p(0)


def test_comparisons_in_reach_are_those_of_test_sets_large_enough():
    assert reported_evidence.in_reach([2, 3, 4, 5, 6, 48], 6) == 12
    assert reported_evidence.in_reach([6, 11, 12], 6, 0.05 / 60) == 6


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (15, 1.7359)],
)
def test_the_expected_maximum_is_the_closed_form(k, expected):
    assert reported_evidence.expected_maximum(k) == pytest.approx(expected, abs=1e-4)


def test_the_largest_of_no_draw_is_refused():
    with pytest.raises(EvidenceError):
        reported_evidence.expected_maximum(0)


def test_picking_agrees_with_simulation():
    values = [1.0, 2.0, 3.0, 4.0, 5.5]
    found = reported_evidence.picked(values)
    mean, sd = np.mean(values), np.std(values, ddof=1)
    best = np.random.default_rng(1).normal(mean, sd, (200_000, 5)).max(axis=1)
    assert (found.k, found.best) == (5, 5.5)
    assert (found.mean, found.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert found.expected == pytest.approx(best.mean(), abs=0.02)
    assert found.chance == pytest.approx((best >= 5.5).mean(), abs=0.01)


def test_a_further_draw_is_as_low_as_simulation_says():
    generator = np.random.default_rng(2)
    draws = generator.normal(0, 1, (100_000, 6))
    values, further = draws[:, :5], draws[:, 5]
    error = values.std(axis=1, ddof=1) * math.sqrt(1.2)
    statistic = (further - values.mean(axis=1)) / error
    example = [0.3, -0.2, 1.0, 0.5, 0.1]
    single = float(np.mean(example) - 2 * np.std(example, ddof=1))
    expected = (statistic <= -2 / math.sqrt(1.2)).mean()
    assert reported_evidence.as_low(example, single) == pytest.approx(expected, abs=0.003)


def test_the_paired_interval_is_scipys():
    ours, theirs = [1.0, 2.5, 3.0, 2.0], [0.5, 2.0, 3.5, 1.0]
    mean, low, high = reported_evidence.paired_interval(ours, theirs)
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.375, interval.low, interval.high))


def test_cases_needed_are_the_fewest():
    n = reported_evidence.cases_needed(0.85, 15.8)
    chances = [stats.t.cdf(-math.sqrt(k) * 0.85 / 15.8, k - 1) for k in (n - 1, n)]
    assert chances[1] < 0.05 <= chances[0]
    with pytest.raises(EvidenceError):
        reported_evidence.cases_needed(0.0, 1.0)


def test_a_smaller_distance_is_a_gain():
    by_claim = {comparison.claim: comparison for comparison in COMPARISONS}
    assert reported_evidence.gain(by_claim["mean_hd95"]) == pytest.approx(4.2)
    assert reported_evidence.gain(by_claim["mean_dice"]) == pytest.approx(0.13)


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.words)
def test_every_grid_is_whole(comparison):
    points = reported_evidence.grid(comparison)
    pictures = comparison.paper == "P2"
    correlations = (
        reported_evidence.PICTURE_CORRELATIONS if pictures else reported_evidence.TASK_CORRELATIONS
    )
    spread = reported_evidence.PICTURE_SDS if pictures else reported_evidence.TASK_SDS
    sides = (comparison.ours, comparison.theirs)
    reported = [reported_evidence.one(comparison, side)[1] for side in sides]
    pairs = len(spread) if any(map(math.isnan, reported)) else 1
    assert len({(p.sd_ours, p.sd_theirs, p.correlation) for p in points}) == len(points)
    assert len(points) == pairs * len(correlations)
    for known, name in zip(reported, ("sd_ours", "sd_theirs")):
        expected = spread if math.isnan(known) else (known,)
        assert sorted({getattr(p, name) for p in points}) == sorted(expected)
    assert all(0 < p.probability < 0.5 for p in points), "every one of them claims a gain"


def test_a_number_that_is_not_there_is_named():
    wrong = Comparison("", "", "P1", "average", "MedVisionLlama", "Nobody", "dice")
    with pytest.raises(EvidenceError, match="0 rows of Nobody"):
        reported_evidence.grid(wrong)
