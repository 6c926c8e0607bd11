"""Statistics against scipy, hand arithmetic and small simulations."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mvl.evidence import resampling, stats
from mvl.evidence.run_pairs import Pairs, StatsError, pair
from mvl.evidence.stats import bootstrap, cohens_dz, compare, corrected_t, holm, tost, wilcoxon

ONE = (0, 0)


def pairs_of(*differences: list[float] | np.ndarray, fraction: float = 1.0) -> Pairs:
    arrays = tuple(np.asarray(d, float) for d in differences)
    return Pairs(
        "new",
        "old",
        "task",
        fraction,
        "dice",
        tuple((k, 0) for k in range(len(arrays))),
        arrays,
        (),
    )


def crossed(*folds: np.ndarray) -> Pairs:
    """Folds given as (seeds, cases)."""
    units = tuple((k, s) for k, fold in enumerate(folds) for s in range(len(fold)))
    return Pairs(
        "new", "old", "task", 1.0, "dice", units, tuple(row for fold in folds for row in fold), ()
    )


def cases_of(
    arms: dict[str, dict[tuple[int, int], dict[str, float]]], label: str = "foreground"
) -> pd.DataFrame:
    rows = [
        ("task", system, 1.0, fold, seed, case, label, dice)
        for system, units in arms.items()
        for (fold, seed), scores in units.items()
        for case, dice in scores.items()
    ]
    return pd.DataFrame(
        rows, columns=["task", "system", "fraction", "fold", "seed", "case", "label", "dice"]
    )


def simulated(
    rng: np.random.Generator,
    units: int,
    cases: int,
    unit_sd: float,
    case_sd: float,
    effect: float = 0.0,
) -> Pairs:
    return pairs_of(
        *(effect + rng.normal(0, unit_sd) + rng.normal(0, case_sd, cases) for _ in range(units))
    )


def test_pairs_by_case_not_by_row_order() -> None:
    new = {ONE: {"a": 0.9, "b": 0.5}, (1, 0): {"c": 0.7}}
    table = cases_of({"new": new, "old": {(1, 0): {"c": 0.6}, ONE: {"b": 0.1, "a": 0.8}}})
    pairs = pair(table, "new", "old", "task")
    assert pairs.units == (ONE, (1, 0))
    assert np.allclose(pairs.differences[0], [0.1, 0.4])
    assert np.allclose([d.mean() for d in pairs.differences], [0.25, 0.1])


def test_a_fold_is_one_unit_whatever_its_seeds() -> None:
    first, second, third = np.full((2, 4), 0.02), np.full((1, 4), 0.05), np.full((3, 4), 0.02)
    pairs = crossed(first, second, third)
    assert np.allclose(pairs.fold_means, [0.02, 0.05, 0.02])
    assert [d.shape for d in pairs.folds] == [(2, 4), (1, 4), (3, 4)]
    assert bootstrap(pairs).difference == pytest.approx(0.03) and bootstrap(pairs).n_units == 6
    assert (corrected_t(pairs).n, tost(pairs).n) == (3, 3)


def test_planned_pairs_make_the_holes() -> None:
    grid = ((0, 0), (0, 1), (1, 0))
    scores = {u: {"a": 0.9} for u in (*grid, (4, 0))}
    table = cases_of({"new": scores, "old": {u: {"a": 0.8} for u in ((0, 0), (1, 0), (4, 0))}})
    pairs = pair(table, "new", "old", "task", planned=grid)
    assert pairs.units == ((0, 0), (1, 0)) and pairs.unpaired == ((0, 1),)
    assert (pairs.n_planned, pairs.complete) == (3, False)
    both_lack = pair(table[table["seed"] == 0], "new", "old", "task", planned=grid)
    assert both_lack.unpaired == () and not both_lack.complete
    assert pair(table, "new", "old", "task", planned=((0, 0), (1, 0))).complete


def test_mean_over_labels_comes_first() -> None:
    front = cases_of({"new": {ONE: {"a": 0.9}}, "old": {ONE: {"a": 0.5}}}, "front")
    back = cases_of({"new": {ONE: {"a": 0.7}}, "old": {ONE: {"a": 0.5}}}, "back")
    assert pair(pd.concat([front, back]), "new", "old", "task").cases == pytest.approx([0.3])


def test_holes_are_named_and_odd_cases_refused() -> None:
    table = cases_of(
        {"new": {ONE: {"a": 0.9}, (0, 1): {"a": 0.8}}, "old": {ONE: {"a": 0.5}, (2, 0): {"z": 0.5}}}
    )
    assert pair(table, "new", "old", "task").unpaired == ((0, 1), (2, 0))
    with pytest.raises(StatsError, match=r"same cases.*'b'"):
        pair(
            cases_of({"new": {ONE: {"a": 0.9, "b": 0.3}}, "old": {ONE: {"a": 0.5}}}),
            "new",
            "old",
            "task",
        )
    seeds = {ONE: {"a": 0.9}, (0, 1): {"b": 0.9}}
    with pytest.raises(StatsError, match=r"fold 0 seed 1.*same cases"):
        pair(cases_of({"new": seeds, "old": seeds}), "new", "old", "task")
    with pytest.raises(StatsError, match="share no finished"):
        pair(
            cases_of({"new": {ONE: {"a": 0.9}}, "old": {(1, 1): {"a": 0.5}}}), "new", "old", "task"
        )


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
    assert first.difference == pytest.approx(np.mean([d.mean() for d in pairs.differences]))
    assert first.low < first.difference < first.high
    assert (first.n_units, first.n_cases) == (10, 260)


def test_bootstrap_spread_is_that_of_every_level() -> None:
    """Variance = (between folds + mean over folds of that of seeds, cases and both) / folds, by
    hand; folds of unequal shape."""
    rng = np.random.default_rng(1)
    folds = [
        rng.normal(mean, 0.02, (seeds, 1)) + rng.normal(0, 0.03, (seeds, n))
        for mean, seeds, n in ((0.0, 2, 30), (0.03, 3, 7), (0.05, 1, 19))
    ]
    means = resampling.hierarchical_means(folds, 40_000, 2)
    seeds_, cases_ = ([d.mean(axis).var() / d.shape[1 - axis] for d in folds] for axis in (1, 0))
    both = [(d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()).var() / d.size for d in folds]
    centre = np.array([d.mean() for d in folds])
    assert means.var() == pytest.approx(
        (centre.var() + np.mean(np.add(seeds_, cases_)) + np.mean(both)) / 3, rel=0.03
    )
    assert means.mean() == pytest.approx(centre.mean(), abs=1e-3)


def test_bootstrap_coverage() -> None:
    """With 10 units the 95 % interval holds the truth about nine times in ten; over cases alone it
    does so far more rarely."""
    rng, hits, naive = np.random.default_rng(3), 0, 0
    for _ in range(100):
        pairs = simulated(rng, 10, 10, 0.02, 0.02)
        found = bootstrap(pairs, resamples=400)
        flat = bootstrap(pairs_of(pairs.cases), resamples=400)
        hits, naive = hits + (found.low <= 0 <= found.high), naive + (flat.low <= 0 <= flat.high)
    assert 0.84 <= hits / 100 <= 0.99
    assert naive < hits - 20


def test_one_run_invents_nothing() -> None:
    pairs = pairs_of([0.01, 0.03, 0.02])
    assert "cases only" in bootstrap(pairs).over
    for found in (corrected_t(pairs), tost(pairs)):
        assert (found.p, found.statistic, found.n, found.note) == (None, None, 1, stats.ONE_RUN)
    assert cohens_dz(pairs.fold_means).dz is None


def test_several_seeds_of_one_fold_say_nothing_of_others() -> None:
    pairs = crossed(np.array([[0.01, 0.03], [0.02, 0.05], [0.02, 0.02]]))
    assert stats.ONE_FOLD in bootstrap(pairs).over and "seeds and cases" in bootstrap(pairs).over
    assert (corrected_t(pairs).p, tost(pairs).p, corrected_t(pairs).note) == (
        None,
        None,
        stats.ONE_FOLD,
    )


def test_wilcoxon_is_scipys_over_the_cases_of_one_run() -> None:
    pairs = simulated(np.random.default_rng(4), 2, 20, 0.0, 0.02, 0.01)
    expected = scipy_stats.wilcoxon(pairs.differences[0])
    assert (wilcoxon(pairs).statistic, wilcoxon(pairs).p, wilcoxon(pairs).n) == (
        expected.statistic,
        expected.pvalue,
        20,
    )
    assert wilcoxon(pairs_of([0.0, 0.0])).p == 1
    assert "papers" in wilcoxon(pairs).name and "fold 0 seed 0" in wilcoxon(pairs).name


def test_corrected_t_by_hand() -> None:
    pairs = pairs_of([0.01], [0.03], [0.02], [0.04])
    expected = scipy_stats.ttest_1samp(pairs.fold_means, 0)
    assert corrected_t(pairs, 0.0).p == pytest.approx(expected.pvalue)
    t = 0.025 / (pairs.fold_means.std(ddof=1) * math.sqrt(1 / 4 + 1 / 7))
    assert corrected_t(pairs).statistic == pytest.approx(t)
    assert corrected_t(pairs).p == pytest.approx(2 * scipy_stats.t.sf(t, 3))
    few = pairs_of([0.01], [0.03], fraction=0.1)
    assert stats.standard_error(few) == pytest.approx(
        few.fold_means.std(ddof=1) * math.sqrt(1 / 2 + 1 / 7)
    )
    assert corrected_t(pairs_of([0.0], [0.0])).p == 1
    assert corrected_t(pairs_of([0.1], [0.1])).p == 0
    assert corrected_t(pairs_of([-0.01], [-0.03], [-0.02], [-0.04])).p == pytest.approx(
        corrected_t(pairs).p
    )


def test_false_positives_cases_against_runs() -> None:
    """No effect, one run's shift shared by its cases: Wilcoxon over cases errs often, the test over
    folds about as often as it says."""
    rng, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(300):
        pairs = simulated(rng, 5, 20, 0.014, 0.03)
        naive, ours = naive + (wilcoxon(pairs).p < 0.05), ours + (corrected_t(pairs, 0.0).p < 0.05)
    assert naive / 300 > 0.12
    assert 0.02 <= ours / 300 <= 0.09


def test_equivalence() -> None:
    same, shifted = (
        pairs_of([0.001], [-0.001], [0.0], [0.0005]),
        pairs_of([0.02], [0.022], [0.021], [0.019]),
    )
    assert tost(same).p < 0.01
    assert tost(shifted).p > 0.99
    assert tost(same, margin=0.0001).p > 0.3
    t = (0.01 - abs(same.fold_means.mean())) / stats.standard_error(same)
    assert tost(same).p == pytest.approx(scipy_stats.t.sf(t, 3))
    assert tost(pairs_of([0.02], [0.02])).p == 1
    assert tost(pairs_of([0.0], [0.0])).p == 0
    with pytest.raises(StatsError, match="margin"):
        tost(same, margin=0.0)


def test_cohens_dz() -> None:
    assert cohens_dz(np.array([0.1, 0.3])).dz == pytest.approx(0.2 / math.sqrt(0.02))
    assert cohens_dz(np.array([0.1, 0.1])).dz is None


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(7).uniform(0, 0.2, 9).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(StatsError):
        holm([0.1, 1.2])


def test_a_hole_counts_and_filling_it_raises_no_other_p() -> None:
    assert holm([0.01, math.nan, math.nan])[0] == pytest.approx(0.03) and math.isnan(
        holm([0.01, math.nan])[1]
    )
    before = holm([0.01, 0.02, math.nan])
    for late in (0.0, 0.005, 0.015, 0.5, 1.0):
        after = holm([0.01, 0.02, late])
        assert after[0] <= before[0] + 1e-12 and after[1] <= before[1] + 1e-12


def scores(
    shift: float, rng: np.random.Generator, units: list[tuple[int, int]]
) -> dict[tuple[int, int], dict[str, float]]:
    return {
        u: {f"c{i}": float(np.clip(0.8 + shift + rng.normal(0, 0.02), 0, 1)) for i in range(8)}
        for u in units
    }


def test_compare_and_table() -> None:
    rng, folds = np.random.default_rng(6), [(k, 0) for k in range(3)]
    arms = {
        "new": scores(0.05, rng, folds),
        "old": scores(0.0, rng, folds),
        "single": scores(0.0, rng, [ONE]),
    }
    found = [
        compare(cases_of(arms), name, "old", "task", planned=folds) for name in ("new", "single")
    ]
    table = stats.table(found)
    assert table["n_runs"].tolist() == [3, 1] and table["n_folds"].tolist() == [3, 1]
    assert table["planned"].tolist() == [3, 3] and table["complete"].tolist() == [True, False]
    assert table["unpaired"].tolist() == [0, 2]
    assert table["p_t"].isna().tolist() == [False, True]
    assert table["p_holm"][0] == pytest.approx(2 * table["p_t"][0]) and math.isnan(
        table["p_holm"][1]
    )
    assert not stats.table([]).columns.difference(table.columns).any()


def test_a_family_is_one_metric_of_planned_contrasts() -> None:
    rows = pd.DataFrame(
        {
            "metric": ["dice"] * 3 + ["jaccard"] * 2,
            "p_t": [0.01, math.nan, 0.02, 0.01, 0.04],
            "planned": [3, 3, 0, 3, 3],
            "complete": [True, False, False, True, True],
        }
    )
    assert stats.adjust(rows)["p_holm"].tolist() == pytest.approx(
        [0.02, math.nan, math.nan, 0.02, 0.04], nan_ok=True
    )
    interim = rows.assign(p_t=[0.01, 0.001, 0.02, 0.01, 0.04])
    assert stats.adjust(interim)["p_holm"].tolist() == pytest.approx(
        [0.02, math.nan, math.nan, 0.02, 0.04], nan_ok=True
    )
