"""Figures of what an arm costs beside what it reaches."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.evidence.arms import colour, marker, title
from mvl.publish.style import finish, hole, styled

COSTS = {
    "trainable": "trained\nparameters,\nmillions",
    "step_s": "seconds a\nstep, in\nthe bench",
    "minutes": "core-minutes\na run, in\ntraining",
}


@styled
def cost(runs: pd.DataFrame, bench: dict[str, dict[str, Any]], holes: Sequence[str] = ()) -> Figure:
    """A row for each arm, the best above: its test Dice beside trained parameters, a measured
    training step and core-minutes per run; filled: no arm is cheaper and better (Pareto).

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
    arms = arms.sort_values("mean").assign(row=range(len(arms)))
    figure = Figure(figsize=(6.4, 1.6 + 0.36 * len(arms)), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(COSTS), sharey=True)
    for system, arm in arms.iterrows():
        ink = colour(str(system))
        first.hlines(arm["row"], arm["low"], arm["high"], color=ink, linewidth=1.4)
        look: dict[str, Any] = {"marker": marker(str(system)), "markersize": 7, "linestyle": ""}
        first.plot(arm["mean"], arm["row"], color=ink, **look)
    first.set(xlabel="test Dice", ylim=(-0.6, len(arms) - 0.4))
    names = [f"{textwrap.fill(title(str(s)), 24)} ({n})" for s, n in arms["n"].items()]
    first.set_yticks(arms["row"], names, fontsize=9.5)
    for axis, (column, words) in zip(others, COSTS.items(), strict=True):
        _cost_panel(axis, arms[arms[column].notna()], column)
        axis.set(xscale="log", xlabel=words)
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(numticks=4))
        axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
        axis.margins(x=0.25)
    for axis in (first, *others):
        axis.tick_params(axis="x", labelsize=9.5)
        axis.xaxis.label.set_size(9.5)
    return finish(
        figure,
        list(runs["task"]),
        holes,
        key=(
            "in brackets: runs; marker: their mean; bar: their range; filled: no arm shown costs"
            " less and scores higher"
        ),
    )


def _cost_panel(axis: Axes, arms: pd.DataFrame, column: str) -> None:
    """One panel: a marker for each arm with its cost in figures, filled on the front."""
    front = pareto(arms[column], arms["mean"])
    for system, arm in arms.iterrows():
        ink = colour(str(system))
        best = front.get(arm[column]) == arm["mean"]
        look: dict[str, Any] = {"color": ink, "markerfacecolor": ink if best else "none"}
        look |= {"marker": marker(str(system)), "markersize": 7, "linestyle": ""}
        axis.plot(arm[column], arm["row"], **look)
        axis.annotate(
            f"{arm[column]:.2g}" if arm[column] < 10 else f"{arm[column]:.0f}",
            (arm[column], arm["row"]),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )


def pareto(costs: pd.Series, scores: pd.Series) -> pd.Series:
    """Score by cost the arms that no other beats at the same cost or less, cheapest first."""
    best = pd.Series(scores.to_numpy(), index=costs.to_numpy()).groupby(level=0).max().sort_index()
    return best[best > best.cummax().shift(fill_value=-math.inf)]
