"""Figures across arms: every difference by question, curves by share of the data and by arm, Dice by fold, cost against Dice."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from mvl.figures import EQUIVALENCE_POINTS, band, in_points, selected_epochs
from mvl.stats import ONE_PAIR
from mvl.style import FRACTION_COLOURS, INK, MUTED, WARN, colour, finish, hole, marker, ordered, styled, title

WIDEST_POINTS = 6.0
"Half-width of a forest plot at most; an interval that goes on beyond it ends in an arrow, its numbers stand beside."
ARM_DASHES = {"vit_baseline": ":", "medvisionllama_v3": "-", "medvisionllama_v3_random": "-."}
"Solid hybrid and dotted baseline, as in MedVisionLlama's figure; dash-dotted the control that it lacks."
COSTS = {"trainable": "trainable parameters, millions", "step_s": "seconds per training step in the bench (grid and batch of the bench)",
         "minutes": "core-minutes per run (training, one thread)"}


@styled
def forest(differences: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Every paired difference of a study grouped by question and reference, over the equivalence band, filled where Holm's p < 0.05.

    differences: columns of `mvl.report.differences`, `question` (words), and `p_holm` where it has been adjusted.
    """
    if differences.empty or not differences["n_runs"].any():
        return hole("; ".join(holes) or "no pairs of finished runs", list(differences.get("task", ())))
    groups = list(differences.groupby(["question", "reference"], sort=False))
    figure = Figure()
    axis, reach, y = figure.add_axes((0.0, 0.0, 1.0, 1.0)), _reach(differences), 0.0
    side = blended_transform_factory(figure.transFigure, axis.transData)
    axis.axvspan(-EQUIVALENCE_POINTS, EQUIVALENCE_POINTS, color="#8C959F", alpha=0.22, linewidth=0)
    axis.axvline(0, color=MUTED, linewidth=1)
    for (question, reference), rows in groups:
        axis.text(0.01, y + 0.4, f"{question}: minus {title(str(reference))}", transform=side, weight="bold", fontsize=9)
        for place, row in enumerate(rows.to_dict("records"), start=1):
            _forest_row(axis, y + place + 0.3, row, reach)
        y += len(rows) + 1.6
    axis.set(yticks=[], ylim=(y, -0.4), xlim=(-reach, reach), xlabel="points, 0 to 100 (grey: within 1)")
    axis.spines["left"].set_visible(False)
    axis.yaxis.grid(False)
    return _fitted(finish(figure, list(differences["task"]), holes, key=_forest_key(differences)), axis, y)


def _fitted(figure: Figure, axis: Axes, lines: float) -> Figure:
    """Give every line of the plot its height and the notes below it theirs; names to the left, numbers to the right."""
    below = 0.55 + 0.17 * (figure.get_supxlabel().count("\n") + 1)
    height = 0.15 + 0.25 * (lines + 0.4) + below
    figure.set_size_inches(6.4, height)
    axis.set_position((0.41, below / height, 0.3, 1 - (below + 0.15) / height))
    figure.texts[-1].set(position=(0.01, 0.05 / height), va="bottom")
    return figure


def _reach(rows: pd.DataFrame) -> float:
    """Half-width of the axis: the widest interval, within bounds."""
    widest = 105 * float(np.nanmax(rows[["low", "high"]].abs().to_numpy(dtype=float)))
    return min(max(widest, 2 * EQUIVALENCE_POINTS), WIDEST_POINTS)


def _forest_row(axis: Axes, y: float, row: dict[Any, Any], reach: float) -> None:
    """One line: the system's name, its interval, and mean, ends and pairs of runs; or that it is not yet recorded."""
    side: dict[str, Any] = {"transform": blended_transform_factory(axis.figure.transFigure, axis.transData), "va": "center", "fontsize": 8.5}
    axis.text(0.02, y, _row_name(row), **side)
    if not row["n_runs"]:
        axis.text(0.72, y, "not yet recorded", color=WARN, style="italic", **side)
        return
    low, mid, high = (100 * float(row[k]) for k in ("low", "difference", "high"))
    look: dict[str, Any] = {"color": colour(row["system"]), "clip_on": True}
    axis.plot(np.clip([low, high], -reach, reach), [y, y], linewidth=2, linestyle=(0, (2, 1)) if row["n_runs"] == 1 else "-", **look)
    for side_of in {math.copysign(1, end) for end in (low, high) if abs(end) > reach}:
        axis.plot(side_of * reach * 0.985, y, marker="<" if side_of < 0 else ">", markersize=6, **look)
    if abs(mid) < reach:
        sure = row.get("p_holm", math.nan) < 0.05
        axis.plot(mid, y, marker=marker(row["system"]), markersize=7, markerfacecolor=look["color"] if sure else "white", **look)
    planned = row.get("planned", row["n_runs"])
    count = f"{row['n_runs']}" + (f" of {planned}" if planned > row["n_runs"] else "")
    axis.text(0.72, y, f"{in_points(mid, low, high)}  n={count}", **side)


