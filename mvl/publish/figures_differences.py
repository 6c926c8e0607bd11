"""Figures of differences between arms: one dot a case, and an interval for each comparison."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from mvl.evidence.arms import colour, marker, title
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.run_pairs import cases_and_seeds
from mvl.evidence.stats import ONE_PAIR
from mvl.publish.style import MUTED, WARN, finish, hole, styled

LINE = 76
"Letters of a comparison on one line."
WIDEST_POINTS = 6.0
"""Half-width of a forest plot at most; an interval that goes on beyond it ends in an arrow, its
numbers stand beside."""


@styled
def forest(differences: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Every paired difference of a study grouped by question and reference, over the equivalence
    band, filled where Holm's p < 0.05.

    differences: columns of `mvl.evidence.differences.differences`, `question` (words), and `p_holm`
    where it has been adjusted.
    """
    if differences.empty or not differences["n_runs"].any():
        return hole(
            "; ".join(holes) or "no pairs of finished runs", list(differences.get("task", ()))
        )
    groups = list(differences.groupby(["question", "reference"], sort=False))
    figure = Figure()
    axis, reach, y = figure.add_axes((0.0, 0.0, 1.0, 1.0)), _reach(differences), 0.0
    side = blended_transform_factory(figure.transFigure, axis.transData)
    axis.axvspan(-EQUIVALENCE_POINTS, EQUIVALENCE_POINTS, color="#8C959F", alpha=0.22, linewidth=0)
    axis.axvline(0, color=MUTED, linewidth=1)
    for (question, reference), rows in groups:
        axis.text(
            0.01,
            y + 0.4,
            f"{question}: minus {title(str(reference))}",
            transform=side,
            weight="bold",
            fontsize=9,
        )
        for place, row in enumerate(rows.to_dict("records"), start=1):
            _forest_row(axis, y + place + 0.3, row, reach)
        y += len(rows) + 1.6
    axis.set(
        yticks=[], ylim=(y, -0.4), xlim=(-reach, reach), xlabel="points, 0 to 100 (grey: within 1)"
    )
    axis.spines["left"].set_visible(False)
    axis.yaxis.grid(False)
    return _fitted(
        finish(figure, list(differences["task"]), holes, key=_forest_key(differences)), axis, y
    )


def _fitted(figure: Figure, axis: Axes, lines: float) -> Figure:
    """Give every line of the plot its height and the notes below it theirs; names to the left,
    numbers to the right."""
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
    """One line: the system's name, its interval, and mean, ends and pairs of runs; or that it is
    not yet recorded."""
    side: dict[str, Any] = {
        "transform": blended_transform_factory(axis.figure.transFigure, axis.transData),
        "va": "center",
        "fontsize": 8.5,
    }
    axis.text(0.02, y, _row_name(row), **side)
    if not row["n_runs"]:
        axis.text(0.72, y, "not yet recorded", color=WARN, style="italic", **side)
        return
    low, mid, high = (100 * float(row[k]) for k in ("low", "difference", "high"))
    look: dict[str, Any] = {"color": colour(row["system"]), "clip_on": True}
    axis.plot(
        np.clip([low, high], -reach, reach),
        [y, y],
        linewidth=2,
        linestyle=(0, (2, 1)) if row["n_runs"] == 1 else "-",
        **look,
    )
    for side_of in {math.copysign(1, end) for end in (low, high) if abs(end) > reach}:
        axis.plot(
            side_of * reach * 0.985, y, marker="<" if side_of < 0 else ">", markersize=6, **look
        )
    if abs(mid) < reach:
        sure = row.get("p_holm", math.nan) < 0.05
        axis.plot(
            mid,
            y,
            marker=marker(row["system"]),
            markersize=7,
            markerfacecolor=look["color"] if sure else "white",
            **look,
        )
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
    words = "n: pairs of runs. " + (
        "Filled: Holm's p < 0.05 within its chapter. Open: not. "
        if adjusted
        else "Open: no test decides it yet. "
    )
    return words + (f"Dashed: {ONE_PAIR}." if (rows["n_runs"] == 1).any() else "")


