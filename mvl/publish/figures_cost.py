"""Figures of what an arm costs beside what it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.evidence.arms import colour, marker, ordered, title
from mvl.publish.style import MUTED, finish, hole, styled

COSTS = {
    "trainable": "trainable parameters, millions",
    "step_s": "seconds per training step in the bench (grid and batch of the bench)",
    "minutes": "core-minutes per run (training, one thread)",
}


@styled
def cost(runs: pd.DataFrame, bench: dict[str, dict[str, Any]], holes: Sequence[str] = ()) -> Figure:
    """Test Dice against trained parameters, a measured training step and core-minutes per run;
    line: no arm is cheaper and better (Pareto).

    runs: system, task, dice, trainable, cpu_s. bench: `systems` of data/bench.json; an arm that it
    lacks is left out of that panel.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    arms = runs.groupby("system").agg(
        mean=("dice", "mean"),
        low=("dice", "min"),
        high=("dice", "max"),
        n=("dice", "size"),
        trainable=("trainable", "first"),
        minutes=("cpu_s", "mean"),
    )
    arms["step_s"] = [bench.get(str(s), {}).get("seconds", math.nan) for s in arms.index]
    arms = arms.assign(trainable=arms["trainable"] / 1e6, minutes=arms["minutes"] / 60)
    figure = Figure(figsize=(6.4, 7.2 + 0.12 * len(arms)), layout="constrained")
    for axis, (column, words) in zip(figure.subplots(3, 1, sharey=True), COSTS.items()):
        _cost_panel(axis, arms[arms[column].notna()], column)
        axis.set(xscale="log", xlabel=words, ylabel="test Dice")
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
    keys = [
        mpl.lines.Line2D(
            [],
            [],
            color=colour(s),
            marker=marker(s),
            linestyle="",
            label=f"{title(s)} (n = {arms.loc[s, 'n']})",
        )
        for s in ordered(list(arms.index))
    ]
    figure.legend(handles=keys, loc="outside upper left", ncols=2, fontsize=9)
    return finish(
        figure,
        list(runs["task"]),
        holes,
        key="marker: mean of n runs; bar: their range; dashed line: Pareto front",
    )


def _cost_panel(axis: Axes, arms: pd.DataFrame, column: str) -> None:
    """One panel: a marker for each arm with the range of its runs, and the front."""
    for system, arm in arms.iterrows():
        ink = colour(str(system))
        axis.vlines(arm[column], arm["low"], arm["high"], color=ink, linewidth=1.2)
        axis.plot(
            arm[column],
            arm["mean"],
            marker=marker(str(system)),
            color=ink,
            markersize=8,
            linestyle="",
        )
    front = pareto(arms[column], arms["mean"])
    axis.plot(
        front.index,
        front,
        drawstyle="steps-post",
        color=MUTED,
        linewidth=1,
        linestyle="--",
        zorder=0,
    )


def pareto(costs: pd.Series, scores: pd.Series) -> pd.Series:
    """Score by cost the arms that no other beats at the same cost or less, cheapest first."""
    best = pd.Series(scores.to_numpy(), index=costs.to_numpy()).groupby(level=0).max().sort_index()
    return best[best > best.cummax().shift(fill_value=-math.inf)]
