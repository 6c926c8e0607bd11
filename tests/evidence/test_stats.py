"""Statistics against scipy, hand arithmetic and small simulations."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from mvl.evidence import resampling, stats
from mvl.evidence.run_pairs import NoPairs, Pairs, StatsError, cases_and_seeds, pair
from mvl.evidence.stats import bootstrap, cohens_dz, compare, corrected_t, holm, tost, wilcoxon
from tests.evidence.made_pairs import pairs_of

ONE = (0, 0)


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
    pairs = pairs_of(first, second, third)
    assert np.allclose(pairs.fold_means, [0.02, 0.05, 0.02])
    assert [d.shape for d in pairs.folds] == [(2, 4), (1, 4), (3, 4)]
    assert bootstrap(pairs).difference == pytest.approx(0.03)
    spread = np.std([0.02, 0.05, 0.02], ddof=1)
    assert stats.standard_error(pairs) == pytest.approx(spread * math.sqrt(1 / 3 + 1 / 7))


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


def refused(function, *arguments, **named) -> str:
    """The words with which a StatsError refuses."""
    with pytest.raises(StatsError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def test_holes_are_named_and_odd_cases_refused() -> None:
    table = cases_of(
        {"new": {ONE: {"a": 0.9}, (0, 1): {"a": 0.8}}, "old": {ONE: {"a": 0.5}, (2, 0): {"z": 0.5}}}
    )
    assert pair(table, "new", "old", "task").unpaired == ((0, 1), (2, 0))
    many = cases_of({"new": {ONE: dict.fromkeys("agfedcb", 0.5)}, "old": {ONE: {"a": 0.5}}})
    for system, reference in (("new", "old"), ("old", "new")):
        assert refused(pair, many, system, reference, "task") == (
            f"task fold 0 seed 0: {system} and {reference} were not scored on the same cases:"
            " ['b', 'c', 'd', 'e', 'f']"
        )
    for odd in ("new", "old"):
        seeds = {ONE: {"a": 0.9}, (0, 1): {"a": 0.9}}
        arms = {"new": seeds, "old": seeds, odd: seeds | {(0, 1): {"b": 0.9}}}
        assert refused(pair, cases_of(arms), "new", "old", "task").startswith(
            "task fold 0 seed 1: new and old were not scored on the same cases: ['a', 'b']"
        )
    apart = cases_of({"new": {ONE: {"a": 0.9}}, "old": {(1, 1): {"a": 0.5}}})
    with pytest.raises(NoPairs) as caught:
        pair(apart, "new", "old", "task")
    assert str(caught.value) == (
        "new and old share no finished (fold, seed) on task at fraction 1.0"
    )


def test_every_part_of_a_pair_comes_from_its_own_rows() -> None:
    """Among other tasks, fractions, systems and metrics; units and cases in order."""
    units = [(1, 1), (0, 0), (1, 0), (2, 5)]
    rng = np.random.default_rng(0)
    scores = {
        arm: {unit: dict(zip("ca", rng.uniform(0, 1, 2))) for unit in units}
        for arm in ("new", "old")
    }
    wanted = cases_of(scores).rename(columns={"dice": "nsd"}).assign(fraction=0.3, dice=0.1)
    others = [wanted.assign(**change, nsd=0.9) for change in ({"task": "x"}, {"fraction": 1.0})]
    others.append(wanted[wanted["system"] == "new"].assign(system="third", nsd=0.9))
    table = pd.concat([*others, wanted]).sample(frac=1, random_state=0)
    found = pair(table, "new", "old", "task", 0.3, "nsd")
    named = (found.system, found.reference, found.task, found.fraction, found.metric)
    assert named == ("new", "old", "task", 0.3, "nsd") and found.planned == ()
    assert found.units == tuple(sorted(units)) and found.unpaired == ()
    for unit, differences in zip(found.units, found.differences):
        by_hand = [scores["new"][unit][case] - scores["old"][unit][case] for case in "ac"]
        assert differences.dtype == np.float64 and differences == pytest.approx(by_hand)
    assert [d.shape for d in found.folds] == [(1, 2), (2, 2), (1, 2)]
    assert (found.n_planned, found.complete, found.n_distinct, len(found.cases)) == (4, True, 6, 8)
    some = pair(table, "new", "old", "task", 0.3, "nsd", [(7, 7), (1, 0), (0, 0)])
    assert some.units == ((0, 0), (1, 0)) and some.planned == ((0, 0), (1, 0), (7, 7))
    assert (some.n_planned, some.complete, some.unpaired) == (3, False, ())
    usual = pair(cases_of(scores), "new", "old", "task")
    assert (usual.fraction, usual.metric, usual.planned) == (1.0, "dice", ())
    hole = pairs_of([0.1])
    hole = Pairs(
        *[getattr(hole, n) for n in ("system", "reference", "task", "fraction", "metric")],
        hole.units,
        hole.differences,
        ((1, 0), (2, 0)),
    )
    assert (hole.n_planned, hole.complete) == (3, False)


def test_how_many_cases_a_number_of_pairs_is_of() -> None:
    said = [cases_and_seeds(*n) for n in ((26, 26), (130, 260), (130, 261), (0, 5), (2, 6))]
    assert said == [
        "26 cases",
        "130 cases x 2 seeds",
        "261 pairs of 130 cases",
        "5 pairs of 0 cases",
        "2 cases x 3 seeds",
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    rows = cases_of({"new": {ONE: {"a": bad, "b": bad, "c": 0.1}}, "old": {ONE: {"a": 0.5}}})
    message = (
        "dice of new or old on task holds values that are not finite"
        if bad == math.inf
        else "dice is empty or NaN in 2 rows; a mean would leave them out in silence"
    )
    kept = rows if math.isnan(bad) else rows[rows["case"] == "a"]
    assert refused(pair, kept, "new", "old", "task") == message


def test_bootstrap_is_seeded_fast_and_centred() -> None:
    pairs = simulated(np.random.default_rng(0), 10, 26, 0.01, 0.03, 0.02)
    start = time.process_time()
    first = bootstrap(pairs)
    assert time.process_time() - start < 1
    assert first == bootstrap(pairs)
    assert first.difference == pytest.approx(np.mean([d.mean() for d in pairs.differences]))
    assert first.low < first.difference < first.high


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


def test_the_bootstrap_interval_is_quantiles_of_its_means() -> None:
    pairs = simulated(np.random.default_rng(8), 4, 6, 0.01, 0.03, 0.02)
    for named, resamples in (({}, 10_000), ({"resamples": 300}, 300)):
        means = resampling.hierarchical_means(pairs.folds, resamples)
        found = bootstrap(pairs, **named)
        wanted = np.percentile(means, [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx(wanted, rel=1e-9)


def test_without_a_second_fold_nothing_is_tested() -> None:
    one, seeds = pairs_of([0.01, 0.03, 0.02]), pairs_of(np.array([[0.01, 0.03], [0.02, 0.05]]))
    for pairs in (one, seeds):
        found = (corrected_t(pairs), tost(pairs), cohens_dz(pairs.fold_means))
        assert all(map(math.isnan, found))
        interval = bootstrap(pairs)
        assert interval.low < interval.high
        assert stats.shown_interval(pairs, interval) == (interval.low, interval.high)


def test_the_interval_that_is_shown_is_the_corrected_t_tests() -> None:
    pairs = pairs_of([0.01], [0.03], [0.02], [0.04])
    reach = scipy_stats.t.ppf(0.975, 3) * pairs.fold_means.std(ddof=1) * math.sqrt(1 / 4 + 1 / 7)
    found = stats.shown_interval(pairs, bootstrap(pairs))
    assert found == pytest.approx((0.025 - reach, 0.025 + reach))


def test_wilcoxon_is_scipys_over_the_cases_of_one_run() -> None:
    pairs = simulated(np.random.default_rng(4), 2, 20, 0.0, 0.02, 0.01)
    assert wilcoxon(pairs) == scipy_stats.wilcoxon(pairs.differences[0]).pvalue
    assert wilcoxon(pairs_of([0.0, 0.0])) == 1


def test_corrected_t_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of([0.01], [0.03], [0.02], [0.04])
    t = 0.025 / (pairs.fold_means.std(ddof=1) * math.sqrt(1 / 4 + 1 / 7))
    assert corrected_t(pairs) == pytest.approx(2 * scipy_stats.t.sf(t, 3))
    few = replace(pairs_of([0.01], [0.03]), fraction=0.1)
    assert stats.standard_error(few) == pytest.approx(
        few.fold_means.std(ddof=1) * math.sqrt(1 / 2 + 1 / 7)
    )
    assert corrected_t(pairs_of([0.0], [0.0])) == 1
    assert corrected_t(pairs_of([-0.25], [-0.25])) == 0
    assert corrected_t(pairs_of([-0.01], [-0.03], [-0.02], [-0.04])) == pytest.approx(
        corrected_t(pairs)
    )
    monkeypatch.setattr(stats, "error_factor", uncorrected)
    expected = scipy_stats.ttest_1samp(pairs.fold_means, 0)
    assert corrected_t(pairs) == pytest.approx(expected.pvalue)


def uncorrected(folds: int) -> float:
    """The factor of a standard error where folds have no training case in common."""
    return 1 / math.sqrt(folds)


def test_false_positives_cases_against_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No effect, one run's shift shared by its cases: Wilcoxon over cases errs often, the test over
    folds about as often as it says."""
    monkeypatch.setattr(stats, "error_factor", uncorrected)
    rng, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(300):
        pairs = simulated(rng, 5, 20, 0.014, 0.03)
        naive, ours = naive + (wilcoxon(pairs) < 0.05), ours + (corrected_t(pairs) < 0.05)
    assert naive / 300 > 0.12
    assert 0.02 <= ours / 300 <= 0.09


