"""Figures of the designs: which cases of a fold go where, and the smallest effect that each study
can see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mvl.core.config import ROOT
from mvl.datasets.split_files import read_split
from mvl.evidence import power_plan, second_study
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.persons import TASK, person_of
from mvl.publish.style import FROZEN, INK, MUTED, NEUTRAL, TRAINED, finish, styled
from mvl.study.grid import load_study

SPLITS = {"split by scan (first study)": TASK, "split by person (second)": f"{TASK}_persons"}
"Panel = file in `data/splits`."
ROLES = {"test": (TRAINED, "T"), "val": (FROZEN, "V"), "train": (NEUTRAL, "")}
"Role of a block = edge and fill, and the letter in its box."
SHOWN = 5
"Folds that are drawn: the rest go on in the same way."


def shared_persons(task: str, folder: Path = ROOT / "data" / "splits") -> pd.DataFrame:
    """Return for each fold how many test scans there are, and how many persons lie both in its test
    cases and in its training cases."""
    split = read_split(folder / f"{task}.json")
    rows = []
    for number, fold in enumerate(split["folds"]):
        test = split["blocks"][fold["test"]]
        trained = {person_of(case) for case in fold["train"]}
        both = trained & {person_of(case) for case in test}
        rows.append(
            {"fold": number, "test": len(test), "train": len(fold["train"]), "both": len(both)}
            | {f"block{b}": _role(fold, b) for b in range(len(split["blocks"]))}
        )
    return pd.DataFrame(rows)


def _role(fold: dict[str, Any], block: int) -> str:
    if block == fold["test"]:
        return "test"
    return "val" if block in fold["val"] else "train"


@styled
def splits() -> Figure:
    """Draw, for the split by scan and the one by person, which of the ten blocks each fold tests,
    watches and trains on, and how many persons stand on both sides."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    for axis, (words, task) in zip(figure.subplots(2, 1), SPLITS.items()):
        table = shared_persons(task).head(SHOWN)
        for row in table.to_dict("records"):
            _fold_row(axis, row)
        axis.set(xlim=(-1.2, 14.2), ylim=(SHOWN - 0.4, -1.2), xticks=[], yticks=[])
        axis.text(
            12.2, -0.85, "persons in test\nand training", ha="center", va="center", fontsize=9
        )
        axis.spines[:].set_visible(False)
        axis.grid(False)
        axis.set_title(words)
    key = (
        "A box is one of ten blocks of the scans. T: test; V: validation (chooses the epoch);"
        " empty: training."
    )
    return finish(figure, [TASK], key=key)


def _fold_row(axis: Axes, row: dict[str, Any]) -> None:
    """Draw the ten blocks of a fold in one row, and the persons that its sides share."""
    y = row["fold"]
    axis.text(-0.15, y, f"fold {y}", ha="right", va="center", fontsize=9.5)
    blocks = [name for name in row if str(name).startswith("block")]
    for x, name in enumerate(blocks):
        (edge, fill), letter = ROLES[row[name]]
        axis.add_patch(Rectangle((x, y - 0.38), 0.9, 0.76, edgecolor=edge, facecolor=fill))
        axis.text(x + 0.45, y, letter, ha="center", va="center", fontsize=10, color=edge)
    axis.text(12.2, y, str(row["both"]), ha="center", va="center", fontsize=11, color=INK)


def splits_finding() -> str:
    """Say how many persons the folds of each split have on both sides."""
    parts = []
    for words, task in SPLITS.items():
        both = shared_persons(task)["both"]
        reach = f"{both.min()} to {both.max()}" if both.min() < both.max() else f"{both.max()}"
        parts.append(
            f"{words}: {reach} persons of a fold are in its test and in its training cases"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def smallest_effects(results: Path | None = None) -> pd.DataFrame:
    """Return study, folds, seeds and sees: what each planned contrast of the second protocol finds
    with 80 % power at the hardest step of Holm's correction, in points."""
    rows = []
    for study in second_study.STUDIES:
        for row in power_plan.power_plan(study, results_dir=results)["rows"]:
            if row["sd"] is not None:
                sees = row["detectable"][str(row["family"])]
                rows.append(
                    {k: row[k] for k in ("folds", "seeds")} | {"study": study, "sees": sees}
                )
    return pd.DataFrame(rows, columns=["study", "folds", "seeds", "sees"])


@styled
def power(table: pd.DataFrame) -> Figure:
    """Draw the smallest effect that each contrast of each study sees: a mark for each contrast, a
    row for each study.

    table: as `smallest_effects`.
    """
    studies = list(dict.fromkeys(table["study"]))
    figure = Figure(figsize=(6.4, 1.2 + 0.5 * len(studies)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(EQUIVALENCE_POINTS, color=INK, linewidth=1.2, linestyle="--")
    names = []
    for y, study in enumerate(studies):
        rows = table[table["study"] == study]
        for (_, folds), group in rows.groupby(["study", "folds"]):
            mark = "o" if folds == rows["folds"].max() else "s"
            axis.plot(group["sees"], [y] * len(group), mark, color=MUTED, alpha=0.7, markersize=7)
        designs = sorted({f"{r.folds}x{r.seeds}" for r in rows.itertuples()}, reverse=True)
        names.append(f"{load_study(study).title}\n{', '.join(designs)} folds x seeds")
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set(xscale="log", ylim=(len(names) - 0.4, -0.6))
    ticks = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20) if t <= 1.2 * table["sees"].max()]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("smallest difference that is seen, points")
    axis.yaxis.grid(False)
    key = (
        "A mark is one planned contrast: the true difference (IoU for pictures) that it finds with"
        " 80 % power at the hardest step of Holm's correction. Round: at the study's most folds;"
        " square: at fewer. Dashed: one point."
    )
    return finish(figure, (), key=key)


def power_finding(table: pd.DataFrame) -> str:
    """Say in which studies every contrast sees a difference of the margin, and which see least."""
    if table.empty:
        return "No variance is recorded yet."
    worst = table.groupby("study")["sees"].max()
    able = [
        load_study(str(study)).title for study, sees in worst.items() if sees <= EQUIVALENCE_POINTS
    ]
    some = int((table["sees"] <= EQUIVALENCE_POINTS).sum())
    least = load_study(str(worst.idxmax())).title
    words = f", among them every one of {'; '.join(able)}" if able else ""
    return (
        f"{some} of {len(table)} planned contrasts see a difference of {EQUIVALENCE_POINTS:g}"
        f" point{words}; least is seen in {least}, where a difference must be"
        f" {worst.max():.1f} points."
    )
