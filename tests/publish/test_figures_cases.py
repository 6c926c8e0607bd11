"""Each figure is made from a small table, says phantom inside when it is, shows holes, and keeps
one colour for one arm."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mvl.evidence import decision, example_masks
from mvl.evidence.arms import colour
from mvl.publish import figures_cases, figures_curves, figures_differences, style

SYSTEMS = ("vit_baseline", "medvisionllama_v3", "medvisionllama_v3_random")


def tables(task="phantoms"):
    keys = [
        {"study": "s", "task": task, "system": s, "fraction": f, "fold": k, "seed": 0}
        for s in SYSTEMS
        for f in (0.1, 1.0)
        for k in (0, 1)
    ]
    runs = pd.DataFrame(
        [
            key | {"dice": 0.8 + 0.01 * i, "n_test": 3, "trainable": 1000 * (i + 1)}
            for i, key in enumerate(keys)
        ]
    )
    cases = pd.DataFrame(
        [key | {"case": f"c{c}", "dice": 0.7 + 0.02 * c} for key in keys for c in range(3)]
    )
    history = pd.DataFrame(
        [
            key | {"epoch": e, "val_dice": 0.1 * e, "val_loss": 1 - 0.1 * e}
            for key in keys
            for e in range(4)
        ]
    )
    differences = pd.DataFrame(
        [
            {
                "task": task,
                "system": s,
                "reference": "vit_baseline",
                "comparison": s,
                "difference": 0.01,
                "low": -0.02,
                "high": 0.03,
                "n_cases": 6,
                "n_runs": 2,
            }
            for s in SYSTEMS[1:]
        ]
    )
    return runs, cases, history, differences


def pictures(task="phantoms"):
    found = {"benign": ("ok", "ok", "missed"), "normal": ("true_negative", "false_positive")}
    return pd.DataFrame(
        [
            {
                "task": task,
                "system": s,
                "fold": 0,
                "seed": 0,
                "case": f"{kind}_{i}",
                "kind": kind,
                "status": status,
                "jaccard": 0.5 + 0.1 * i,
                "dice": 0.6 + 0.1 * i,
            }
            for s in SYSTEMS
            for kind, statuses in found.items()
            for i, status in enumerate(statuses)
        ]
    )


def example(task="phantoms"):
    mask = np.zeros((12, 10), dtype=bool)
    mask[4:8, 3:7] = True
    return example_masks.Example(
        task,
        "c0",
        "best",
        np.arange(120.0).reshape(12, 10),
        mask,
        dict.fromkeys(SYSTEMS, mask),
        dict.fromkeys(SYSTEMS, 0.9),
    )


def drawn(task):
    runs, cases, history, differences = tables(task)
    return {
        "training_curves": figures_curves.training_curves(history, ["fold 2"]),
        "dice_by_case": figures_cases.dice_by_case(cases, ["fold 2"]),
        "paired_differences": figures_differences.paired_differences(differences, ["fold 2"]),
        "few_shot": figures_curves.few_shot(runs, ["fold 2"]),
        "lora_rank": figures_curves.lora_rank(runs, ["fold 2"]),
        "example_segmentations": figures_cases.example_segmentations([example(task)], ["fold 2"]),
        "hole": style.hole("fold 2", [task]),
        "overlap_by_class": figures_cases.overlap_by_class(pictures(task), ["fold 2"]),
    }


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_every_figure_says_phantom_inside_and_names_its_holes():
    for name, figure in drawn("phantoms").items():
        assert "phantom" in words(figure), name
        assert re.search("not yet recorded|not drawn here", words(figure)), name
        assert "fold 2" in words(figure), name


def test_figures_of_scans_do_not_say_phantom():
    for name, figure in drawn("Task04_Hippocampus").items():
        assert "phantom" not in words(figure), name


def test_an_empty_table_gives_a_card_with_the_hole():
    empty = tables()[0].iloc[:0]
    for draw in (
        figures_curves.training_curves,
        figures_cases.dice_by_case,
        figures_differences.paired_differences,
        figures_curves.few_shot,
        figures_curves.lora_rank,
    ):
        assert "the linear mapper" in words(draw(empty, ["the linear mapper"]))
    assert "no weights" in words(figures_cases.example_segmentations([], ["no weights"]))


def test_one_arm_has_one_colour_in_every_figure():
    from matplotlib.colors import to_hex

    runs, _, history, differences = tables()

    def lines(figure):
        return {
            to_hex(line.get_color()).upper() for axis in figure.axes for line in axis.get_lines()
        }

    for figure in (
        figures_curves.training_curves(history),
        figures_curves.few_shot(runs),
        figures_curves.lora_rank(runs),
    ):
        assert {colour(s) for s in SYSTEMS} <= lines(figure)
    assert {colour(s) for s in SYSTEMS[1:]} <= lines(
        figures_differences.paired_differences(differences)
    )


def test_n_is_printed_and_is_the_number_of_cases():
    assert "n = 3 cases" in words(figures_cases.dice_by_case(tables()[1]))
    assert "n = 6 cases, 2 pairs" in words(figures_differences.paired_differences(tables()[3]))
    assert "n = 6 cases, 2 of 5 planned pairs of runs" in words(
        figures_differences.paired_differences(tables()[3].assign(planned=5))
    )


def test_long_names_stay_inside_the_figure_and_zero_has_a_plus():
    table = tables()[3].assign(comparison="a name " * 15)
    text = next(
        t
        for t in figures_differences.paired_differences(table).findobj(matplotlib.text.Text)
        if t.get_text().startswith("a name")
    )
    lines = text.get_text().split("\n")
    assert len(lines) == 2 and max(map(len, lines)) <= figures_differences.LINE
    assert text.get_fontsize() >= 9, "letters that a phone shows large enough"
    assert figures_differences.in_points(-0.001, -0.004, 1.26) == "+0.00 [+0.00, +1.26]"


def test_few_shot_says_how_many_runs_each_share_has():
    runs = tables()[0]
    assert "(n = 2)" in words(figures_curves.few_shot(runs))
    assert "(n = 2/1)" in words(
        figures_curves.few_shot(runs[(runs["fraction"] == 0.1) | (runs["fold"] == 0)])
    )


def test_interval_is_drawn_where_the_table_says():
    axis = figures_differences.paired_differences(tables()[3]).axes[0]
    assert any(np.allclose(line.get_xdata(), [-2, 3]) for line in axis.get_lines())


def test_nothing_of_the_zero_line_crosses_the_words_of_a_forest():
    axis = figures_differences.paired_differences(tables()[3]).axes[0]
    spans = [path.vertices[:, 1] for each in axis.collections for path in each.get_paths()]
    words = [getattr(text, "xy", text.get_position())[1] for text in axis.texts]
    assert spans and words
    assert not any(low.min() < y < low.max() for low in spans for y in words)
    assert len(axis.get_lines()) == 2 * len(tables()[3]), "no line runs through all rows"


def test_empty_pictures_are_counted_and_not_drawn():
    figure = figures_cases.overlap_by_class(pictures("BUSI"))
    assert "n = 3 pictures" in words(figure) and words(figure).count(": 1 of 2") == len(SYSTEMS)
    assert [label.get_text().split()[0] for label in figure.axes[0].get_xticklabels()] == ["benign"]
    only = figures_cases.overlap_by_class(pictures("BUSI").query("kind == 'benign'"))
    assert "left empty" not in words(only)


def test_svg_is_the_same_bytes_and_on_a_light_card():
    first, second = (style.svg(figures_curves.few_shot(tables()[0])) for _ in range(2))
    assert first == second
    assert style.CARD.lower() in first.lower()


def test_the_session_style_does_not_leak_in():
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white"}):
        assert (
            matplotlib.colors.to_hex(
                figures_curves.few_shot(tables()[0]).axes[0].get_facecolor()
            ).upper()
            == style.CARD
        )


def test_equivalence_band_is_the_statistics_margin():
    assert pytest.approx(100 * decision.MARGIN) == decision.EQUIVALENCE_POINTS