def test_equivalence() -> None:
    """The larger of two one-sided p-values, by hand, on either side of zero."""
    same = pairs_of([0.001], [-0.001], [0.0], [0.0005])
    shifted = pairs_of([0.02], [0.022], [0.021], [0.019])
    below = pairs_of([-0.02], [-0.022], [-0.021], [-0.019])
    for pairs in (same, shifted, below):
        for named, margin in (({}, 0.01), ({"margin": 0.03}, 0.03)):
            spread = pairs.fold_means.std(ddof=1) * math.sqrt(1 / 4 + 1 / 7)
            t = (margin - abs(pairs.fold_means.mean())) / spread
            assert tost(pairs, **named) == pytest.approx(scipy_stats.t.sf(t, 3))
    assert tost(same) < 0.01 and tost(shifted) > 0.99
    assert (tost(pairs_of([0.02], [0.02])), tost(pairs_of([0.0], [0.0]))) == (1, 0)
    assert tost(pairs_of([0.01], [0.01])) == 0.5
    for margin in (0.0, -0.01, math.nan):
        message = f"the equivalence margin must be positive, got {margin}"
        assert refused(tost, same, margin=margin) == message


def test_cohens_dz() -> None:
    assert cohens_dz(np.array([0.1, 0.3])) == pytest.approx(0.2 / math.sqrt(0.02))
    assert math.isnan(cohens_dz(np.array([0.25, 0.25])))


