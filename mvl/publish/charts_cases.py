"""One dot a case, to point at: what an arm adds to the reference's score in each test case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mvl.evidence.arms import ordered, title
from mvl.evidence.chapter import Chapter
from mvl.evidence.claims_evidence import OVERLAP
from mvl.evidence.decision import EQUIVALENCE_POINTS
from mvl.evidence.example_masks import load_drawn
from mvl.evidence.topics import TOPICS
from mvl.publish import charts
from mvl.publish.book_facts import owned_notebooks
from mvl.publish.charts import Chart, Choice, Switches
from mvl.publish.run_links import anchor, page_name
from mvl.publish.style import INK

VIEWER = "08_qualitative"
"The notebook that has the viewer."


def case_dots(chapter: Chapter, still: str = "before") -> str:
    """The chart's block for the chapter's first metric, against the reference of its first
    contrast, on all the data; empty without runs of two arms.

    A dot is a test case, mean over the seeds that both arms have; a click on it leads to the viewer
    where that shows the case, else to the run that was tested on it.

    still: where the figure stands that says the same; empty where none does.
    """
    metric = TOPICS[chapter.topic].metrics[0]
    whole = chapter.cases[(chapter.cases["fraction"] == 1) & chapter.cases[metric].notna()]
    if whole.empty or not chapter.contrasts:
        return ""
    reference = chapter.contrasts[0][1]
    scores = whole.pivot_table(
        index=["task", "fold", "case", "seed"], columns="system", values=metric
    )
    if reference not in scores:
        return ""
    arms = [system for system in ordered(list(scores)) if system != reference]
    switches = [charts.arm_choice(arm, on=arm == arms[0]) for arm in arms]
    names = {reference: title(reference), **{each.value: each.words for each in switches}}
    word, seen = OVERLAP[metric], cases_in_viewer(chapter)
    means = scores.groupby(["task", "fold", "case"]).mean()
    says = {
        case: _says(case, dict(zip(means.columns, row)), names, word)
        for case, row in zip(means.index, means.to_numpy())
    }
    runs = chapter.done[chapter.done["fraction"] == 1].groupby(["system", "fold"])["seed"].min()

    rows: list[dict[str, Any]] = []
    for arm in arms:
        # a seed counts where both arms have it
        pairs = scores[[reference, arm]].dropna().groupby(["task", "fold", "case"]).mean()
        for case, theirs, ours in pairs.sort_values(reference).itertuples(name=None):
            task, fold, name = case
            place = f"fold-{fold}_seed-{runs[arm, fold]}"
            row = {
                "arm": arm,
                "score": round(theirs, 4),
                "gain": round(100 * (ours - theirs), 3),
                "says": says[case],
                "href": f"../{page_name(chapter.study)}.html#{anchor(task, arm, 1.0, place)}",
                "leads": "The run tested on it",
            }
            if name in seen:
                row |= {
                    "seen": True,
                    "href": f"{VIEWER}.html#case={name}",
                    "leads": "The viewer at this case",
                }
            rows.append(row)
    if not rows:
        return ""
    gains = [row["gain"] for row in rows]
    text = Chart(
        _specification(word, names[reference], switches, (min(gains), max(gains))),
        f"{word} of each test case: each arm minus {names[reference]}, by the latter's score.",
        "dots shown: one for each test case and arm, mean over seeds",
        "Grey: within one point. Dashed: mean."
        + (" Ringed: in the viewer of masks, where a click leads." if seen else ""),
    )
    return charts.block(
        text, rows, [Switches("arm", f"Arm, minus {names[reference]}", switches, True)], still
    )


def cases_in_viewer(chapter: Chapter) -> set[str]:
    """The cases that the book's viewer shows of the chapter's study."""
    if VIEWER not in owned_notebooks(chapter.study):
        return set()
    return {one.case for one in load_drawn(chapter)[0] if one.task in chapter.tasks}


def _says(case: Any, scores: dict[str, float], names: dict[str, str], word: str) -> str:
    """The score of each arm in one case, the reference's first."""
    _, fold, name = case
    base, *others = [(words, scores[arm]) for arm, words in names.items()]
    lines = [f"{name}, test case of fold {fold}", f"{base[0]}: {base[1]:.3f}"]
    for words, score in others:
        if not math.isnan(score):
            lines.append(f"{words}: {score:.3f} ({100 * (score - base[1]):+z.1f} points)")
    return "\n".join([*lines, f"{word}, mean over seeds."])


def _specification(
    word: str, reference: str, arms: Sequence[Choice], reach: tuple[float, float]
) -> dict[str, Any]:
    """Dots over the band of equivalence, with the mean of those that are shown."""
    x = {
        "field": "score",
        "type": "quantitative",
        "scale": {"zero": False},
        "axis": {"title": f"{word} of {reference}", "grid": False, "tickCount": 6},
    }
    y = {
        "type": "quantitative",
        "scale": {"domain": list(reach)},
        "axis": {"title": f"difference, {word} points"},
    }
    looks = charts.looks("arm", arms)
    return {
        "height": charts.HEIGHT_PX,
        "layer": [
            *charts.band(y, EQUIVALENCE_POINTS),
            {
                "mark": {"type": "rule", "strokeDash": [7, 4], "strokeWidth": 1.8},
                "encoding": {
                    "y": {**y, "aggregate": "mean", "field": "gain"},
                    "color": looks["color"],
                },
            },
            {
                "transform": [{"filter": "datum.seen"}],
                "mark": {"type": "point", "size": 260, "stroke": INK, "strokeWidth": 1.5},
                "encoding": {"x": x, "y": {**y, "field": "gain"}},
            },
            {
                "name": charts.MARKS,
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 55,
                    "opacity": 0.75,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "gain"},
                    **looks,
                    "tooltip": {"field": "says"},
                },
            },
        ],
    }
