"""Figures of what the block does to the features: maps in the paper's seven columns, and measures
before and after it, each from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.core.markdown import markdown_table
from mvl.evidence.activation_maps import Maps
from mvl.evidence.activation_records import PLACES, before_after
from mvl.evidence.arms import caveat, colour, marker, ordered, title
from mvl.publish.figure_data import SCAN
from mvl.publish.style import INK, SEQUENTIAL, finish, hole, styled

HEADS = {
    "input": "input\nX",
    "encoder": "encoder\n$V_E$",
    "mapper1": "mapper 1\n$V_{D1}$",
    "mapper2": "mapper 2\n$V_{D2}$",
    "decoder": "decoder\n$V_D$",
    "attention": "attention\nmap",
    "output": "output\nY",
}
"Columns of MedVisionLlama's figure Activation.png, in its order."
STAGES = {
    "encoder": ("encoder", "bottleneck"),
    "mapper1": ("mapper1",),
    "mapper2": ("mapper2",),
    "decoder": ("decoder",),
}
"Column = stage of the tables."
LABELS = {
    "effective_rank": "effective rank, nats",
    "effective_rank_centred": "effective rank, mean token off, nats",
    "lsvr": "LSVR, nats",
    "activation_iou": "activation IoU with the label",
    "activation_iou_best": "activation IoU, better sign",
    "entropy": "entropy of the map (1: even)",
}
"Measure = axis label."
MORE = {"effective_rank": "rank", "activation_iou": "IoU"}
CELL, PITCH, BELOW, HEAD = 0.82, 0.88, 1.02, 0.42
"""The seven columns, inches: width of a picture, step to the next, what a row needs beside its
picture, and the columns' heads."""


@styled
def seven_columns(maps: Maps | None, holes: Sequence[str] = ()) -> Figure:
    """One slice of one test case under each arm: input, encoder, both mappers, decoder, attention
    map, output.

    White line: the label. Under a map: the bar of its values, and its stage's effective rank and
    activation IoU over the whole case.
    """
    if maps is None:
        return hole("; ".join(holes) or "no activation maps", scans=True)
    systems = ordered(list(maps.arms))
    across, up = next(iter(maps.arms[systems[0]].values())).shape
    figure = finish(Figure(), [maps.task], holes)
    foot = 0.17 * len(figure.get_supxlabel().splitlines()) + 0.06
    row = CELL * up / across + BELOW
    figure.set_size_inches(len(HEADS) * PITCH + 0.1, len(systems) * row + HEAD + foot)
    for place, system in enumerate(systems):
        _arm(figure, maps, system, foot + (len(systems) - 1 - place) * row, first=not place)
    return figure


def _arm(figure: Figure, maps: Maps, system: str, bottom: float, first: bool) -> None:
    """One arm's row, its lower edge at `bottom` inches: its name, then seven pictures, each over
    its bar and its numbers."""
    wide, high = figure.get_size_inches()
    across, up = next(iter(maps.arms[system].values())).shape
    tall = CELL * up / across
    name = f"{title(system)}, Dice {maps.dice[system]:.2f}"
    figure.text(
        0.08 / wide,
        (bottom + tall + BELOW - 0.32) / high,
        name,
        fontsize=11.5,
        fontweight="bold",
        color=colour(system),
    )
    for number, (column, head) in enumerate(HEADS.items()):
        left = 0.08 + number * PITCH
        axis = figure.add_axes((left / wide, (bottom + 0.58) / high, CELL / wide, tall / high))
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        if first:
            figure.text(
                (left + CELL / 2) / wide,
                1 - 0.06 / high,
                head,
                fontsize=11.5,
                ha="center",
                va="top",
            )
        axis.set_gid(SCAN if column == "input" else None)
        picture = maps.scan if column == "input" else maps.arms[system].get(column)
        if picture is None:
            _nothing(axis, "scan not\nhere" if column == "input" else "not in\nthis\nnetwork")
            continue
        bar = figure.add_axes((left / wide, (bottom + 0.50) / high, CELL / wide, 0.06 / high))
        bar.set_gid(axis.get_gid())
        _picture(axis, bar, picture, column, maps.label)
        axis.text(
            0.5,
            -0.26 / tall,
            _numbers(maps, system, column),
            fontsize=11,
            ha="center",
            va="top",
            transform=axis.transAxes,
        )