def test_holm_is_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(7).uniform(0, 0.2, 9).tolist()
    assert holm(p) == multipletests(p, method="holm")[1].tolist()
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.0, 1.0]) == [0.0, 1.0] and holm([0.25]) == [0.25]
    for bad in ([0.1, 1.2], [-0.1, 0.5]):
        assert refused(holm, bad) == f"p-values must lie in [0, 1], got {bad}"


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
    table = stats.table([stats.row(each) for each in found])
    assert table["n_runs"].tolist() == [3, 1] and table["n_folds"].tolist() == [3, 1]
    assert table["planned"].tolist() == [3, 3] and table["complete"].tolist() == [True, False]
    assert table["unpaired"].tolist() == [0, 2]
    assert table["p_t"].isna().tolist() == [False, True]
    assert table["p_holm"][0] == pytest.approx(2 * table["p_t"][0]) and math.isnan(
        table["p_holm"][1]
    )
    empty = stats.table([])
    assert len(empty) == 0 and empty.columns.tolist() == table.columns.tolist()


def test_two_systems_that_cannot_be_compared_keep_their_row_and_count_in_the_family() -> None:
    rng, folds = np.random.default_rng(6), [(k, 0) for k in range(3)]
    cases = cases_of({"new": scores(0.05, rng, folds), "old": scores(0.0, rng, folds)})
    there = stats.row(compare(cases, "new", "old", "task"))
    table = stats.table([there, stats.hole("x", "old", "task", 1.0, "dice", 3, "no runs")])
    assert table["hole"].tolist() == ["", "no runs"] and table["n_runs"].tolist() == [3, 0]
    assert math.isnan(table["difference"][1]) and math.isnan(table["p_holm"][1])
    assert table["p_holm"][0] == pytest.approx(2 * table["p_t"][0])


