"""What a rule sees: the planned pairs, the runs that are missing, and tests corrected over the
whole family."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mvl.evidence import claims_evidence, claims_tests, run_pairs, stats
from mvl.evidence.topics import HYBRID, RANDOM, VIT
from tests.evidence.made_claim import CLAIM

pytestmark = pytest.mark.usefixtures("few_resamples")
TASK = "Task04_Hippocampus"
ARMS = {VIT: [0.5, 0.52, 0.49], HYBRID: [0.6, 0.61, 0.6], RANDOM: [0.55, 0.53, 0.56]}


def test_planned_units_are_those_of_every_system(evidence):
    records = evidence(ARMS, folds=3)
    records.plan.drop(
        records.plan[(records.plan["system"] == HYBRID) & (records.plan["fold"] == 2)].index,
        inplace=True,
    )
    assert claims_evidence.planned_units(records, (HYBRID, VIT), TASK, 1.0) == ((0, 0), (1, 0))
    assert claims_evidence.planned_units(records, (VIT, RANDOM), TASK, 1.0) == (
        (0, 0),
        (1, 0),
        (2, 0),
    )
    assert (
        claims_evidence.planned_units(records, (VIT, "unet"), TASK, 1.0)
        == claims_evidence.planned_units(records, (VIT, HYBRID), TASK, 0.1)
        == ()
    )


def test_the_difference_is_that_of_the_statistics(evidence):
    records = evidence(ARMS, folds=3)
    found = claims_tests.of_cases(records, HYBRID, VIT, TASK, 1.0, "dice")
    direct = run_pairs.pair(records.cases, HYBRID, VIT, TASK)
    assert found.pairs is not None and found.pairs.fold_means.tolist() == direct.fold_means.tolist()
    assert found.base == pytest.approx(sum(ARMS[VIT]) / 3 + 0.015)
    assert claims_tests.of_cases(records, HYBRID, VIT, TASK, 1.0, "dice") is found


def test_scores_on_other_cases_are_an_error_and_not_a_hole(evidence):
    records = evidence(ARMS, folds=3)
    records.cases.loc[0, "case"] = "case_of_nobody"
    with pytest.raises(run_pairs.StatsError, match="not scored on the same cases"):
        claims_tests.of_cases(records, HYBRID, VIT, TASK, 1.0, "dice")


def test_missing_runs_are_named_and_have_no_p(evidence):
    records = evidence(ARMS, folds=3, lost=((VIT, 1.0, 1, 0),))
    found = claims_tests.with_tests(records, claims_tests.own(CLAIM, records, "dice"), 0.01)[0]
    assert (
        found.missing == (f"{TASK}/{VIT}/fraction-1.0_fold-1_seed-0",)
        and math.isnan(found.p)
        and math.isnan(found.p_equivalence)
    )
    assert (found.n_runs, found.n_planned, found.n_cases) == (2, 3, 8) and len(found.runs) == 4


def test_the_family_is_the_chapters_other_planned_contrasts(evidence):
    records = evidence(ARMS, folds=3)
    words = {d.words for d in claims_tests.family(CLAIM, records, "dice")}
    assert len(words) == 2 and all("random" in word.lower() for word in words)
    assert claims_tests.family(replace(CLAIM, topic="v1_of_nobody"), records, "dice") == []


def test_holm_is_taken_over_claim_and_family(evidence):
    records = evidence(ARMS, folds=3)
    own, rest = (
        claims_tests.own(CLAIM, records, "dice"),
        claims_tests.family(CLAIM, records, "dice"),
    )
    raw = [stats.corrected_t(d.pairs) for d in (*own, *rest)]
    assert claims_tests.with_tests(records, own, 0.01, rest)[0].p == pytest.approx(
        stats.holm(raw)[0]
    )


def test_a_task_is_named_only_where_there_are_several(evidence):
    records = evidence(ARMS, folds=3)
    assert TASK not in claims_tests.own(CLAIM, records, "dice")[0].words
    assert "at 10 % of the data" in claims_tests.of_cases(
        records, HYBRID, VIT, TASK, 0.1, "dice"
    ).words.replace("10%", "10 %")
