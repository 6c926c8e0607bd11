"""Figures across arms draw what the tables say: groups, marks, holes, paired cases, bands, kept
epochs and the front."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mvl.evidence.arms import colour, title
from mvl.evidence.reported import paper_value
from mvl.evidence.topics import HYBRID, RANDOM, VIT
from mvl.publish import (
    figures_cases,
    figures_cost,
    figures_curves,
    figures_differences,
    findings,
    style,
)

SYSTEMS = (VIT, HYBRID, RANDOM)
SCANS = "Task04_Hippocampus"
PAPERS = ("MedVisionLlama", "ViT-Baseline")


def words(figure: Figure) -> str:
    return " ".join(
        " ".join(text.get_text().split()) for text in figure.findobj(matplotlib.text.Text)
    )


def keys(
    task: str = SCANS, fractions: tuple[float, ...] = (0.1, 0.3, 1.0), folds: int = 2
) -> list[dict[str, object]]:
    return [
        {"task": task, "system": s, "fraction": f, "fold": k, "seed": 0}
        for s in SYSTEMS
        for f in fractions
        for k in range(folds)
    ]


def history(task: str = SCANS, **sizes: object) -> pd.DataFrame:
    """Six epochs, validated every second one; fold 0 is best at epoch 3, fold 1 at epoch 5."""
    shape = {0: (0.3, 0.8, 0.6), 1: (0.2, 0.5, 0.7)}
    return pd.DataFrame(
        [
            key
            | {
                "epoch": e,
                "val_dice": shape[int(str(key["fold"]))][e // 2] if e % 2 else math.nan,
                "val_loss": 1.0 if e % 2 else math.nan,
            }
            for key in keys(task, **sizes)
            for e in range(6)
        ]
    )


def differences(task: str = SCANS) -> pd.DataFrame:
    row = {
        "task": task,
        "fraction": 1.0,
        "metric": "dice",
        "n_cases": 52,
        "n_runs": 2,
        "planned": 2,
        "p_holm": 0.2,
        "hole": "",
    }
    return pd.DataFrame(
        [
            row
            | {
                "question": "The block",
                "system": HYBRID,
                "reference": VIT,
                "difference": 0.012,
                "low": -0.002,
                "high": 0.03,
            },
            row
            | {
                "question": "The block",
                "system": RANDOM,
                "reference": VIT,
                "difference": 0.02,
                "low": 0.015,
                "high": 0.025,
                "p_holm": 0.01,
            },
            row
            | {
                "question": "The block",
                "system": HYBRID,
                "reference": RANDOM,
                "difference": -0.4,
                "low": -0.5,
                "high": -0.3,
                "n_runs": 1,
                "planned": 3,
            },
            row
            | {
                "question": "Few cases",
                "system": HYBRID,
                "reference": VIT,
                "fraction": 0.1,
                "n_runs": 0,
                "hole": "no run",
                "p_holm": math.nan,
            },
        ]
    )


def cases(task: str = SCANS) -> pd.DataFrame:
    return pd.DataFrame(
        [
            key | {"case": f"c{key['fold']}{i}", "dice": 0.7 + 0.02 * i}
            for key in keys(task, (1.0,))
            for i in range(3)
            if (key["system"], key["fold"]) != (RANDOM, 1)
        ]
    )


def finished(task: str = SCANS) -> pd.DataFrame:
    facts = {VIT: (0.80, 5e5, 600.0), HYBRID: (0.78, 6e5, 1200.0), RANDOM: (0.85, 7e5, 1800.0)}
    return pd.DataFrame(
        [
            key | dict(zip(("dice", "trainable", "cpu_s"), facts[str(key["system"])]))
            for key in keys(task, (1.0,))
        ]
    )


BENCH = {VIT: {"seconds": 0.5}, HYBRID: {"seconds": 1.0}}


def drawn(task: str) -> dict[str, Figure]:
    return {
        "forest": figures_differences.forest(differences(task), ["fold 2"]),
        "few_shot_curves": figures_curves.few_shot_curves(history(task), ["fold 2"]),
        "curves_by_arm": figures_curves.curves_by_arm(
            history(task, fractions=(1.0,)), HYBRID, ["fold 2"]
        ),
        "dice_by_fold": figures_cases.dice_by_fold(cases(task), ["fold 2"]),
        "cost": figures_cost.cost(finished(task), BENCH, ["fold 2"]),
    }


def test_every_figure_names_its_holes_and_says_phantom_only_of_phantoms() -> None:
    for task, expected in (("phantoms", True), (SCANS, False)):
        for name, figure in drawn(task).items():
            assert ("phantom" in words(figure)) is expected, name
            assert "not yet recorded: fold 2" in words(figure), name


def test_an_empty_table_is_a_card_with_the_hole() -> None:
    draws = (
        figures_differences.forest,
        figures_curves.few_shot_curves,
        figures_cases.dice_by_fold,
        lambda table, holes: figures_cost.cost(table, {}, holes),
        lambda table, holes: figures_curves.curves_by_arm(table, HYBRID, holes),
    )
    for draw in draws:
        assert "the linear mapper" in words(draw(history().iloc[:0], ["the linear mapper"]))
    assert "not yet recorded" in words(figures_differences.forest(differences().assign(n_runs=0)))
    assert "with few cases" in words(figures_curves.few_shot_curves(history(fractions=(1.0,))))


def test_a_forest_is_grouped_fills_what_holm_decides_and_cuts_what_is_too_wide() -> None:
    axis = figures_differences.forest(differences()).axes[0]
    text = words(axis.figure)
    for heading in (
        f"The block: minus {title(VIT)}",
        f"The block: minus {title(RANDOM)}",
        f"Few cases: minus {title(VIT)}",
    ):
        assert text.count(heading) == 1
    assert (
        "+1.20 [-0.20, +3.00] n=2" in text
        and "-40.00 [-50.00, -30.00] n=1 of 3" in text
        and text.count("not yet recorded") == 1
    )
    spans = {
        tuple(np.round(line.get_xdata(), 6)): line
        for line in axis.get_lines()
        if len(line.get_xdata()) == 2
    }
    assert (-0.2, 3.0) in spans and not spans[-0.2, 3.0].is_dashed()
    assert axis.get_xlim() == (
        -figures_differences.WIDEST_POINTS,
        figures_differences.WIDEST_POINTS,
    )
    assert sum(line.get_marker() == "<" for line in axis.get_lines()) == 1, (
        "both ends lie beyond the axis"
    )
    filled = {
        round(float(line.get_xdata()[0]), 1): to_hex(line.get_markerfacecolor())
        for line in axis.get_lines()
        if len(line.get_xdata()) == 1
    }
    assert filled[1.2] == "#ffffff" and filled[2.0] == colour(RANDOM).lower()
    assert "10% of the data" in text and "leave" not in text


def test_few_shot_curves_have_a_column_for_each_share_and_a_colour_for_each_arm() -> None:
    figure = figures_curves.few_shot_curves(history())
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == [
        f"{share}% of the training cases" for share in (10, 30)
    ]
    for axis in figure.axes:
        assert [to_hex(line.get_color()) for line in axis.get_lines()] == [
            colour(s).lower() for s in SYSTEMS
        ]
        assert len({line.get_linestyle() for line in axis.get_lines()}) == len(SYSTEMS)
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 3, 5] and line.get_ydata() == pytest.approx(
        [0.25, 0.65, 0.65]
    )
    assert "(n = 2 runs)" in words(figure) and "100%" not in words(figure)


def test_the_papers_own_few_shot_ends_are_drawn_only_where_asked_for() -> None:
    def ends(reported: bool) -> list[float]:
        axis = figures_curves.few_shot_curves(history(), reported=reported).axes[0]
        return [float(line.get_ydata()[0]) for line in axis.get_lines() if line.get_marker() == "D"]

    assert ends(False) == []
    assert ends(True) == [paper_value("few-shot 10 %", name, "val_dice") for name in PAPERS]


def test_curves_as_differences_are_taken_at_the_same_fold_and_epoch() -> None:
    table = history(fractions=(1.0,))
    better = table["system"] == HYBRID
    table.loc[better, "val_dice"] += 0.01
    figure = figures_curves.curve_differences(table, VIT, ["fold 2"])
    shown = {axis.get_title(loc="left").split(" minus")[0]: axis for axis in figure.axes}
    assert list(shown) == [title(HYBRID), title(RANDOM)] and "not yet recorded" in words(figure)
    assert shown[title(HYBRID)].get_lines()[1].get_ydata() == pytest.approx([1, 1, 1])
    assert shown[title(RANDOM)].get_lines()[1].get_ydata() == pytest.approx([0, 0, 0])


def test_case_differences_are_paired_and_have_a_bar_at_each_folds_mean() -> None:
    table = cases()
    gaps = findings.case_gaps(table, VIT)
    figure = figures_cases.case_differences(table, VIT, ["fold 2"])
    assert [axis.get_title(loc="left").split(" minus")[0] for axis in figure.axes] == [
        title(s) for s in (HYBRID, RANDOM)
    ]
    for axis, system in zip(figure.axes, (HYBRID, RANDOM)):
        own = gaps[gaps["system"] == system]
        dots = np.concatenate(
            [c.get_offsets()[:, 1] for c in axis.collections if len(c.get_offsets())]
        )
        assert sorted(dots) == pytest.approx(sorted(own["points"]))
        bars = [line.get_ydata()[0] for line in axis.get_lines()[1:]]
        means = own.groupby("fold")["points"].mean()
        assert [b for b in bars if b == b] == pytest.approx(means.tolist())


def test_kept_epochs_are_those_of_highest_validation_dice_and_are_marked() -> None:
    kept = figures_curves.selected_epochs(history(fractions=(1.0,)))
    assert kept.set_index(["system", "fold"])["epoch"].to_dict() == {
        (s, f): 3 + 2 * f for s in SYSTEMS for f in (0, 1)
    }
    first = figures_curves.curves_by_arm(history(fractions=(1.0,)), HYBRID).axes[0]
    marks = [line for line in first.get_lines() if line.get_marker() == "|"]
    assert [line.get_xdata().tolist() for line in marks] == [[3, 5]]
    whole = figures_curves.training_curves(history(fractions=(1.0,))).axes[1]
    assert {tuple(line.get_xdata()) for line in whole.get_lines() if line.get_marker() == "|"} == {
        (3, 5)
    }


def test_each_arm_has_a_panel_over_its_own_epochs_and_the_reference_is_dotted_in_all() -> None:
    table = history(fractions=(1.0,))
    short = table[(table["system"] != VIT) | (table["epoch"] <= 3)]
    figure = figures_curves.curves_by_arm(short, HYBRID)
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == len(SYSTEMS) - 1
    for axis in panels:
        dotted, curve = axis.get_lines()[:2]
        assert dotted.get_linestyle() == ":"
        assert max(dotted.get_xdata()) <= max(curve.get_xdata())
    last = {axis.get_title(loc="left"): max(axis.get_lines()[1].get_xdata()) for axis in panels}
    assert sorted(last.values())[0] == 3 < sorted(last.values())[-1]


def test_each_case_has_a_dot_and_a_fold_without_a_run_has_no_row() -> None:
    table = cases()
    axis = figures_cases.dice_by_fold(table).axes[0]
    rows = table.groupby(["system", "fold"])
    assert len(axis.collections) == rows.ngroups
    bars = sorted(float(line.get_xdata()[0]) for line in axis.get_lines())
    want = table.groupby(["system", "fold", "case"])["dice"].mean().groupby(["system", "fold"])
    assert bars == pytest.approx(sorted(want.mean()))
    assert [t.get_text() for t in axis.texts].count("fold 0, n = 3") == len(SYSTEMS)


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    front = figures_cost.pareto(
        pd.Series([3.0, 1.0, 2.0, 2.0, 4.0]), pd.Series([0.8, 0.7, 0.6, 0.75, 0.79])
    )
    assert front.to_dict() == {1.0: 0.7, 2.0: 0.75, 3.0: 0.8}


def test_cost_leaves_out_only_what_was_not_measured() -> None:
    figure = figures_cost.cost(finished(), BENCH)
    marks = [axis.get_lines() for axis in figure.axes]
    dots = [sorted(float(line.get_xdata()[0]) for line in lines) for lines in marks[1:]]
    assert dots == [pytest.approx([0.5, 0.6, 0.7]), [0.5, 1.0], [10.0, 20.0, 30.0]]
    assert [name.get_text()[-3:] for name in figure.axes[0].get_yticklabels()] == ["(2)"] * 3
    filled = [
        sorted(float(m.get_xdata()[0]) for m in lines if m.get_markerfacecolor() != "none")
        for lines in marks[1:]
    ]
    assert filled == [pytest.approx([0.5, 0.7]), [0.5], [10.0, 30.0]], "the middle one is beaten"


def test_one_arm_has_one_colour_here_too() -> None:
    figure = figures_cases.dice_by_fold(cases())
    assert {colour(s).upper() for s in SYSTEMS} == {
        to_hex(dots.get_facecolor()[0]).upper() for dots in figure.axes[0].collections
    }
    assert style.CARD.upper() == to_hex(figure.axes[0].get_facecolor()).upper()
