"""Statistics against scipy, hand arithmetic and small simulations."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mvl import stats
from mvl.stats import Pairs, StatsError, bootstrap, cohens_dz, compare, corrected_t, holm, pair, paired_difference, tost, wilcoxon

ONE = (0, 0)


def pairs_of(*differences: list[float] | np.ndarray, fraction: float = 1.0) -> Pairs:
    arrays = tuple(np.asarray(d, float) for d in differences)
    return Pairs("new", "old", "task", fraction, "dice", tuple((k, 0) for k in range(len(arrays))), arrays, ())


def cases_of(arms: dict[str, dict[tuple[int, int], dict[str, float]]], label: str = "foreground") -> pd.DataFrame:
    rows = [("task", system, 1.0, fold, seed, case, label, dice)
            for system, units in arms.items() for (fold, seed), scores in units.items() for case, dice in scores.items()]
    return pd.DataFrame(rows, columns=["task", "system", "fraction", "fold", "seed", "case", "label", "dice"])


def simulated(rng: np.random.Generator, units: int, cases: int, unit_sd: float, case_sd: float, effect: float = 0.0) -> Pairs:
    return pairs_of(*(effect + rng.normal(0, unit_sd) + rng.normal(0, case_sd, cases) for _ in range(units)))


def test_pairs_by_case_not_by_row_order() -> None:
    new = {ONE: {"a": 0.9, "b": 0.5}, (1, 0): {"c": 0.7}}
    table = cases_of({"new": new, "old": {(1, 0): {"c": 0.6}, ONE: {"b": 0.1, "a": 0.8}}})
    pairs = pair(table, "new", "old", "task")
    assert pairs.units == (ONE, (1, 0))
    assert np.allclose(pairs.differences[0], [0.1, 0.4])
    assert np.allclose(pairs.unit_means, [0.25, 0.1])


def test_mean_over_labels_comes_first() -> None:
    front = cases_of({"new": {ONE: {"a": 0.9}}, "old": {ONE: {"a": 0.5}}}, "front")
    back = cases_of({"new": {ONE: {"a": 0.7}}, "old": {ONE: {"a": 0.5}}}, "back")
    assert pair(pd.concat([front, back]), "new", "old", "task").cases == pytest.approx([0.3])


def test_holes_are_named_and_odd_cases_refused() -> None:
    table = cases_of({"new": {ONE: {"a": 0.9}, (0, 1): {"a": 0.8}}, "old": {ONE: {"a": 0.5}, (2, 0): {"z": 0.5}}})
    assert pair(table, "new", "old", "task").unpaired == ((0, 1), (2, 0))
    with pytest.raises(StatsError, match=r"same cases.*'b'"):
        pair(cases_of({"new": {ONE: {"a": 0.9, "b": 0.3}}, "old": {ONE: {"a": 0.5}}}), "new", "old", "task")
    with pytest.raises(StatsError, match="share no finished"):
        pair(cases_of({"new": {ONE: {"a": 0.9}}, "old": {(1, 1): {"a": 0.5}}}), "new", "old", "task")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(StatsError):
        pair(cases_of({"new": {ONE: {"a": bad}}, "old": {ONE: {"a": 0.5}}}), "new", "old", "task")


def test_bootstrap_is_seeded_fast_and_centred() -> None:
    pairs = simulated(np.random.default_rng(0), 10, 26, 0.01, 0.03, 0.02)
    start = time.process_time()
    first = bootstrap(pairs)
    assert time.process_time() - start < 1
    assert first == bootstrap(pairs)
    assert first.difference == pytest.approx(pairs.unit_means.mean())
    assert first.low < first.difference < first.high
    assert (first.n_units, first.n_cases) == (10, 260)


def test_bootstrap_spread_is_that_of_both_levels() -> None:
    """Variance of the bootstrap means = between-unit variance / U + mean of case variances / (n U), computed by hand; unequal n."""
    rng = np.random.default_rng(1)
    pairs = pairs_of(rng.normal(0.00, 0.02, 30), rng.normal(0.03, 0.05, 7), rng.normal(0.05, 0.01, 19))
    means = stats.hierarchical_means(pairs.differences, 40_000, np.random.default_rng(2))
    within = np.mean([d.var() / len(d) for d in pairs.differences])
    assert means.var() == pytest.approx((pairs.unit_means.var() + within) / 3, rel=0.03)
    assert means.mean() == pytest.approx(pairs.unit_means.mean(), abs=1e-3)


def test_bootstrap_coverage() -> None:
    """With 10 units the 95 % interval holds the truth about nine times in ten; over cases alone it does so far more rarely."""
    rng, hits, naive = np.random.default_rng(3), 0, 0
    for _ in range(200):
        pairs = simulated(rng, 10, 10, 0.02, 0.02)
        found = bootstrap(pairs, resamples=400)
        flat = bootstrap(pairs_of(pairs.cases), resamples=400)
        hits, naive = hits + (found.low <= 0 <= found.high), naive + (flat.low <= 0 <= flat.high)
    assert 0.86 <= hits / 200 <= 0.99
    assert naive < hits - 40


def test_one_run_invents_nothing() -> None:
    pairs = pairs_of([0.01, 0.03, 0.02])
    assert "cases only" in bootstrap(pairs).over
    for found in (corrected_t(pairs), tost(pairs)):
        assert (found.p, found.statistic, found.n, found.note) == (None, None, 1, stats.ONE_RUN)
    assert cohens_dz(pairs.unit_means).dz is None


def test_wilcoxon_is_scipys() -> None:
    pairs = simulated(np.random.default_rng(4), 2, 20, 0.0, 0.02, 0.01)
    expected = scipy_stats.wilcoxon(pairs.cases)
    assert (wilcoxon(pairs).statistic, wilcoxon(pairs).p, wilcoxon(pairs).n) == (expected.statistic, expected.pvalue, 40)
    assert wilcoxon(pairs_of([0.0, 0.0])).p == 1
    assert "papers" in wilcoxon(pairs).name


def test_corrected_t_by_hand() -> None:
    pairs = pairs_of([0.01], [0.03], [0.02], [0.04])
    expected = scipy_stats.ttest_1samp(pairs.unit_means, 0)
    assert corrected_t(pairs, 0.0).p == pytest.approx(expected.pvalue)
    t = 0.025 / (pairs.unit_means.std(ddof=1) * math.sqrt(1 / 4 + 1 / 7))
    assert corrected_t(pairs).statistic == pytest.approx(t)
    assert corrected_t(pairs).p == pytest.approx(2 * scipy_stats.t.sf(t, 3))
    few = pairs_of([0.01], [0.03], fraction=0.1)
    assert stats.standard_error(few) == pytest.approx(few.unit_means.std(ddof=1) * math.sqrt(1 / 2 + 10 / 7))
    assert corrected_t(pairs_of([0.0], [0.0])).p == 1
    assert corrected_t(pairs_of([0.1], [0.1])).p == 0
    assert corrected_t(pairs_of([-0.01], [-0.03], [-0.02], [-0.04])).p == pytest.approx(corrected_t(pairs).p)


def test_false_positives_cases_against_runs() -> None:
    """No effect, one seed's shift shared by its cases: Wilcoxon over cases errs often, the test over runs about as often as it says."""
    rng, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(300):
        pairs = simulated(rng, 5, 20, 0.014, 0.03)
        naive, ours = naive + (wilcoxon(pairs).p < 0.05), ours + (corrected_t(pairs, 0.0).p < 0.05)
    assert naive / 300 > 0.12
    assert 0.02 <= ours / 300 <= 0.09


