"""Changed records change verdicts, every word can be reached by every rule that has it, and a
missing run withholds one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mvl.evidence import claims_differences, claims_rules
from mvl.evidence.claims_rules import RULES
from mvl.evidence.claims_verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    SHARED,
    UNTESTABLE,
)
from mvl.evidence.decision import UNDECIDED, WITHDRAWN
from mvl.evidence.topics import HYBRID, RANDOM, VIT
from tests.evidence.made_claim import CLAIM

pytestmark = pytest.mark.usefixtures("few_resamples")
BASE = [0.50, 0.52, 0.51, 0.49, 0.50]
GAINS = {
    "higher": [0.05, 0.052, 0.048, 0.05, 0.051],
    "lower": [-0.05, -0.052, -0.048, -0.05, -0.051],
    "equal": [0.0005, -0.0005, 0, 0.0004, -0.0002],
    "open": [0.04, -0.03, 0.05, -0.04, 0.01],
}


def arms(gain, system=HYBRID, reference=VIT):
    return {reference: BASE, system: [b + g for b, g in zip(BASE, GAINS[gain])]}


def word(claim, records):
    verdict = RULES[claim.rule](claim, records)
    assert records.study in verdict.sentence and records.limit in verdict.sentence
    return verdict.word


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ("higher", REPRODUCED),
        ("lower", CONTRADICTED),
        ("equal", NOT_REPRODUCED),
        ("open", UNDECIDED),
    ],
)
def test_a_gain_follows_the_records(evidence, gain, expected):
    assert word(CLAIM, evidence(arms(gain))) == expected


def test_a_lower_distance_is_a_gain_where_lower_is_better(evidence):
    claim = replace(CLAIM, metric="nsd", contrasts=((VIT, HYBRID),), lower=True)
    assert [word(claim, evidence(arms(g))) for g in ("higher", "lower", "equal")] == [
        REPRODUCED,
        CONTRADICTED,
        NOT_REPRODUCED,
    ]


@pytest.mark.parametrize(
    "rule", sorted(set(RULES) - {"untestable", "activation", "masks", "external", "conjunction"})
)
def test_a_missing_run_withholds_every_verdict(evidence, rule):
    claim = replace(
        CLAIM,
        rule=rule,
        shares=(0.9,),
        metrics=("dice", "nsd"),
        reported_share=0.5,
        noises=("boundary20",),
    )
    names = (VIT, HYBRID, f"{VIT}_boundary20", f"{HYBRID}_boundary20")
    full = {name: [b + i / 10 for b in BASE] for i, name in enumerate(names)}
    assert word(claim, evidence(full)) != UNDECIDED
    verdict = RULES[rule](claim, evidence(full, lost=((HYBRID, 1.0, 2, 0),)))
    assert verdict.word == UNDECIDED and "incomplete" in verdict.sentence
    assert verdict.missing == ("Task04_Hippocampus/medvisionllama_v3/fraction-1.0_fold-2_seed-0",)


def test_too_few_folds_and_unplanned_systems_decide_nothing(evidence):
    few = claims_rules.gain(CLAIM, evidence(arms("higher"), folds=2))
    assert few.word == UNDECIDED and "too few runs, 2 folds" in few.sentence
    other = claims_rules.gain(CLAIM, evidence({VIT: BASE}))
    assert other.word == UNDECIDED and "not planned" in other.sentence and other.n == 0


def test_a_verdict_says_difference_interval_and_n(evidence):
    verdict = claims_rules.gain(CLAIM, evidence(arms("higher")))
    assert verdict.n == 5 and len(verdict.runs) == 10 and not verdict.missing
    assert (
        "+5.02 Dice points (95 % interval +4.7" in verdict.sentence
        and "5 of 5 pairs of runs in 5 folds, 20 cases" in verdict.sentence
    )


def test_an_interval_below_the_reported_gain_does_not_reproduce_it(evidence):
    small = {VIT: BASE, HYBRID: [b + g for b, g in zip(BASE, [0.03, -0.01, 0.04, -0.02, 0.01])]}
    assert word(CLAIM, evidence(small)) == UNDECIDED
    verdict = claims_rules.gain(replace(CLAIM, size="error", reported_gain=0.5), evidence(small))
    assert (
        verdict.word == NOT_REPRODUCED
        and "not decided, and a gain of the reported size is excluded" in verdict.sentence
    )
    larger = claims_rules.gain(
        replace(CLAIM, size="error", reported_gain=0.5), evidence(arms("higher"))
    )
    assert larger.word == REPRODUCED and "by less than reported" in larger.sentence


def test_every_contrast_has_to_hold(evidence):
    claim = replace(CLAIM, contrasts=((HYBRID, VIT), (HYBRID, RANDOM)))
    records = arms("higher")
    assert word(claim, evidence(records | {RANDOM: BASE})) == REPRODUCED
    assert word(claim, evidence(records | {RANDOM: records[HYBRID]})) == NOT_REPRODUCED


def test_holm_counts_the_rest_of_the_chapter(evidence):
    near = {VIT: BASE, HYBRID: [b + g for b, g in zip(BASE, [0.02, 0.06, 0.03, 0.06, 0.02])]}
    alone = claims_rules.gain(CLAIM, evidence(near)).numbers[0].p
    crowd = (
        claims_rules.gain(CLAIM, evidence(near | {RANDOM: BASE, "medvisionllama_v3_mlp": BASE}))
        .numbers[0]
        .p
    )
    assert alone < crowd <= 5 * alone + 1e-12


def test_fewer_trained_parameters_are_part_of_the_claim(evidence):
    claim = replace(CLAIM, cheaper_than="vit_depth")
    records = arms("higher") | {"vit_depth": BASE}
    assert word(claim, evidence(records, trainable={HYBRID: 10, "vit_depth": 20})) == REPRODUCED
    assert word(claim, evidence(records, trainable={HYBRID: 30, "vit_depth": 20})) == CONTRADICTED
    assert word(claim, evidence(arms("higher"))) == UNDECIDED


@pytest.mark.parametrize(
    ("gain", "expected"),
    [("equal", REPRODUCED), ("higher", CONTRADICTED), ("lower", CONTRADICTED), ("open", UNDECIDED)],
)
def test_an_equivalence_follows_the_records(evidence, gain, expected):
    assert word(replace(CLAIM, rule="same"), evidence(arms(gain))) == expected


def test_a_difference_that_reaches_into_the_margin_is_no_equivalence(evidence):
    records = {
        VIT: BASE,
        HYBRID: [b + g for b, g in zip(BASE, [0.009, 0.011, 0.0095, 0.012, 0.0085])],
    }
    assert word(replace(CLAIM, rule="same"), evidence(records)) == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        (GAINS["higher"], REPRODUCED),
        (GAINS["lower"], CONTRADICTED),
        (GAINS["open"], UNDECIDED),
        ([0.001, -0.001, -0.002, 0, 0.001], NOT_REPRODUCED),
    ],
)
def test_better_in_every_metric(evidence, gains, expected):
    claim = replace(
        CLAIM, rule="every_metric", metrics=("dice", "nsd", "hd95_mm"), reported_share=0.68
    )
    assert (
        word(claim, evidence({VIT: BASE, HYBRID: [b + g for b, g in zip(BASE, gains)]})) == expected
    )


def test_each_metric_is_tested_at_its_own_margin(evidence):
    claim = replace(CLAIM, rule="every_metric", metrics=("dice", "hd95_mm"), reported_share=0.68)
    records = evidence({VIT: BASE, HYBRID: [b + g for b, g in zip(BASE, GAINS["higher"])]})
    together = claims_rules.every_metric(claim, records).numbers
    alone = claims_rules.RULES["same"](replace(CLAIM, rule="same", metric="hd95_mm"), records)
    assert together[-1].metric == "hd95_mm"
    assert together[-1].p_equivalence == alone.numbers[0].p_equivalence


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (("lower", "equal"), REPRODUCED),
        (("lower", "higher"), CONTRADICTED),
        (("equal", "equal"), NOT_REPRODUCED),
        (("open", "equal"), UNDECIDED),
    ],
)
def test_the_best_rank(evidence, others, expected):
    ranks = ("medvisionllama_v3_r2", "medvisionllama_v3_r8")
    records = {HYBRID: BASE} | {
        name: [b + g for b, g in zip(BASE, GAINS[way])] for name, way in zip(ranks, others)
    }
    assert (
        word(
            replace(CLAIM, rule="trade_off", contrasts=tuple((HYBRID, r) for r in ranks)),
            evidence(records),
        )
        == expected
    )


@pytest.mark.parametrize(
    ("speed", "expected"), [(2.0, REPRODUCED), (0.5, CONTRADICTED), (1.0, NOT_REPRODUCED)]
)
def test_convergence_counts_epochs_to_a_share_of_the_references_last_dice(
    evidence, speed, expected
):
    records = evidence({VIT: BASE, HYBRID: BASE})
    ours = records.history["system"] == HYBRID
    records.history.loc[ours, "val_dice"] *= speed
    claim = replace(CLAIM, rule="faster", shares=(0.8,))
    found = claims_rules.faster(claim, records)
    assert found.word == expected
    assert found.numbers[0].difference == {2.0: 4 - 8, 0.5: 12 - 8, 1.0: 0}[speed]


def test_epochs_that_were_not_validated_are_passed_over():
    run = pd.DataFrame({"epoch": [0, 1, 2, 3], "val_dice": [np.nan, 0.4, np.nan, 0.8]})
    assert [claims_differences.epochs_to(run, goal) for goal in (0.3, 0.5, 0.9)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [("higher", REPRODUCED), ("lower", CONTRADICTED), ("equal", NOT_REPRODUCED)],
)
def test_damaged_labels_cost_less(evidence, gain, expected):
    records = {
        VIT: BASE,
        HYBRID: BASE,
        f"{VIT}_boundary20": [b - 0.1 for b in BASE],
        f"{HYBRID}_boundary20": [b - 0.1 + g for b, g in zip(BASE, GAINS[gain])],
    }
    assert (
        word(replace(CLAIM, rule="smaller_loss", noises=("boundary20",)), evidence(records))
        == expected
    )


def activations(**changes):
    rows = [
        (
            "hippocampus",
            system,
            1.0,
            fold,
            0,
            f"case_{i}",
            stage,
            0.2 + i / 100 + fold / 500 + (stage == "after") * changes[system],
        )
        for system in changes
        for fold in range(4)
        for i in range(3)
        for stage in ("before", "after")
    ]
    return pd.DataFrame(
        rows,
        columns=["study", "system", "fraction", "fold", "seed", "case", "stage", "activation_iou"],
    )


def test_activations_before_and_after_the_block(evidence):
    claim = replace(
        CLAIM,
        rule="activation",
        metric="activation_iou",
        stages=("after", "before"),
        contrasts=((HYBRID, HYBRID), (HYBRID, RANDOM)),
    )

    def tables(**changes):
        return evidence(
            {HYBRID: BASE, RANDOM: BASE}, folds=4, further={"activations": activations(**changes)}
        )

    assert word(claim, tables(medvisionllama_v3=0.1, medvisionllama_v3_random=0.0)) == REPRODUCED
    assert (
        word(claim, tables(medvisionllama_v3=0.1, medvisionllama_v3_random=0.1)) == NOT_REPRODUCED
    )
    assert word(claim, tables(medvisionllama_v3=-0.1, medvisionllama_v3_random=0.0)) == CONTRADICTED
    missing = claims_rules.activation(claim, evidence({HYBRID: BASE, RANDOM: BASE}))
    assert missing.word == UNDECIDED and "not recorded" in missing.sentence
    same_stage = replace(claim, stages=("nowhere/after",) * 2, contrasts=((HYBRID, RANDOM),))
    assert (
        word(same_stage, tables(medvisionllama_v3=0.1, medvisionllama_v3_random=0.0)) == REPRODUCED
    )


@pytest.mark.parametrize("rule", ["masks", "external"])
def test_measures_of_masks_and_external_tests(rule, evidence):
    claim = replace(CLAIM, rule=rule, metric="roughness", lower=True)
    rows = [
        (
            "hippocampus",
            system,
            1.0,
            fold,
            0,
            f"case_{i}",
            1.2 + i / 100 + fold / 1000 - (system == HYBRID) * 0.1,
        )
        for system in (VIT, HYBRID)
        for fold in range(4)
        for i in range(3)
    ]
    table = pd.DataFrame(
        rows, columns=["study", "system", "fraction", "fold", "seed", "case", "roughness"]
    )

    def measured(rows, folds=4):
        return evidence({VIT: BASE, HYBRID: BASE}, folds=folds, further={rule: rows})

    assert word(claim, measured(table)) == REPRODUCED
    assert word(replace(claim, contrasts=((VIT, HYBRID),)), measured(table)) == CONTRADICTED
    one = table[table["fold"] == 0]
    holes = RULES[rule](claim, measured(one))
    assert holes.word == UNDECIDED and "3 planned pairs of runs missing" in holes.sentence
    assert holes.numbers[0].n_planned == 4
    assert "too few runs" in RULES[rule](claim, measured(one, folds=1)).sentence
    assert "not recorded" in RULES[rule](claim, evidence({VIT: BASE, HYBRID: BASE})).sentence


def test_what_no_record_decides_says_why(evidence):
    verdict = claims_rules.untestable(
        replace(CLAIM, why="no weights were at hand"), evidence({VIT: BASE})
    )
    assert verdict.word == UNTESTABLE and verdict.sentence.startswith("No weights were at hand.")


def test_a_gain_that_controls_have_as_well_is_not_the_language_models(evidence):
    claim = replace(
        CLAIM,
        rule="activation",
        metric="activation_iou",
        stages=("after", "after"),
        controls=(RANDOM,),
    )

    def tables(**changes):
        return evidence(
            {VIT: BASE, HYBRID: BASE, RANDOM: BASE},
            folds=4,
            further={"activations": activations(**changes)},
        )

    shared = claims_rules.activation(
        claim, tables(vit_baseline=0.0, medvisionllama_v3=0.1, medvisionllama_v3_random=0.11)
    )
    assert (
        shared.word == SHARED
        and "not of the language model" in shared.sentence
        and len(shared.numbers) == len(shared.parts) == 3
    )
    assert (
        word(claim, tables(vit_baseline=0.0, medvisionllama_v3=0.1, medvisionllama_v3_random=0.05))
        == REPRODUCED
    )
    assert (
        word(claim, tables(vit_baseline=0.0, medvisionllama_v3=0.1, medvisionllama_v3_random=0.0))
        == REPRODUCED
    )
    assert (
        word(claim, tables(vit_baseline=0.0, medvisionllama_v3=0.0, medvisionllama_v3_random=0.1))
        == NOT_REPRODUCED
    )


def test_activations_are_counted_from_the_plan(evidence):
    claim = replace(
        CLAIM,
        rule="activation",
        metric="activation_iou",
        stages=("after", "before"),
        contrasts=((HYBRID, HYBRID),),
    )
    records = evidence(
        {HYBRID: BASE}, folds=5, further={"activations": activations(medvisionllama_v3=0.1)}
    )
    verdict = claims_rules.activation(claim, records)
    assert verdict.word == UNDECIDED and (
        verdict.numbers[0].n_runs,
        verdict.numbers[0].n_planned,
    ) == (4, 5)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        ("higher", UNDECIDED),
        ("lower", CONTRADICTED),
        ("equal", NOT_REPRODUCED),
        ("open", UNDECIDED),
    ],
)
def test_one_failing_member_decides_a_conjunction_and_one_that_holds_does_not(
    evidence, gain, expected
):
    verdict = claims_rules.conjunction(replace(CLAIM, why="nine tasks"), evidence(arms(gain)))
    assert verdict.word == expected and "Not run: nine tasks." in verdict.sentence
    assert ("One member that fails" in verdict.sentence) == (
        expected in (CONTRADICTED, NOT_REPRODUCED)
    )


def test_an_untuned_arm_withdraws_the_verdict_and_keeps_the_numbers(evidence):
    v1 = "medvisionllama_v1"
    verdict = claims_rules.gain(replace(CLAIM, contrasts=((v1, VIT),)), evidence(arms("lower", v1)))
    assert (
        verdict.word == WITHDRAWN
        and "-5.02 Dice points" in verdict.sentence
        and "untuned" in verdict.sentence
    )


def test_a_margin_below_the_distance_of_two_validations_cannot_be_resolved(evidence):
    records = evidence({VIT: BASE, HYBRID: BASE})
    claim = replace(CLAIM, rule="faster", shares=(0.8,))
    assert claims_rules.faster(claim, records).word == NOT_REPRODUCED
    coarse = replace(records, history=records.history[records.history["epoch"] % 4 == 0], memo={})
    verdict = claims_rules.faster(claim, coarse)
    assert (
        verdict.word == UNTESTABLE
        and "every 4 epochs at 100% of the data" in verdict.sentence
        and "Unresolvable" in verdict.sentence
    )
