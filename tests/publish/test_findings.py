"""A caption is computed from the table of its figure: other numbers, another sentence."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mvl.evidence.arms import title
from mvl.evidence.topics import HYBRID, RANDOM, VIT
from mvl.publish import findings


def runs(**dice: tuple[float, ...]) -> pd.DataFrame:
    """One run a fold for each value of each arm, with two cases around the mean."""
    return pd.DataFrame(
        [
            {"task": "t", "system": s, "fraction": f, "fold": k, "seed": 0, "dice": d + 0.1 * f}
            | {"cpu_s": 60.0 * (1 + len(s)), "case": "a"}
            for s, values in dice.items()
            for f in (0.1, 1.0)
            for k, d in enumerate(values)
        ]
    )


def history(**ends: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"task": "t", "system": s, "fraction": 1.0, "fold": 0, "seed": 0, "epoch": e}
            | {"val_dice": math.nan if e == 1 else end - 0.1 * (3 - e)}
            for s, end in ends.items()
            for e in range(4)
        ]
    )


def test_curves_say_where_the_arms_end_and_how_far_apart_they_are() -> None:
    table = history(**{VIT: 0.8, HYBRID: 0.75})
    words = findings.curves(table)
    assert f"between 0.750 ({title(HYBRID)}) and 0.800 ({title(VIT)})" in words
    assert f"0.800 ({title(VIT)})." in findings.curves(table[table["system"] == VIT])
    gaps = findings.curve_differences(table, VIT)
    assert "further than 5.0 points" in gaps and f"-5.0 points ({title(HYBRID)}" in gaps
    assert findings.curves(table.iloc[:0]) == findings.NOTHING


def test_cases_are_paired_and_counted() -> None:
    table = runs(**{VIT: (0.7, 0.8), HYBRID: (0.71, 0.79), RANDOM: (0.75, 0.85)})
    table = table[table["fraction"] == 1.0]
    words = findings.case_differences(table, VIT)
    assert f"{title(HYBRID)} in 1 of 2 (mean +0.00 points)" in words
    assert f"{title(RANDOM)} in 2 of 2 (mean +5.00 points)" in words
    assert "the means of the arms by up to 6.0" in findings.cases(table)
    assert "the means of the folds by 10.0" in findings.cases(table[table["system"] == VIT])
    alone = findings.cases(table[(table["system"] == VIT) & (table["fold"] == 0)])
    assert alone.startswith("Test cases of one fold") and "folds by" not in alone


def difference(value: float, **more: object) -> dict[str, object]:
    row = {"system": HYBRID, "reference": VIT, "n_runs": 5, "planned": 5, "n_folds": 5}
    row |= {"difference": value, "boot_low": value - 0.002, "boot_high": value + 0.002}
    return row | {"p_holm": 0.001, "p_equivalence": 0.001 if abs(value) < 0.005 else 1.0} | more


def test_differences_are_counted_by_verdict() -> None:
    rows = [difference(0.03), difference(-0.04), difference(0.001), difference(0.0, n_runs=0)]
    words = findings.pairs(pd.DataFrame(rows))
    assert words == (
        "Of 3 differences, -4.00 to +3.00 points, 1 is higher, 1 is lower, 1 is equivalent within 1"
        " point; 1 more has no runs yet."
    )
    assert findings.pairs(pd.DataFrame(rows[:1])) == "The difference is +3.00 points: higher."
    assert findings.pairs(pd.DataFrame(rows[3:])) == findings.NOTHING


def test_shares_means_and_cost_name_the_right_arms() -> None:
    table = runs(**{VIT: (0.7, 0.8), HYBRID: (0.72, 0.82)})
    assert "rises by 9.0 to 9.0 points; at 10% the arms are 2.0" in findings.shares(table)
    whole = table[table["fraction"] == 1.0]
    assert f"between 0.850 ({title(VIT)}) and 0.870 ({title(HYBRID)})" in findings.means(whole)
    words = findings.cost(whole)
    assert f"that of {title(HYBRID)} (0.870, 2 runs" in words
    assert f"shortest training is that of {title(VIT)} (0.850" in words


def test_the_audits_caption_names_the_largest_gap() -> None:
    rows = pd.DataFrame(
        [
            {"system": "a", "fault": "none: clean", "gap": 0.09},
            {"system": "b", "fault": "copies", "gap": 0.02},
            {"system": "audit_released", "fault": "all", "gap": 0.001},
        ]
    )
    words = findings.worth(rows)
    assert "'copies', by +2.0 Dice points" in words and "together it is +0.1" in words


@pytest.mark.parametrize("kinds", [("benign",), ("benign", "malignant")])
def test_classes_are_said_one_by_one(kinds: tuple[str, ...]) -> None:
    rows = [
        {"system": s, "kind": k, "status": "ok", "jaccard": value + 0.1 * (k == "malignant")}
        for s, value in ((VIT, 0.5), (HYBRID, 0.6))
        for k in kinds
    ]
    words = findings.classes(pd.DataFrame(rows))
    assert f"benign between 0.50 ({title(VIT)}) and 0.60 ({title(HYBRID)})" in words
    assert ("malignant between 0.60" in words) == ("malignant" in kinds)


def test_examples_that_cannot_be_drawn_say_why() -> None:
    assert findings.examples([], ["the scans are not here"]) == (
        "Not drawn here: the scans are not here."
    )
    assert findings.examples([]) == findings.NOTHING
