"""Figures of activations from small tables: columns and their order, empty places, numbers as
recorded, chance, n, holes."""

from __future__ import annotations

from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mvl.evidence.activation_maps import Maps
from mvl.publish import figures_activations

ARMS = ("vit_baseline", "medvisionllama_v3")
STAGES = {
    "vit_baseline": ("encoder", "decoder"),
    "medvisionllama_v3": ("encoder", "mapper1", "block", "mapper2", "decoder"),
}


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def maps(task: str = "Task04_Hippocampus") -> Maps:
    picture = np.arange(48.0).reshape(6, 8)
    arms = {
        s: {
            **{stage: picture for stage in STAGES[s] if stage != "block"},
            "attention": picture,
            "output": picture / 48,
        }
        for s in ARMS
    }
    measures = {
        s: {
            stage: {"effective_rank": 2.25, "activation_iou": 0.125 * i}
            for i, stage in enumerate(STAGES[s])
        }
        for s in ARMS
    }
    return Maps(
        task, "c7", 0, ARMS[0], 3, arms, dict.fromkeys(ARMS, 0.875), measures, picture, picture > 30
    )


def rows(task: str = "Task04_Hippocampus") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "study": "s",
                "task": task,
                "system": s,
                "fraction": 1.0,
                "fold": fold,
                "seed": 0,
                "case": f"c{fold}{c}",
                "stage": stage,
                "label_share": 0.5,
                **dict.fromkeys(figures_activations.LABELS, 0.1 * i + 0.01 * fold),
            }
            for s in ARMS
            for fold in (0, 1)
            for c in (0, 1)
            for i, stage in enumerate(STAGES[s])
        ]
    )


def test_seven_columns_in_the_papers_order_with_empty_places_for_the_baseline() -> None:
    figure = figures_activations.seven_columns(maps(), ["a hole"])
    said = words(figure)
    places = [said.index(head) for head in figures_activations.HEADS.values()]
    assert len(figures_activations.HEADS) == 7 and places == sorted(places)
    assert said.count("network") == 2 and "a hole" in said
    assert said.count("rank 2.25") == 2 + 4 and "IoU 0.12" in said and "Dice 0.88" in said
    pictures = [axis for axis in figure.axes if axis.get_images() and axis.axison]
    assert len(pictures) == 5 + 7
    assert {image.get_cmap().name for axis in pictures for image in axis.get_images()} == {
        "gray",
        "cividis",
    }


def test_without_data_the_scan_is_said_to_be_away() -> None:
    assert (
        words(figures_activations.seven_columns(replace(maps(), scan=None, label=None))).count(
            "scan not"
        )
        == 2
    )
    assert "no weights" in words(figures_activations.seven_columns(None, ["no weights"]))


def test_measures_show_each_run_and_its_n() -> None:
    figure = figures_activations.effective_rank(rows(), ["a hole"])
    said = words(figure)
    assert "2 runs, 4 cases" in said and "no block" in said and "a hole" in said
    ends = [line.get_ydata() for line in figure.axes[0].get_lines() if len(line.get_ydata()) == 2]
    assert sorted([round(float(a), 3), round(float(b), 3)] for a, b in ends) == [
        [0.1, 0.2],
        [0.105, 0.205],
        [0.11, 0.21],
    ]
    assert (
        len([line for line in figure.axes[1].get_lines() if np.isfinite(line.get_ydata()).all()])
        == 3
    )


def test_iou_stands_beside_chance() -> None:
    assert "chance 0.33" in words(figures_activations.activation_iou(rows()))
    assert "chance" not in words(figures_activations.lsvr(rows()))


@pytest.mark.parametrize(
    "draw",
    [
        figures_activations.effective_rank,
        figures_activations.lsvr,
        figures_activations.activation_iou,
    ],
)
def test_an_empty_table_gives_the_hole(draw) -> None:
    assert "five runs" in words(draw(rows().iloc[:0], ["five runs"]))


def test_phantoms_say_so() -> None:
    assert "phantom" in words(
        figures_activations.seven_columns(maps("phantoms"))
    ) and "phantom" in words(figures_activations.effective_rank(rows("phantoms")))
    assert "phantom" in figures_activations.caption(
        maps("phantoms")
    ) and "phantom" not in figures_activations.caption(maps())


def test_the_table_gives_both_ends_and_the_change() -> None:
    table = figures_activations.measures_table(rows())
    assert (
        "| MedVisionLlama v3 | effective rank | at the block's width | 0.105 | 0.205 | +0.100 | 2"
        " | 4 |" in table
    )
    assert (
        "| ViT-Baseline | effective rank | at the network's width | 0.005 | no block |  | 2 | 4 |"
        in table
    )
    assert (
        figures_activations.measures_table(rows().iloc[:0])
        == "No activation measures are recorded."
    )


def test_the_caption_names_case_rule_and_what_the_released_figure_shows() -> None:
    said = figures_activations.caption(maps())
    assert (
        "`c7`" in said and "slice 3" in said and "ViT-Baseline" in said and "never trained" in said
    )
    assert (
        figures_activations.caption(None) == "No activation maps are recorded."
        and "own share of voxels" in figures_activations.method()
    )