@styled
def paired_differences(differences: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Forest plot of paired differences with their corrected t-intervals over the equivalence band
    of one Dice point.

    An interval over one pair of runs is dashed and said to leave the variation between runs out; a
    difference of no runs is a hole.

    differences (as `mvl.evidence.stats.table`): task, system, comparison (words), difference, low,
    high (0-1), n_cases (case pairs), n_runs, and metric where it is not Dice alone.
    """
    if differences.empty or not differences["n_runs"].any():
        return hole(
            "; ".join(holes) or "no pairs of finished runs", list(differences.get("task", ()))
        )
    rows = differences.reset_index(drop=True)
    # a comparison of two lines needs their height
    step = 1.05 if rows["comparison"].str.len().max() > LINE else 0.8
    figure = Figure(figsize=(6.4, 1.2 + step * len(rows)), layout="constrained")
    axis = figure.subplots()
    for y, row in enumerate(rows.to_dict("records")):
        if row["n_runs"]:
            _zero(axis, y)
        _difference(axis, y, row)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_ylim(len(rows) - 0.6, -0.75)
    reach = 1.6 * max(2 * EQUIVALENCE_POINTS, *(100 * rows[["low", "high"]].abs().max()))
    axis.set(xlim=(-reach, reach), xlabel=f"{_points(rows)} (grey: within 1)")
    axis.grid(False)
    return finish(
        figure,
        list(rows["task"]),
        holes,
        textwrap.wrap(f"dashed: {ONE_PAIR}", 84) if (rows["n_runs"] == 1).any() else (),
    )


def _zero(axis: Axes, y: int) -> None:
    """Draw band and zero beside one interval alone: across the whole plot they would cross the
    words between the intervals."""
    low, high = y - 0.13, y + 0.25
    axis.fill_betweenx(
        [low, high],
        -EQUIVALENCE_POINTS,
        EQUIVALENCE_POINTS,
        color="#8C959F",
        alpha=0.22,
        linewidth=0,
    )
    axis.vlines(0, low, high, color=MUTED, linewidth=1)


def _points(rows: pd.DataFrame) -> str:
    """What the axis of a forest plot counts."""
    found = set(rows.get("metric", ["dice"]))
    if found == {"dice"}:
        return "Dice points"
    return "IoU points" if found == {"jaccard"} else "points of IoU or F1, 0 to 100"


def _difference(axis: Axes, y: int, row: dict[Any, Any]) -> None:
    """Draw one row of the forest plot: words, n and interval, or that it is not yet recorded."""
    side: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "bottom"}
    words = str(row["comparison"]).replace("\n", " ")
    size = max(9.2, min(11, 11 * 62 / len(words)))
    axis.text(0, y - 0.42, textwrap.fill(words, LINE), ha="left", fontsize=size, **side)
    if not row["n_runs"]:
        words = textwrap.fill(
            f"not yet recorded: {row.get('hole') or 'no pair of finished runs'}", 78
        )
        axis.text(0, y + 0.2, words, ha="left", fontsize=9, color="#9A3412", style="italic", **side)
        return
    low, mid, high = (100 * float(row[k]) for k in ("low", "difference", "high"))
    one = row["n_runs"] == 1
    look: dict[str, Any] = (
        {"linestyle": (0, (2, 1)), "dash_capstyle": "butt"} if one else {"solid_capstyle": "butt"}
    )
    axis.plot([low, high], [y, y], color=colour(row["system"]), linewidth=2.4, **look)
    axis.plot(mid, y, marker=marker(row["system"]), color=colour(row["system"]), markersize=8)
    there, planned = row["n_runs"], row.get("planned", row["n_runs"])
    runs = "1 pair of runs" if one else f"{there} pairs of runs"
    if planned > there:
        runs = f"{there} of {planned} planned pairs of runs"
    runs += " (interval over its cases)" if one else ""
    cases = cases_and_seeds(row.get("n_distinct", row["n_cases"]), row["n_cases"])
    # numbers stand at the left, where a phone shows them without a swipe
    axis.text(0, y - 0.16, in_points(mid, low, high), ha="left", fontsize=10, **side)
    axis.annotate(
        f"n = {cases}, {runs}",
        (0, y - 0.16),
        (138, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords="offset points",
        va="bottom",
        fontsize=9,
        color=MUTED,
    )


def in_points(mid: float, low: float, high: float) -> str:
    """A difference and its interval with signs; what rounds to nothing has a plus."""
    return f"{mid:+z.2f} [{low:+z.2f}, {high:+z.2f}]"
