"""One function per published figure: tidy table in, Figure out; the same colour and marker for the
same arm everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.evidence.arms import LABEL, colour, marker, ordered, title
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.example_masks import Example
from mvl.publish.findings import case_gaps
from mvl.publish.style import INK, MUTED, finish, hole, styled


@styled
def dice_by_case(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice on the native grid, one dot per case (mean over seeds), box = quartiles, by fold
    and system; n under each group.

    cases: system, task, fold, seed, case, dice (one label).
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test cases")
    dots = cases.groupby(["task", "system", "fold", "case"], as_index=False)["dice"].mean()
    systems = ordered(list(dots["system"]))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    palette = {s: colour(s) for s in systems}
    common: dict[str, Any] = {
        "data": dots,
        "x": "fold",
        "y": "dice",
        "hue": "system",
        "hue_order": systems,
        "palette": palette,
        "ax": axis,
        "dodge": True,
    }
    sns.boxplot(**common, showfliers=False, fill=False, width=0.75, linewidth=1.3, legend=False)
    sns.stripplot(**common, size=4, alpha=0.65, jitter=0.22, legend=False)
    counts = dots.groupby("fold")["case"].nunique()
    axis.set_xticks(
        range(len(counts)), [f"fold {fold}\nn = {n} cases" for fold, n in counts.items()]
    )
    axis.set(xlabel="", ylabel="Dice, test case, native grid")
    axis.xaxis.grid(False)
    handles = [
        mpl.lines.Line2D([], [], color=palette[s], marker="o", linestyle="", label=title(s))
        for s in systems
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return finish(figure, list(cases["task"]), holes)


@styled
def overlap_by_class(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """IoU of every test picture with a lesion by class and system (dot: a picture, mean over seeds;
    box: quartiles), n under each class; of pictures without one, how many were left empty.

    F1 rises and falls with IoU on every picture, so a panel of it would show nothing else. cases
    (as `mvl.evidence.lesion_classes.with_class`): system, task, fold, seed, case, kind, status,
    jaccard.
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test pictures")
    lesions, systems = cases[cases["status"].isin(("ok", "missed"))], ordered(list(cases["system"]))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    dots = lesions.groupby(["kind", "system", "fold", "case"], as_index=False)["jaccard"].mean()
    kinds, palette = sorted(dots["kind"].unique()), {s: colour(s) for s in systems}
    common: dict[str, Any] = {
        "data": dots,
        "x": "kind",
        "y": "jaccard",
        "order": kinds,
        "hue": "system",
        "hue_order": systems,
        "palette": palette,
        "ax": axis,
        "dodge": True,
        "legend": False,
    }
    sns.boxplot(**common, showfliers=False, fill=False, width=0.75, linewidth=1.3)
    sns.stripplot(**common, size=3.5, alpha=0.6, jitter=0.22)
    axis.set(xlabel="", ylabel="IoU, test picture", ylim=(-0.03, 1.03))
    axis.xaxis.grid(False)
    sizes = dots.groupby("kind")["case"].nunique()
    axis.set_xticks(range(len(kinds)), [f"{kind}\nn = {sizes[kind]} pictures" for kind in kinds])
    handles = [
        mpl.lines.Line2D([], [], color=palette[s], marker="o", linestyle="", label=title(s))
        for s in systems
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return finish(figure, list(cases["task"]), holes, left_empty(cases))


def left_empty(cases: pd.DataFrame) -> list[str]:
    """One line per system on its pictures without a lesion, whose masks score 1 when left empty and
    0 otherwise; none where there are none."""
    empty = cases[cases["status"].isin(("true_negative", "false_positive"))]
    counts = {
        s: (int((rows["status"] == "true_negative").sum()), len(rows))
        for s, rows in empty.groupby("system")
    }
    return ["pictures without a lesion that were left empty (not drawn above):"] * bool(counts) + [
        f"    {title(s)}: {counts[s][0]} of {counts[s][1]}" for s in ordered(list(counts))
    ]


@styled
def example_segmentations(examples: Sequence[Example], holes: Sequence[str] = ()) -> Figure:
    """Rows: cases (best, median, worst); columns: scan, label, each system's mask as a contour with
    the label's behind it."""
    if not examples:
        return hole("; ".join(holes) or "no saved predictions", scans=True)
    systems = ordered(list(examples[0].predictions))
    figure = Figure(
        figsize=(1.55 * (2 + len(systems)), 1.9 * len(examples) + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(examples), 2 + len(systems), squeeze=False)
    for axes, example in zip(grid, examples):
        for axis in axes:
            axis.imshow(example.scan.T, cmap="gray", origin="lower", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        axes[0].set_ylabel(f"{example.rank}\n{example.case}", fontsize=9.5)
        _outline(axes[1], example.label, LABEL, 1.8)
        for axis, system in zip(axes[2:], systems):
            _outline(axis, example.label, LABEL, 0.9)
            _outline(axis, example.predictions[system], colour(system), 1.8)
            axis.set_xlabel(f"Dice {example.dice[system]:.2f}", fontsize=9.5)
    for axis, word in zip(grid[0], ["scan", "label", *map(title, systems)]):
        axis.set_title("\n".join(textwrap.wrap(word, 15)), fontsize=10, loc="center")
    return finish(figure, [e.task for e in examples], holes)


def _outline(axis: Axes, mask: np.ndarray, ink: str, width: float) -> None:
    if mask.any() and not mask.all():
        axis.contour(np.asarray(mask, dtype=float).T, levels=[0.5], colors=[ink], linewidths=width)


@styled
def dice_by_fold(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice of each case (mean over seeds), a block of rows for each arm, the best above, and a
    row for each fold that it has runs in; bar: the fold's mean.

    cases: system, task, fold, seed, case, dice (one label).
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test cases")
    dots = cases.groupby(["system", "fold", "case"], as_index=False)["dice"].mean()
    means = dots.groupby("system")["dice"].mean().sort_values(ascending=False)
    figure, names, y = Figure(layout="constrained"), dict[float, str](), 0.0
    axis = figure.subplots()
    for system in map(str, means.index):
        own = dots[dots["system"] == system]
        folds = sorted(own["fold"].unique())
        name = textwrap.fill(title(system), 26)
        names[y + (len(folds) - 1) / 2] = name
        for fold in folds:
            _fold_row(axis, own[own["fold"] == fold], y)
            y += 1
        # a name of two or three lines needs their height
        y += max(0.7, 0.9 * (name.count("\n") + 1) - len(folds) + 0.7)
    figure.set_size_inches(6.4, 1.1 + 0.21 * y)
    axis.set(xlabel="test Dice", ylim=(y - 0.4, -0.7))
    axis.set_yticks(list(names), list(names.values()), fontsize=9.5)
    axis.yaxis.grid(False)
    return finish(
        figure,
        list(cases["task"]),
        holes,
        key="dot: one test case (mean over seeds); bar: mean of the fold's n cases",
    )


def _fold_row(axis: Axes, rows: pd.DataFrame, y: float) -> None:
    """One fold of one arm: a dot for each case, a bar at their mean, the fold and n at the side."""
    system = str(rows["system"].iloc[0])
    axis.scatter(rows["dice"], [y] * len(rows), s=11, color=colour(system), alpha=0.5, linewidths=0)
    axis.plot([rows["dice"].mean()] * 2, [y - 0.42, y + 0.42], color=INK, linewidth=2)
    axis.text(
        1.01,
        y,
        f"fold {rows['fold'].iloc[0]}, n = {len(rows)}",
        transform=axis.get_yaxis_transform(),
        va="center",
        fontsize=9,
        color=MUTED,
    )


@styled
def case_differences(cases: pd.DataFrame, reference: str, holes: Sequence[str] = ()) -> Figure:
    """Test Dice of each case minus that under the reference (mean over seeds), a panel for each
    arm, a column for each fold; bar: the fold's mean.

    cases: system, task, fraction, fold, seed, case, dice (one label).
    """
    gaps = case_gaps(cases, reference)
    if gaps.empty:
        return hole("; ".join(holes) or "no test cases that both arms have", list(cases["task"]))
    systems, folds = ordered(list(gaps["system"])), sorted(gaps["fold"].unique())
    figure = Figure(figsize=(6.4, 1.0 + 1.75 * len(systems)), layout="constrained")
    grid = figure.subplots(len(systems), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, system in zip(grid, systems):
        rows = gaps[gaps["system"] == system]
        axis.axhspan(
            -EQUIVALENCE_POINTS, EQUIVALENCE_POINTS, color="#8C959F", alpha=0.22, linewidth=0
        )
        axis.axhline(0, color=MUTED, linewidth=1)
        sns.stripplot(
            data=rows,
            x="fold",
            y="points",
            order=folds,
            color=colour(system),
            size=4,
            alpha=0.65,
            jitter=0.25,
            ax=axis,
            legend=False,
            marker=marker(system),
        )
        for place, fold in enumerate(folds):
            mean = rows.loc[rows["fold"] == fold, "points"].mean()
            axis.plot([place - 0.36, place + 0.36], [mean, mean], color=INK, linewidth=2)
        axis.set_title(f"{title(system)} minus {title(reference)}")
        axis.set(xlabel="", ylabel="Dice points")
        axis.xaxis.grid(False)
    counts = gaps.groupby("fold")["case"].nunique()
    grid[-1].set_xticks(range(len(folds)), [f"fold {f}\nn = {counts[f]} cases" for f in folds])
    return finish(
        figure,
        list(cases["task"]),
        holes,
        key="dot: one test case (mean over seeds); bar: mean of the fold; grey: within one point",
    )