def _nothing(axis: Axes, words: str) -> None:
    axis.spines[:].set_visible(False)
    axis.text(
        0.5,
        0.5,
        words,
        ha="center",
        va="center",
        fontsize=10.5,
        style="italic",
        color="#57606A",
        transform=axis.transAxes,
    )


def _picture(
    axis: Axes, bar: Axes, picture: np.ndarray, column: str, label: np.ndarray | None
) -> None:
    """A map or the scan, the label's outline, and a bar that ends in its values."""
    limits: dict[str, Any] = {"vmin": 0, "vmax": 1} if column == "output" else {}
    look = "gray" if column == "input" else SEQUENTIAL
    image = axis.imshow(
        picture.T, cmap=look, origin="lower", interpolation="nearest", aspect="auto", **limits
    )
    if label is not None and label.any() and not label.all():
        for ink, width in ((INK, 2.4), ("#FFFFFF", 1.2)):
            outline = axis.contour(
                label.T.astype(float), levels=[0.5], colors=[ink], linewidths=width
            )
            outline.set_gid(SCAN)
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=look, aspect="auto")
    bar.set_axis_off()
    for value, x, side in zip(image.get_clim(), (0, 1), ("left", "right")):
        bar.text(
            x,
            -0.5,
            f"{value:.3g}" if abs(value) >= 100 else f"{value:.2g}",
            ha=side,
            va="top",
            fontsize=10,
            transform=bar.transAxes,
        )


def _numbers(maps: Maps, system: str, column: str) -> str:
    """IoU and effective rank of a column's stage."""
    stage = next((s for s in STAGES.get(column, ()) if s in maps.numbers[system]), None)
    return (
        "\n".join(f"{word} {maps.numbers[system][stage][name]:.2f}" for name, word in MORE.items())
        if stage
        else ""
    )


