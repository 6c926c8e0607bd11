"""Figures of curves: over epochs, over the share of the training data, over the LoRA rank."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.evidence.arms import colour, marker, ordered, title
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.reported import paper_values
from mvl.evidence.topics import HYBRID, VIT
from mvl.publish.findings import epoch_gaps
from mvl.publish.style import DASHES, INK, MUTED, finish, hole, styled


@styled
def few_shot_curves(
    history: pd.DataFrame, holes: Sequence[str] = (), reported: bool = False
) -> Figure:
    """Validation Dice (top) and loss (bottom) by epoch with few training cases, a column for each
    share of them.

    MedVisionLlama's figure has the share as the colour; here a colour is the same arm everywhere.
    Line: mean over runs; band: smallest to largest. history: system, task, fraction, fold, seed,
    epoch, val_dice, val_loss. reported: draw where the paper's own curves end too.
    """
    few = history[history["fraction"] < 1]
    if few.empty:
        return hole("; ".join(holes) or "no training history with few cases", list(history["task"]))
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    fractions = sorted(few["fraction"].unique())
    grid = figure.subplots(2, len(fractions), sharex="col", sharey="row", squeeze=False)
    for axes, fraction in zip(grid.T, fractions):
        rows = few[few["fraction"] == fraction]
        for place, system in enumerate(ordered(list(rows["system"]))):
            runs = rows[rows["system"] == system]
            line: dict[str, Any] = {"color": colour(system), "linestyle": DASHES[place % 4]}
            for axis, column in zip(axes, ("val_dice", "val_loss")):
                band(axis, runs, column, **line)
        if reported:
            _reported_ends(list(axes), float(fraction), int(rows["epoch"].max()))
        axes[0].set_title(f"{fraction:.0%} of the training cases")
        axes[1].set_xlabel("epoch")
    grid[0][0].set_ylabel("validation Dice")
    grid[1][0].set_ylabel("validation loss")
    counts = few.drop_duplicates(["system", "task", "fraction", "fold", "seed"])
    keys = []
    for place, system in enumerate(ordered(list(few["system"]))):
        n = counts[counts["system"] == system].groupby("fraction").size().unique()
        label = f"{title(system)} (n = {'/'.join(map(str, n))} runs)"
        look: dict[str, Any] = {
            "color": colour(system),
            "linestyle": DASHES[place % 4],
            "label": label,
        }
        keys.append(mpl.lines.Line2D([], [], **look))
    figure.legend(handles=keys, loc="outside upper left", ncols=2, fontsize=9)
    key = "line: mean of n runs; band: their range"
    if reported:
        key += "; diamond: where the paper's curve of that arm ends (epoch 100, tasks not stated)"
    return finish(figure, list(few["task"]), holes, key=key)


def _reported_ends(axes: Sequence[Axes], fraction: float, epoch: int) -> None:
    """Draw the last validation Dice and loss that the paper's figure shows at this share."""
    for name, system in (("MedVisionLlama", HYBRID), ("ViT-Baseline", VIT)):
        for axis, metric in zip(axes, ("val_dice", "val_loss")):
            found = paper_values(
                table=f"few-shot {fraction:.0%}".replace("%", " %"), system=name, metric=metric
            )
            look: dict[str, Any] = {"marker": "D", "markerfacecolor": "none", "markersize": 7}
            for value in found:
                axis.plot(epoch, value, linestyle="", color=colour(system), **look)


