"""The second protocol's designs hold what they say: 5 % for a family, 95 % for an interval; and the
count agrees with the functions that test and print."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mvl.evidence import calibration_families, second_study, stats
from mvl.evidence.calibration import CORRELATION, Components
from mvl.evidence.calibration_families import DESIGNS, SIZES
from mvl.evidence.power_plan import contrasts
from tests.evidence.made_pairs import pairs_of

PLANTED = Components(
    fold=0.2e-4, run=0.1e-4, case=0.5e-4, residual=1e-4, folds=5, seeds=2, cases=12
)


@pytest.mark.parametrize(("folds", "seeds"), DESIGNS)
@pytest.mark.parametrize("family", SIZES)
def test_five_per_cent_are_held_and_intervals_cover(folds: int, seeds: int, family: int) -> None:
    found = calibration_families.rates(PLANTED, folds, seeds, family)
    assert found.called <= 0.056
    assert 0.93 <= found.covered <= 0.97
    assert found.called_independent < found.called
    if family == 1:
        assert found.called >= 0.044, "alone the test is exact, not shy"


def test_without_the_correction_neither_would_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_families, "TEST_OVER_TRAIN", 0.0)
    found = calibration_families.rates(PLANTED, 5, 2, 1, 4000)
    assert found.called > 0.08 and found.covered < 0.92


def test_contrasts_of_a_family_share_half_their_variance_and_keep_it_whole() -> None:
    means = calibration_families.family_means(PLANTED, 4, 2, 3, 4000, 0.0)
    first, second = means[:, 0].ravel(), means[:, 1].ravel()
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.5, abs=0.03)
    assert first.var() == pytest.approx(PLANTED.of_fold_mean(2, 12), rel=0.05)


def test_the_count_is_that_of_the_test_and_the_interval_that_are_printed() -> None:
    size, folds = 3, 5
    found = calibration_families.rates(PLANTED, folds, 1, size, 40)
    means = calibration_families.family_means(PLANTED, folds, 1, size, 40, CORRELATION)
    called: list[bool] = []
    covered: list[bool] = []
    interval = None
    for study in means:
        p_values = []
        for values in study:
            pairs = pairs_of(*([value] for value in values))
            p_values.append(stats.corrected_t(pairs))
            # Of several folds it takes the mean alone; the bootstrap's ends are for one fold.
            interval = interval or stats.bootstrap(pairs, 10)
            mean = replace(interval, difference=float(values.mean()))
            low, high = stats.shown_interval(pairs, mean)
            covered.append(low <= 0 <= high)
        called.append(min(stats.holm(p_values)) < 0.05)
    assert found.called == pytest.approx(np.mean(called))
    assert found.covered == pytest.approx(np.mean(covered))


def test_these_are_the_designs_and_families_of_the_protocol() -> None:
    planned = {
        (len({fold for fold, _ in c.units}), len(c.units) // len({fold for fold, _ in c.units}))
        for study in second_study.STUDIES
        for c in contrasts(study)
    }
    assert planned == set(DESIGNS)
    assert {len(family.contrasts) for family in second_study.FAMILIES} == set(SIZES)


def test_the_table_has_every_design() -> None:
    text = calibration_families.table(PLANTED, 200)
    assert [f"| {f} x {s} | {size} |" in text for f, s in DESIGNS for size in SIZES] == [True] * 9
