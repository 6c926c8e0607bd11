"""One function per published figure: tidy table in, Figure out; the same colour and marker for the same arm everywhere."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.decision import MARGIN
from mvl.stats import ONE_PAIR, cases_and_seeds
from mvl.style import DASHES, LABEL, STYLE, colour, finish, hole, marker, ordered, styled, title

EQUIVALENCE_POINTS = 100 * MARGIN
"Half-width of the equivalence band, Dice points."


@dataclass(frozen=True)
class Example:
    """One test case on one slice: scan, label and each system's mask, all 2-D and of one shape."""

    task: str
    "Task name; phantoms are marked in the figure."
    case: str
    "Case id."
    rank: str
    "best, median or worst."
    scan: np.ndarray
    "Intensities of the slice."
    label: np.ndarray
    "Label's mask."
    predictions: dict[str, np.ndarray]
    "Mask by system name."
    dice: dict[str, float]
    "Dice of the whole case on its own grid by system name."


@styled
def training_curves(history: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Validation Dice and loss by epoch: line = mean over folds and seeds, band = smallest to largest, ticks = the runs' selected epochs.

    history: system, task, fraction, fold, seed, epoch, val_dice, val_loss.
    """
    if history.empty:
        return hole("; ".join(holes) or "no training history")
    figure = Figure(figsize=(6.4, 5.4 + 0.12 * history["system"].nunique()), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    fractions = sorted(history["fraction"].unique(), reverse=True)
    for (system, fraction), runs in history.groupby(["system", "fraction"], sort=False):
        line: dict[str, Any] = {"color": colour(system), "linestyle": DASHES[fractions.index(fraction) % 4]}
        late = runs[runs["epoch"] >= runs["epoch"].max() / 2]
        for row, column in zip(axes, ("val_dice", "val_loss")):
            band(row[0], runs, column, **line)
            curve = band(row[1], late, column, **line)
            picked = curve["mean"].reindex(selected_epochs(runs)["epoch"].unique())
            row[1].plot(picked, linestyle="", marker="|", markersize=9, markeredgewidth=1.3, color=line["color"])
    axes[0, 0].set(ylabel="validation Dice")
    axes[1, 0].set(ylabel="validation loss", xlabel="epoch, all")
    axes[1, 1].set(xlabel="epoch, last half, enlarged")
    for axis in axes[1]:
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(6, integer=True))
    figure.legend(handles=_curve_keys(history, fractions), loc="outside upper left", ncols=2)
    return finish(figure, list(history["task"]), holes, key="line: mean of runs; band: their range; ticks: epochs whose weights were kept")


def band(axis: Axes, runs: pd.DataFrame, column: str, **line: Any) -> pd.DataFrame:
    """Draw the mean over runs by epoch and the range of the runs behind it; returns mean, min and max by epoch that was validated."""
    curve = runs.dropna(subset=[column]).groupby("epoch")[column].agg(["mean", "min", "max"])
    axis.fill_between(curve.index, curve["min"], curve["max"], color=line["color"], alpha=0.13, linewidth=0)
    axis.plot(curve.index, curve["mean"], **line)
    return curve


def selected_epochs(history: pd.DataFrame) -> pd.DataFrame:
    """The row of each run's history whose weights were kept: the first of highest validation Dice."""
    validated = history.dropna(subset=["val_dice"])
    return validated.loc[validated.groupby(["task", "system", "fraction", "fold", "seed"])["val_dice"].idxmax()]


def _curve_keys(history: pd.DataFrame, fractions: Sequence[float]) -> list[Any]:
    """Legend: a colour for each system with its number of runs, and a dash for each share of the data if there are several."""
    line = mpl.lines.Line2D
    counts = {s: len(rows[["task", "fraction", "fold", "seed"]].drop_duplicates()) for s, rows in history.groupby("system")}
    words = {s: f"{title(s)} ({n} run{'s' if n > 1 else ''})" for s, n in counts.items()}
    keys = [line([], [], color=colour(s), label=words[s]) for s in ordered(list(counts))]
    looks: list[dict[str, Any]] = [{"linestyle": DASHES[i % 4], "label": f"{f:.0%} of the data"} for i, f in enumerate(fractions)]
    dashes = [line([], [], color="#57606A", **look) for look in looks]
    return keys + dashes * (len(fractions) > 1)


@styled
def dice_by_case(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice on the native grid, one dot per case (mean over seeds), box = quartiles, by fold and system; n under each group.

    cases: system, task, fold, seed, case, dice (one label).
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test cases")
    dots = cases.groupby(["task", "system", "fold", "case"], as_index=False)["dice"].mean()
    systems = ordered(list(dots["system"]))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    palette = {s: colour(s) for s in systems}
    common: dict[str, Any] = {"data": dots, "x": "fold", "y": "dice", "hue": "system", "hue_order": systems,
                              "palette": palette, "ax": axis, "dodge": True}
    sns.boxplot(**common, showfliers=False, fill=False, width=0.75, linewidth=1.3, legend=False)
    sns.stripplot(**common, size=4, alpha=0.65, jitter=0.22, legend=False)
    counts = dots.groupby("fold")["case"].nunique()
    axis.set_xticks(range(len(counts)), [f"fold {fold}\nn = {n} cases" for fold, n in counts.items()])
    axis.set(xlabel="", ylabel="Dice, test case, native grid")
    axis.xaxis.grid(False)
    handles = [mpl.lines.Line2D([], [], color=palette[s], marker="o", linestyle="", label=title(s)) for s in systems]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return finish(figure, list(cases["task"]), holes)


@styled
def paired_differences(differences: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Forest plot of paired differences with their corrected t-intervals over the equivalence band of one Dice point.

    An interval over one pair of runs is dashed and said to leave the variation between runs out; a difference of no runs is a hole.

    differences (as `mvl.stats.table`): task, system, comparison (words), difference, low, high (0-1), n_cases (case pairs), n_runs, and
    metric where it is not Dice alone.
    """
    if differences.empty or not differences["n_runs"].any():
        return hole("; ".join(holes) or "no pairs of finished runs", list(differences.get("task", ())))
    rows = differences.reset_index(drop=True)
    figure = Figure(figsize=(6.4, 1.2 + 0.8 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(-EQUIVALENCE_POINTS, EQUIVALENCE_POINTS, color="#8C959F", alpha=0.22, linewidth=0)
    axis.axvline(0, color="#57606A", linewidth=1)
    for y, row in enumerate(rows.to_dict("records")):
        _difference(axis, y, row)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_ylim(len(rows) - 0.6, -0.75)
    reach = 1.6 * max(2 * EQUIVALENCE_POINTS, *(100 * rows[["low", "high"]].abs().max()))
    axis.set(xlim=(-reach, reach), xlabel=f"{_points(rows)} (grey: within 1)")
    axis.yaxis.grid(False)
    return finish(figure, list(rows["task"]), holes, textwrap.wrap(f"dashed: {ONE_PAIR}", 84) if (rows["n_runs"] == 1).any() else ())


def _points(rows: pd.DataFrame) -> str:
    """What the axis of a forest plot counts."""
    found = set(rows.get("metric", ["dice"]))
    return "Dice points" if found == {"dice"} else "IoU points" if found == {"jaccard"} else "points of IoU or F1, 0 to 100"


def _difference(axis: Axes, y: int, row: dict[Any, Any]) -> None:
    """One row of the forest plot: its words, n, and its interval, or that it is not yet recorded."""
    side: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "bottom"}
    words = str(row["comparison"]).replace("\n", " ")
    axis.text(0, y - 0.42, words, ha="left", fontsize=min(11, 11 * 62 / len(words)), **side)
    if not row["n_runs"]:
        words = textwrap.fill(f"not yet recorded: {row.get('hole') or 'no pair of finished runs'}", 78)
        axis.text(0, y + 0.2, words, ha="left", fontsize=9, color="#9A3412", style="italic", **side)
        return
    low, mid, high = (100 * float(row[k]) for k in ("low", "difference", "high"))
    one = row["n_runs"] == 1
    look: dict[str, Any] = {"linestyle": (0, (2, 1)), "dash_capstyle": "butt"} if one else {"solid_capstyle": "butt"}
    axis.plot([low, high], [y, y], color=colour(row["system"]), linewidth=2.4, **look)
    axis.plot(mid, y, marker=marker(row["system"]), color=colour(row["system"]), markersize=8)
    there, planned = row["n_runs"], row.get("planned", row["n_runs"])
    runs = f"{there} of {planned} planned pairs of runs" if planned > there else "1 pair of runs" if one else f"{there} pairs of runs"
    runs += " (interval over its cases)" if one else ""
    cases = cases_and_seeds(row.get("n_distinct", row["n_cases"]), row["n_cases"])
    axis.text(0, y - 0.16, f"n = {cases}, {runs}", ha="left", fontsize=9, color="#57606A", **side)
    axis.text(1, y - 0.16, in_points(mid, low, high), ha="right", fontsize=10, **side)


def in_points(mid: float, low: float, high: float) -> str:
    """A difference and its interval with signs; what rounds to nothing has a plus."""
    return f"{mid:+z.2f} [{low:+z.2f}, {high:+z.2f}]"


@styled
def overlap_by_class(cases: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """IoU and F1 of every test picture with a lesion by class and system (dot: a picture, mean over seeds; box: quartiles), n under each class;
    of pictures without one, how many were left empty.

    cases (as `mvl.classes.with_class`): system, task, fold, seed, case, kind, status, jaccard, dice.
    """
    if cases.empty:
        return hole("; ".join(holes) or "no test pictures")
    lesions, systems = cases[cases["status"].isin(("ok", "missed"))], ordered(list(cases["system"]))
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    dots = lesions.groupby(["kind", "system", "fold", "case"], as_index=False)[["jaccard", "dice"]].mean()
    kinds, palette = sorted(dots["kind"].unique()), {s: colour(s) for s in systems}
    for axis, column, word in zip(axes, ("jaccard", "dice"), ("IoU", "F1 (Dice)")):
        common: dict[str, Any] = {"data": dots, "x": "kind", "y": column, "order": kinds, "hue": "system", "hue_order": systems,
                                  "palette": palette, "ax": axis, "dodge": True, "legend": False}
        sns.boxplot(**common, showfliers=False, fill=False, width=0.75, linewidth=1.3)
        sns.stripplot(**common, size=3.5, alpha=0.6, jitter=0.22)
        axis.set(xlabel="", ylabel=f"{word}, test picture", ylim=(-0.03, 1.03))
        axis.xaxis.grid(False)
    sizes = dots.groupby("kind")["case"].nunique()
    axes[1].set_xticks(range(len(kinds)), [f"{kind}\nn = {sizes[kind]} pictures" for kind in kinds])
    handles = [mpl.lines.Line2D([], [], color=palette[s], marker="o", linestyle="", label=title(s)) for s in systems]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return finish(figure, list(cases["task"]), holes, left_empty(cases))


def left_empty(cases: pd.DataFrame) -> list[str]:
    """One line per system on its pictures without a lesion, whose masks score 1 when left empty and 0 otherwise; none where there are none."""
    empty = cases[cases["status"].isin(("true_negative", "false_positive"))]
    counts = {s: (int((rows["status"] == "true_negative").sum()), len(rows)) for s, rows in empty.groupby("system")}
    return ["pictures without a lesion that were left empty (not drawn above):"] * bool(counts) + [
        f"    {title(s)}: {counts[s][0]} of {counts[s][1]}" for s in ordered(list(counts))]


@styled
def few_shot(runs: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice by share of the training cases: marker = mean over runs, bar = smallest to largest run.

    runs: system, task, fraction, fold, seed, dice, n_test.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    figure = Figure(figsize=(6.4, 4.3), layout="constrained")
    axis, systems = figure.subplots(), ordered(list(runs["system"]))
    for place, system in enumerate(systems):
        points = runs[runs["system"] == system].groupby("fraction")["dice"].agg(["mean", "min", "max", "size"]).reset_index()
        x = points["fraction"] * 1.05 ** (place - (len(systems) - 1) / 2)
        reach = [points["mean"] - points["min"], points["max"] - points["mean"]]
        sizes = "/".join(map(str, points["size"])) if points["size"].nunique() > 1 else str(points["size"].iloc[0])
        look: dict[str, Any] = {"color": colour(system), "marker": marker(system), "label": f"{title(system)} (n = {sizes})"}
        axis.errorbar(x, points["mean"], yerr=reach, markersize=7, capsize=3, **look)
    fractions = sorted(runs["fraction"].unique())
    axis.set_xscale("log")
    axis.set_xticks(fractions, [f"{f:.0%}" for f in fractions])
    axis.minorticks_off()
    axis.set(xlabel="share of the training cases (marker: mean of n runs; bar: their range)", ylabel="test Dice, native grid",
             xlim=(min(fractions) / 1.3, max(fractions) * 1.3))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return finish(figure, list(runs["task"]), holes)


@styled
def lora_rank(runs: pd.DataFrame, holes: Sequence[str] = ()) -> Figure:
    """Test Dice against trainable parameters for each rank of the mappers' adapters and for plain linear maps.

    runs: system, task, fold, seed, dice, trainable.
    """
    if runs.empty:
        return hole("; ".join(holes) or "no finished runs")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for _, unit in runs.groupby(["task", "fold", "seed"]):
        axis.plot(unit.sort_values("trainable")["trainable"] / 1e3, unit.sort_values("trainable")["dice"], color="#8C959F", linewidth=0.8, zorder=0)
    for system, rows in runs.groupby("system"):
        x, mean = float(rows["trainable"].iloc[0]) / 1e3, rows["dice"].mean()
        axis.scatter([x] * len(rows), rows["dice"], s=16, color=colour(system), alpha=0.5)
        look: dict[str, Any] = {"color": colour(system), "marker": marker(system), "label": f"{title(system)} (n = {len(rows)})"}
        axis.plot(x, mean, markersize=9, linestyle="", **look)
    axis.set(xlabel="trainable parameters, thousands (thin line: one fold and seed)", ylabel="test Dice, native grid")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    axis.minorticks_off()
    handles, labels = axis.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: handles[i].get_xdata()[0])  # type: ignore[attr-defined]
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside upper left", ncols=2)
    return finish(figure, list(runs["task"]), holes)


@styled
def example_segmentations(examples: Sequence[Example], holes: Sequence[str] = ()) -> Figure:
    """Rows: cases (best, median, worst); columns: scan, label, each system's mask as a contour with the label's behind it."""
    if not examples:
        return hole("; ".join(holes) or "no saved predictions")
    systems = ordered(list(examples[0].predictions))
    figure = Figure(figsize=(1.55 * (2 + len(systems)), 1.9 * len(examples) + 0.5), layout="constrained")
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


def svg(figure: Figure) -> str:
    """The figure as SVG text; the same bytes for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode()


def show(figure: Figure) -> None:
    """Display the figure in a notebook as SVG."""
    from IPython.display import display

    words = " ".join(text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text().strip())
    display({"image/svg+xml": svg(figure), "text/plain": f"<figure: {words[:200]}>"}, raw=True)