def test_a_row_says_what_its_comparison_says() -> None:
    """Every column by its own way, of a metric and a fraction that are not the usual ones."""
    rng, units = np.random.default_rng(6), [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    arms = {"new": scores(0.02, rng, units), "old": scores(0.0, rng, [*units, (3, 0)])}
    cases = cases_of(arms).rename(columns={"dice": "nsd"}).assign(fraction=0.3)
    found = compare(cases, "new", "old", "task", 0.3, "nsd", 0.02, [*units, (3, 0), (3, 1)])
    pairs = pair(cases, "new", "old", "task", 0.3, "nsd", [*units, (3, 0), (3, 1)])
    interval, means = bootstrap(pairs), pairs.fold_means
    assert found.interval == interval and found.shown == stats.shown_interval(pairs, interval)
    assert (found.p_t, found.p_equivalence) == (corrected_t(pairs), tost(pairs, 0.02))
    assert (found.p_wilcoxon, found.dz) == (wilcoxon(pairs), cohens_dz(means))
    usual = compare(cases_of(arms), "new", "old", "task")
    assert (usual.pairs.fraction, usual.pairs.metric, usual.pairs.planned) == (1.0, "dice", ())
    assert usual.p_equivalence == tost(usual.pairs, 0.01)
    low, high = stats.shown_interval(pairs, interval)
    wanted = {
        "task": "task",
        "system": "new",
        "reference": "old",
        "fraction": 0.3,
        "metric": "nsd",
        "comparison": "new - old",
        "difference": means.mean(),
        "low": low,
        "high": high,
        "n_cases": 40,
        "n_distinct": 24,
        "n_runs": 5,
        "n_folds": 3,
        "planned": 7,
        "complete": False,
        "unpaired": 1,
        "boot_low": interval.low,
        "boot_high": interval.high,
        "p_t": corrected_t(pairs),
        "p_equivalence": tost(pairs, 0.02),
        "p_wilcoxon": wilcoxon(pairs),
        "dz": means.mean() / means.std(ddof=1),
        "p_holm": math.nan,
        "hole": "",
    }
    (row,) = stats.table([stats.row(found)]).to_dict("records")
    assert list(row) == list(wanted)
    for name, value in wanted.items():
        same = value if isinstance(value, str) else pytest.approx(value, nan_ok=True)
        assert row[name] == same, name


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