def test_equivalence() -> None:
    same, shifted = pairs_of([0.001], [-0.001], [0.0], [0.0005]), pairs_of([0.02], [0.022], [0.021], [0.019])
    assert tost(same).p < 0.01
    assert tost(shifted).p > 0.99
    assert tost(same, margin=0.0001).p > 0.3
    t = (0.01 - abs(same.unit_means.mean())) / stats.standard_error(same)
    assert tost(same).p == pytest.approx(scipy_stats.t.sf(t, 3))
    assert tost(pairs_of([0.02], [0.02])).p == 1
    assert tost(pairs_of([0.0], [0.0])).p == 0
    with pytest.raises(StatsError, match="margin"):
        tost(same, margin=0.0)


def test_cohens_dz() -> None:
    assert cohens_dz(np.array([0.1, 0.3])).dz == pytest.approx(0.2 / math.sqrt(0.02))
    assert cohens_dz(np.array([0.1, 0.1])).dz is None


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(StatsError):
        holm([0.1, math.nan])


def test_compare_table_and_figure_row() -> None:
    rng = np.random.default_rng(6)
    score = lambda shift: {(k, 0): {f"c{i}": float(np.clip(0.8 + shift + rng.normal(0, 0.02), 0, 1)) for i in range(8)} for k in range(3)}
    cases = cases_of({"new": score(0.05), "old": score(0.0), "single": {ONE: {f"c{i}": 0.8 for i in range(8)}}})
    table = stats.table([compare(cases, "new", "old", "task"), compare(cases, "single", "old", "task")])
    assert table["n_runs"].tolist() == [3, 1]
    assert table["unpaired"].tolist() == [0, 2]
    assert table["p_t"].isna().tolist() == [False, True]
    row = paired_difference(cases, "new", "old")
    assert row == {key: table.iloc[0][key] for key in ("difference", "low", "high", "n_cases", "n_runs")}
    with pytest.raises(StatsError, match="one task and fraction"):
        paired_difference(pd.concat([cases, cases.assign(task="other")]), "new", "old")