def effective_rank(rows: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Effective rank before and after the block, a line per run (mean over its cases)."""
    return measure_figure(rows, "effective_rank", holes)


def lsvr(rows: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """LSVR before and after the block, a line per run (mean over its cases)."""
    return measure_figure(rows, "lsvr", holes)


def activation_iou(rows: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Activation IoU before and after the block, a line per run (mean over its cases), and what
    chance gives."""
    return measure_figure(rows, "activation_iou", holes)


@styled
def measure_figure(rows: pd.DataFrame, column: str, holes: Sequence[str] = ()) -> Figure:
    """A measure of activations.csv before and after the block: a panel per place, two marks per arm
    joined for each run; n under each arm."""
    if rows.empty:
        return hole("; ".join(holes) or "no activation measures")
    table = before_after(rows, column)
    systems = ordered(list(table["system"]))
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    for axis, place in zip(figure.subplots(2, 1), PLACES):
        _place(axis, table[table["place"] == place], systems)
        axis.set_title(f"{place}: {WHERE[place]}", fontsize=10.5)
        axis.set_ylabel(LABELS[column])
        axis.margins(y=0.12)  # one rule for every measure: the axis spans what is drawn
        if column.startswith("activation_iou"):
            _chance(axis, rows)
    handles = [
        mpl.lines.Line2D([], [], color=colour(s), marker=marker(s), label=title(s)) for s in systems
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return finish(figure, list(rows["task"]), holes)


WHERE = {
    "at the block's width": "after mapper 1 → after the block",
    "at the network's width": "after the encoder → after mapper 2",
}
"What before and after are, by place."


def _place(axis: Axes, table: pd.DataFrame, systems: Sequence[str]) -> None:
    """Each run's before and after, and the mean of the arm's runs as a thick line; n under each
    arm."""
    words = []
    for place, system in enumerate(systems):
        runs = table[(table["system"] == system) & table["before"].notna()]
        ends = [place - 0.22, place + 0.22]
        for row in runs.itertuples():
            axis.plot(
                ends,
                [row.before, row.after],
                color=colour(system),
                marker=marker(system),
                markersize=5,
                linewidth=1,
                alpha=0.55,
            )
        if len(runs):
            axis.plot(
                ends,
                [runs["before"].mean(), runs["after"].mean()],
                color=colour(system),
                marker="_",
                markersize=16,
                linewidth=2.6,
            )
        cases = int(runs["n_cases"].sum())
        if runs.empty:
            words.append("no block")
            continue

        head = "before  →  after" if runs["after"].notna().any() else "no block"
        count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
        words.append(f"{head}\n{count}, {cases} cases")
    axis.set_xticks(range(len(systems)), words, fontsize=9.5)
    axis.set_xlim(-0.5, len(systems) - 0.5)
    axis.xaxis.grid(False)


def _chance(axis: Axes, rows: pd.DataFrame) -> None:
    """The IoU of as many voxels drawn at random, mean over the cases."""
    from mvl.evidence.activations import chance_iou

    share = rows.drop_duplicates(["task", "case"])["label_share"]
    chance = math.fsum(map(chance_iou, share)) / len(share)
    axis.axhline(chance, color=INK, linestyle=":", linewidth=1.2)
    axis.annotate(
        f"chance {chance:.2f}",
        (1, chance),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=9.5,
    )


def measures_table(rows: pd.DataFrame) -> str:
    """Markdown: each measure before and after the block by arm, mean over runs of the means over
    cases."""
    if rows.empty:
        return "No activation measures are recorded."
    lines = []
    for column in LABELS:
        table = before_after(rows, column)
        for system in ordered(list(table["system"])):
            for place in PLACES:
                runs = table[
                    (table["system"] == system)
                    & (table["place"] == place)
                    & table["before"].notna()
                ]
                lines += [_cells(runs, system, column, place)] if len(runs) else []
    head = "arm | measure | place | before | after | change | runs | cases"
    return markdown_table(head, "lllrrrrr", lines)


def _cells(runs: pd.DataFrame, system: str, column: str, place: str) -> list[object]:
    before, after = runs["before"].mean(), runs["after"].mean()
    end = (f"{after:.3f}", f"{after - before:+z.3f}") if math.isfinite(after) else ("no block", "")
    name, cases = LABELS[column].removesuffix(", nats"), int(runs["n_cases"].sum())
    return [title(system), name, place, f"{before:.3f}", *end, len(runs), cases]


def caption(maps: Maps | None, holes: Sequence[str] = ()) -> str:
    """Markdown under the seven columns: case and slice, how the maps are made, and what the paper's
    own figure shows."""
    if maps is None:
        return "No activation maps are recorded."
    where = f", axial slice {maps.slice}" if maps.slice else ""
    made = f" ({words})" if (words := caveat([maps.task])) else ""
    return (
        f"Test case `{maps.case}` of `{maps.task}`{made}, fold {maps.fold}{where}: the median case"
        f" by the Dice of {title(maps.ranked_by)}. A map is the L2 norm over channels of a"
        " position's features after the case's mean feature is taken off, brought to the network's"
        " grid by linear interpolation; each has its own scale, given by its bar. White line: the"
        " label. *Attention map*: the attention that each token of the last ViT block gets, mean"
        " over heads and queries (1 is an even share). *Output*: the probability of foreground."
        " MedVisionLlama's published figure has the same columns without scales; in the released"
        " code its feature columns come from output heads that are never trained"
        " (`vis_output_proj*`, random projections) and its attention map is the sigmoid of the"
        " output, so the two figures cannot be compared column by column."
    )


def method() -> str:
    """Markdown: how the measures are defined."""
    return (
        "Each measure is taken per test case and averaged over the cases of a run. **Effective"
        " rank**: with p the singular values of the case's token matrix (tokens by channels)"
        " divided by their sum, -sum p log p, nats; **LSVR**: minus the logarithm of the largest p."
        " Both as in LLM4Seg's figure; the centred rank takes the mean token off first."
        " **Activation IoU**: the activation map (norm of the centred features, linear"
        " interpolation to the network's grid) is thresholded at the label's own share of voxels,"
        " so that no arm gains by marking more, and compared with the label; *better sign* also"
        " tries the lowest voxels. The papers' own rule for map and threshold was not recovered, so"
        " values compare between our arms only. The dotted line is what as many voxels drawn at"
        " random would reach. **Entropy**: of the map's squares as shares of their sum, over its"
        " largest value; lower is sharper."
    )
