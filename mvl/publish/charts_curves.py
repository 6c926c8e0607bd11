"""Learning curves whose arms can be switched on and off; each line leads to its run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mvl.evidence.arms import ordered, title
from mvl.evidence.chapter import Chapter
from mvl.publish import charts
from mvl.publish.charts import Chart, Choice, Switches
from mvl.publish.figures_curves import selected_epochs
from mvl.publish.run_links import anchor, page_name

DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (12, 4), (4, 4))
"Strokes and gaps by arm, so that colour is never the only cue."
DICE, LATE, GAIN = "dice", "late", "gain"
"What a line can show: all epochs, the last half of them, and there the difference."
KEYS = ["task", "fraction", "fold", "seed"]


def curves(chapter: Chapter) -> str:
    """The chart's block: validation Dice by epoch of every run on all the data, or its difference
    to the reference's run of the same fold and seed; empty without a history."""
    history = chapter.history.dropna(subset=["val_dice"])
    history = history[history["fraction"] == 1]
    if history.empty:
        return ""
    arms = ordered(list(history["system"]))
    reference = chapter.contrasts[0][1] if chapter.contrasts else arms[0]
    beside = {
        key: run.set_index("epoch")["val_dice"]
        for key, run in history[history["system"] == reference].groupby(KEYS)
    }
    kept = selected_epochs(history).set_index(["system", *KEYS])

    choices = [
        charts.arm_choice(arm, dash=DASHES[place % len(DASHES)]) for place, arm in enumerate(arms)
    ]
    rows: list[dict[str, Any]] = []
    for arm, choice in zip(arms, choices):
        for key, run in history[history["system"] == arm].groupby(KEYS):
            curve = run.set_index("epoch")["val_dice"]
            row = _row(chapter, choice, key, kept.loc[(arm, *key)])
            late = curve[curve.index >= curve.index.max() / 2]
            rows.append({**row, **_line(DICE, "validation Dice", curve)})
            rows.append({**row, **_line(LATE, "validation Dice", late)})
            if arm != reference and key in beside:
                axis = f"validation Dice minus {title(reference)}'s, points"
                gain = 100 * (late - beside[key]).dropna()
                rows.append({**row, **_line(GAIN, axis, gain)})
    measures = [
        Choice(DICE, "validation Dice", on=True),
        Choice(LATE, "last half, enlarged", on=False),
        Choice(GAIN, f"last half, minus {title(reference)}", on=False),
    ]
    switches = [
        Switches("arm", "Arms", choices),
        Switches("measure", "Shown", measures, one=True),
    ]
    chart = Chart(
        _specification(choices),
        "Validation Dice by epoch: a thin line for each run, a thick one for the mean of its arm.",
        "lines shown",
        "Thin: a run. Thick: mean of the arm's runs.",
    )
    return charts.block(chart, rows, switches)


def _line(measure: str, axis: str, values: pd.Series) -> dict[str, Any]:
    """The points of a line, and what they measure."""
    digits = 2 if measure == GAIN else 4
    return {
        "measure": measure,
        "axis": axis,
        "epoch": [int(epoch) + 1 for epoch in values.index],
        "value": [round(float(value), digits) for value in values],
    }


def _row(chapter: Chapter, arm: Choice, key: Any, kept: pd.Series) -> dict[str, Any]:
    """What a run's lines say, and where they lead."""
    task, fraction, fold, seed = key
    place = anchor(task, arm.value, fraction, f"fold-{fold}_seed-{seed}")
    best = f"Epoch {int(kept['epoch']) + 1} is kept: validation Dice {kept['val_dice']:.3f}."
    return {
        "arm": arm.value,
        "run": place,
        "says": f"{arm.words}, fold {fold}, seed {seed}\n{best}",
        "href": f"../{page_name(chapter.study)}.html#{place}",
        "leads": "The run",
    }


def _specification(arms: Sequence[Choice]) -> dict[str, Any]:
    """A line for each run, the mean of each arm, and wide unseen lines to point at."""
    x = {
        "field": "epoch",
        "type": "quantitative",
        "scale": {"zero": False, "nice": False},
        "axis": {"title": "epoch", "grid": False, "tickMinStep": 1},
    }
    y = {
        "field": "value",
        "type": "quantitative",
        "scale": {"zero": False},
        "axis": {"title": None},
    }
    looks = charts.looks("arm", arms)
    run = {"field": "run", "type": "nominal"}
    return {
        "height": charts.HEIGHT_PX,
        "transform": [{"flatten": ["epoch", "value"]}],
        "layer": [
            {
                # the axis says what the switch has chosen
                "transform": [
                    {"aggregate": [{"op": "count", "as": "points"}], "groupby": ["axis"]}
                ],
                "mark": {"type": "text", "align": "left", "baseline": "bottom"},
                "encoding": {
                    "x": {"value": 0},
                    "y": {"value": -6},
                    "text": {"field": "axis"},
                },
            },
            {
                "mark": {"type": "line", "strokeWidth": 1.1, "opacity": 0.5},
                "encoding": {"x": x, "y": y, "detail": run, **looks},
            },
            {
                "mark": {"type": "line", "strokeWidth": 3},
                "encoding": {"x": x, "y": {**y, "aggregate": "mean"}, **looks},
            },
            {
                "name": charts.MARKS,
                "mark": {
                    "type": "line",
                    "strokeWidth": 9,
                    "strokeOpacity": 0,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": run,
                    "color": looks["color"],
                    "tooltip": {"field": "says"},
                },
            },
        ],
    }