@styled
def curve_differences(history: pd.DataFrame, reference: str, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice of each arm minus that of the reference at the same fold, seed and epoch, a
    panel for each arm.

    Line: mean over runs; band: smallest to largest; ticks: the arm's epochs selected. history:
    system, task, fraction, fold, seed, epoch, val_dice.
    """
    gaps = epoch_gaps(history, reference)
    if gaps.empty:
        return hole("; ".join(holes) or "no pairs of training histories", list(history["task"]))
    systems = ordered(list(gaps["system"]))
    figure = Figure(figsize=(6.4, 1.0 + 1.6 * len(systems)), layout="constrained")
    grid = figure.subplots(len(systems), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, system in zip(grid, systems):
        rows = gaps[gaps["system"] == system]
        axis.axhspan(
            -EQUIVALENCE_POINTS, EQUIVALENCE_POINTS, color="#8C959F", alpha=0.22, linewidth=0
        )
        axis.axhline(0, color=MUTED, linewidth=1)
        curve = band(axis, rows, "points", color=colour(system))
        kept = selected_epochs(history[history["system"] == system])["epoch"].unique()
        axis.plot(curve["mean"].reindex(kept), linestyle="", marker="|", markersize=9, color=INK)
        n = len(rows[["task", "fold", "seed"]].drop_duplicates())
        axis.set_title(f"{title(system)} minus {title(reference)} (n = {n} pairs of runs)")
        axis.set_ylabel("points")
    grid[-1].set_xlabel("epoch")
    # the first epochs differ by tens of points, which would flatten all that follows
    late = gaps[gaps["epoch"] >= gaps["epoch"].max() / 4]["points"].abs()
    reach = max(2 * EQUIVALENCE_POINTS, 1.1 * float(late.max()))
    grid[0].set_ylim(-reach, reach)
    return finish(
        figure,
        list(history["task"]),
        holes,
        key=(
            "validation Dice at the same fold, seed and epoch; line: mean of n pairs; band: their"
            " range, cut where the first epochs leave the frame; grey: within one point; ticks:"
            " epochs whose weights were kept"
        ),
    )


@styled
def curves_by_arm(history: pd.DataFrame, reference: str, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice by epoch, a panel for each arm over its own epochs, the reference's mean at
    the same epochs dotted; ticks: epochs selected.

    All panels have one scale, which begins where the slowest arm is after a third of its epochs:
    what came before would flatten the rest. history: system, task, fraction, fold, seed, epoch,
    val_dice, of one share of the data.
    """
    if history.empty:
        return hole("; ".join(holes) or "no training history")
    systems = [s for s in ordered(list(history["system"])) if s != reference] or [reference]
    rows = math.ceil(len(systems) / 2)
    figure = Figure(figsize=(6.4, 0.9 + 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharey=True, squeeze=False).ravel()
    beside = history[history["system"] == reference].groupby("epoch")["val_dice"].mean().dropna()
    floors, tops = [], []
    for axis, system in zip(grid, systems):
        runs = history[history["system"] == system]
        last = int(runs["epoch"].max())
        axis.plot(beside[beside.index <= last], color=MUTED, linestyle=":", linewidth=1.3)
        curve = band(axis, runs, "val_dice", color=colour(system))
        kept = selected_epochs(runs)["epoch"].unique()
        axis.plot(curve["mean"].reindex(kept), linestyle="", marker="|", markersize=9, color=INK)
        n = len(runs[["task", "fraction", "fold", "seed"]].drop_duplicates())
        name = textwrap.shorten(title(system), 26, placeholder=" …")
        axis.set_title(f"{name} ({n} run{'s' if n > 1 else ''})", fontsize=9.5)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
        floors.append(float(curve[curve.index >= last / 3]["min"].min()))
        tops.append(float(curve["max"].max()))
    for axis in grid[len(systems) :]:
        axis.set_axis_off()
    room = 0.08 * (max(tops) - min(floors))
    grid[0].set_ylim(min(floors) - room, max(tops) + room)
    for axis in grid[::2]:
        axis.set_ylabel("validation Dice", fontsize=9.5)
    for axis in grid[max(0, len(systems) - 2) : len(systems)]:
        axis.set_xlabel("epoch")
    return finish(
        figure,
        list(history["task"]),
        holes,
        key=(
            f"line: mean of the runs; dotted: mean of {title(reference)} at the same epochs; band:"
            " range of the runs, cut below; ticks: epochs whose weights were kept"
        ),
    )


@styled
def training_curves(history: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice and loss by epoch: line = mean over folds and seeds, band = smallest to
    largest, ticks = the runs' selected epochs.

    history: system, task, fraction, fold, seed, epoch, val_dice, val_loss.
    """
    if history.empty:
        return hole("; ".join(holes) or "no training history")
    figure = Figure(figsize=(6.4, 5.4 + 0.12 * history["system"].nunique()), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    fractions = sorted(history["fraction"].unique(), reverse=True)
    for (system, fraction), runs in history.groupby(["system", "fraction"], sort=False):
        line: dict[str, Any] = {
            "color": colour(system),
            "linestyle": DASHES[fractions.index(fraction) % 4],
        }
        late = runs[runs["epoch"] >= runs["epoch"].max() / 2]
        for row, column in zip(axes, ("val_dice", "val_loss")):
            band(row[0], runs, column, **line)
            curve = band(row[1], late, column, **line)
            picked = curve["mean"].reindex(selected_epochs(runs)["epoch"].unique())
            row[1].plot(
                picked,
                linestyle="",
                marker="|",
                markersize=9,
                markeredgewidth=1.3,
                color=line["color"],
            )
    axes[0, 0].set(ylabel="validation Dice")
    axes[1, 0].set(ylabel="validation loss", xlabel="epoch, all")
    axes[1, 1].set(xlabel="epoch, last half, enlarged")
    for axis in axes[1]:
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    figure.legend(handles=_curve_keys(history, fractions), loc="outside upper left", ncols=2)
    return finish(
        figure,
        list(history["task"]),
        holes,
        key="line: mean of runs; band: their range; ticks: epochs whose weights were kept",
    )


def band(axis: Axes, runs: pd.DataFrame, column: str, **line: Any) -> pd.DataFrame:
    """Draw the mean over runs by epoch and the range of the runs behind it; returns mean, min and
    max by epoch that was validated."""
    curve = runs.dropna(subset=[column]).groupby("epoch")[column].agg(["mean", "min", "max"])
    axis.fill_between(
        curve.index, curve["min"], curve["max"], color=line["color"], alpha=0.13, linewidth=0
    )
    axis.plot(curve.index, curve["mean"], **line)
    return curve


def selected_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """Take the epoch of each run whose weights were kept: the first of highest validation Dice."""
    validated = history.dropna(subset=["val_dice"])
    return validated.loc[
        validated.groupby(["task", "system", "fraction", "fold", "seed"])["val_dice"].idxmax()
    ]


def _curve_keys(history: pd.DataFrame, fractions: Sequence[float]) -> list[Any]:
    """Legend: a colour for each system with its number of runs, and a dash for each share of the
    data if there are several."""
    line = mpl.lines.Line2D
    counts = {
        s: len(rows[["task", "fraction", "fold", "seed"]].drop_duplicates())
        for s, rows in history.groupby("system")
    }
    words = {s: f"{title(s)} ({n} run{'s' if n > 1 else ''})" for s, n in counts.items()}
    keys = [line([], [], color=colour(s), label=words[s]) for s in ordered(list(counts))]
    looks: list[dict[str, Any]] = [
        {"linestyle": DASHES[i % 4], "label": f"{f:.0%} of the data"}
        for i, f in enumerate(fractions)
    ]
    dashes = [line([], [], color="#57606A", **look) for look in looks]
    return keys + dashes * (len(fractions) > 1)


@styled
def few_shot(runs: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice by share of the training cases: marker = mean over runs, bar = smallest to largest
    run.

    runs: system, task, fraction, fold, seed, dice, n_test.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    figure = Figure(figsize=(6.4, 4.3), layout="constrained")
    axis, systems = figure.subplots(), ordered(list(runs["system"]))
    for place, system in enumerate(systems):
        points = (
            runs[runs["system"] == system]
            .groupby("fraction")["dice"]
            .agg(["mean", "min", "max", "size"])
            .reset_index()
        )
        x = points["fraction"] * 1.05 ** (place - (len(systems) - 1) / 2)
        reach = [points["mean"] - points["min"], points["max"] - points["mean"]]
        sizes = (
            "/".join(map(str, points["size"]))
            if points["size"].nunique() > 1
            else str(points["size"].iloc[0])
        )
        look: dict[str, Any] = {
            "color": colour(system),
            "marker": marker(system),
            "label": f"{title(system)} (n = {sizes})",
        }
        axis.errorbar(x, points["mean"], yerr=reach, markersize=7, capsize=3, **look)
    fractions = sorted(runs["fraction"].unique())
    axis.set_xscale("log")
    axis.set_xticks(fractions, [f"{f:.0%}" for f in fractions])
    axis.minorticks_off()
    axis.set(
        xlabel="share of the training cases (marker: mean of n runs; bar: their range)",
        ylabel="test Dice, native grid",
        xlim=(min(fractions) / 1.3, max(fractions) * 1.3),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return finish(figure, list(runs["task"]), holes)


@styled
def lora_rank(runs: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice against trainable parameters for each rank of the mappers' adapters and for plain
    linear maps.

    runs: system, task, fold, seed, dice, trainable.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for _, unit in runs.groupby(["task", "fold", "seed"]):
        axis.plot(
            unit.sort_values("trainable")["trainable"] / 1e3,
            unit.sort_values("trainable")["dice"],
            color="#8C959F",
            linewidth=0.8,
            zorder=0,
        )
    for system, rows in runs.groupby("system"):
        x, mean = float(rows["trainable"].iloc[0]) / 1e3, rows["dice"].mean()
        axis.scatter([x] * len(rows), rows["dice"], s=16, color=colour(system), alpha=0.5)
        look: dict[str, Any] = {
            "color": colour(system),
            "marker": marker(system),
            "label": f"{title(system)} (n = {len(rows)})",
        }
        axis.plot(x, mean, markersize=9, linestyle="", **look)
    axis.set(
        xlabel="trainable parameters, thousands (thin line: one fold and seed)",
        ylabel="test Dice, native grid",
    )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    axis.minorticks_off()
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: handles[i].get_xdata()[0])  # type: ignore[attr-defined]
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=2
    )
    return finish(figure, list(runs["task"]), holes)