def _row_name(row: dict[Any, Any]) -> str:
    """The system's name in one line, with what else tells the row from its neighbours."""
    what = {"jaccard": "IoU: "}.get(str(row.get("metric", "dice")), "")
    share = "" if row["fraction"] == 1 else f", {row['fraction']:.0%} of the data"
    return textwrap.shorten(f"{what}{title(row['system'])}{share}", 44, placeholder="…")


def _forest_key(rows: pd.DataFrame) -> str:
    """What the marks mean, for those that are there."""
    adjusted = "p_holm" in rows and rows["p_holm"].notna().any()
    words = "n: pairs of runs. " + ("Filled: Holm's p < 0.05 within its chapter. Open: not. " if adjusted else "Open: no test decides it yet. ")
    return words + (f"Dashed: {ONE_PAIR}." if (rows["n_runs"] == 1).any() else "")


@styled
def few_shot_curves(history: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice (top) and loss (bottom) by epoch as in MedVisionLlama's figure: colour tells the share of the data, the dash the arm.

    Line: mean over runs; band: smallest to largest. history: system, task, fraction, fold, seed, epoch, val_dice, val_loss.
    """
    few = history[history["fraction"] < 1]
    if few.empty:
        return hole("; ".join(holes) or "no training history with few cases", list(history["task"]))
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for (fraction, system), runs in few.groupby(["fraction", "system"], sort=True):
        n = len(runs[["task", "fold", "seed"]].drop_duplicates())
        ink, words = FRACTION_COLOURS.get(fraction, MUTED), f"{fraction:.0%}: {title(system)} (n = {n})"
        for axis, column in zip(axes, ("val_dice", "val_loss")):
            band(axis, runs, column, color=ink, linestyle=ARM_DASHES.get(system, "--"), label=words)
    axes[0].set(ylabel="validation Dice")
    axes[1].set(ylabel="validation loss", xlabel="epoch (line: mean of runs; band: their range)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9)
    return finish(figure, list(few["task"]), holes,
                  key="here colour tells the share of the training cases, and the dash the arm (n: runs)")


@styled
def curves_by_arm(history: pd.DataFrame, reference: str, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice by epoch, one row for each arm, whole and its last half enlarged, the reference's mean dotted; ticks: epochs selected.

    history: system, task, fraction, fold, seed, epoch, val_dice, of one share of the data.
    """
    if history.empty:
        return hole("; ".join(holes) or "no training history")
    systems = [s for s in ordered(list(history["system"])) if s != reference] or [reference]
    figure = Figure(figsize=(6.4, 0.9 + 1.35 * len(systems)), layout="constrained")
    grid, beside = figure.subplots(len(systems), 2, sharex="col", squeeze=False), history[history["system"] == reference]
    for axes, system in zip(grid, systems):
        runs = history[history["system"] == system]
        for axis, start in zip(axes, (0.0, history["epoch"].max() / 2)):
            axis.plot(beside[beside["epoch"] >= start].groupby("epoch")["val_dice"].mean().dropna(), color=MUTED, linestyle=":", linewidth=1.3)
            curve = band(axis, runs[runs["epoch"] >= start], "val_dice", color=colour(system))
        axes[1].plot(curve["mean"].reindex(selected_epochs(runs)["epoch"].unique()), linestyle="", marker="|", markersize=9, color=INK)
        n = len(runs[["task", "fraction", "fold", "seed"]].drop_duplicates())
        axes[0].set_title(f"{title(system)} (n = {n} run{'s' if n > 1 else ''})", fontsize=9.5)
    grid[-1][0].set_xlabel("epoch, all")
    grid[-1][1].set_xlabel("epoch, last half, enlarged")
    return finish(figure, list(history["task"]), holes,
                  key=f"validation Dice; dotted: mean of {title(reference)}; band: range of the runs; ticks: epochs whose weights were kept")


@styled
def dice_by_fold(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice by fold: a thin line for each case across the arms (mean over seeds), a marker for each arm's mean over the cases.

    cases: system, task, fold, seed, case, dice (one label).
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test cases")
    dots, systems = cases.groupby(["system", "fold", "case"], as_index=False)["dice"].mean(), ordered(list(cases["system"]))
    folds = sorted(dots["fold"].unique())
    rows = math.ceil(len(folds) / 3)
    figure = Figure(figsize=(6.4, 0.9 + 0.16 * len(systems) + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, min(3, len(folds)), sharey=True, squeeze=False).ravel()
    for axis, fold in zip(grid, folds):
        _fold_panel(axis, dots[dots["fold"] == fold].pivot(index="case", columns="system", values="dice").reindex(columns=systems), int(fold))
    for axis in grid[len(folds):]:
        axis.axis("off")
    for axis in grid[::min(3, len(folds))]:
        axis.set_ylabel("test Dice")
    keys = [mpl.lines.Line2D([], [], color=colour(s), marker=marker(s), linestyle="", label=title(s)) for s in systems]
    figure.legend(handles=keys, loc="outside upper left", ncols=2)
    return finish(figure, list(cases["task"]), holes,
                  key="line: one test case across the arms (mean over seeds); marker: mean of the arm's cases")


def _fold_panel(axis: Axes, table: pd.DataFrame, fold: int) -> None:
    """One fold: cases down the table, arms across it; a gap where an arm has no run."""
    places = np.arange(len(table.columns))
    axis.plot(places, table.T.to_numpy(), color="#8C959F", linewidth=0.6, alpha=0.6)
    for place, system in zip(places, table.columns):
        axis.scatter([place] * len(table), table[system], s=5, color=colour(system), alpha=0.6, linewidths=0)
        axis.plot(place, table[system].mean(), marker=marker(system), color=colour(system), markersize=8, markeredgecolor="white", linestyle="")
    axis.set(xticks=[], xlim=(-0.6, len(places) - 0.4))
    axis.set_title(f"fold {fold}, n = {len(table)} cases", fontsize=9.5)
    axis.xaxis.grid(False)


@styled
def cost(runs: pd.DataFrame, bench: dict[str, dict[str, Any]], holes: Sequence[str] = ()) -> Figure:
    """Test Dice against trained parameters, a measured training step and core-minutes per run; line: no arm is cheaper and better (Pareto).

    runs: system, task, dice, trainable, cpu_s. bench: `systems` of data/bench.json; an arm that it lacks is left out of that panel.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    arms = runs.groupby("system").agg(mean=("dice", "mean"), low=("dice", "min"), high=("dice", "max"), n=("dice", "size"),
                                      trainable=("trainable", "first"), minutes=("cpu_s", "mean"))
    arms["step_s"] = [bench.get(str(s), {}).get("seconds", math.nan) for s in arms.index]
    arms = arms.assign(trainable=arms["trainable"] / 1e6, minutes=arms["minutes"] / 60)
    figure = Figure(figsize=(6.4, 7.2 + 0.12 * len(arms)), layout="constrained")
    for axis, (column, words) in zip(figure.subplots(3, 1, sharey=True), COSTS.items()):
        _cost_panel(axis, arms[arms[column].notna()], column)
        axis.set(xscale="log", xlabel=words, ylabel="test Dice")
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
    keys = [mpl.lines.Line2D([], [], color=colour(s), marker=marker(s), linestyle="", label=f"{title(s)} (n = {arms.loc[s, 'n']})")
            for s in ordered(list(arms.index))]
    figure.legend(handles=keys, loc="outside upper left", ncols=2, fontsize=9)
    return finish(figure, list(runs["task"]), holes, key="marker: mean of n runs; bar: their range; dashed line: Pareto front")


def _cost_panel(axis: Axes, arms: pd.DataFrame, column: str) -> None:
    """One panel: a marker for each arm with the range of its runs, and the front."""
    for system, arm in arms.iterrows():
        ink = colour(str(system))
        axis.vlines(arm[column], arm["low"], arm["high"], color=ink, linewidth=1.2)
        axis.plot(arm[column], arm["mean"], marker=marker(str(system)), color=ink, markersize=8, linestyle="")
    front = pareto(arms[column], arms["mean"])
    axis.plot(front.index, front, drawstyle="steps-post", color=MUTED, linewidth=1, linestyle="--", zorder=0)


def pareto(costs: pd.Series, scores: pd.Series) -> pd.Series:
    """Score by cost of the arms that no other arm beats at the same cost or less, cheapest first."""
    best = pd.Series(scores.to_numpy(), index=costs.to_numpy()).groupby(level=0).max().sort_index()
    return best[best > best.cummax().shift(fill_value=-math.inf)]
