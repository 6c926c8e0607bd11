"""Best, median and worst case to turn over: one HTML block with a still picture, then a NiiVue
canvas whose volumes travel inside the page.

Volumes are made in memory from the data at hand, never written; without the scans the block shows
the masks alone and says so.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mvl.core.command_lines import command_line
from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.evidence.arms import LABEL, caveat, colour, generated, ordered, title
from mvl.evidence.chapter import Chapter
from mvl.evidence.example_cases import common_runs, study_worst
from mvl.evidence.example_masks import Drawn, example, load_drawn
from mvl.evidence.predicted import read_volume, view
from mvl.publish.figures_cases import example_segmentations
from mvl.publish.inline_figures import with_ids
from mvl.publish.style import CARD, finish, hole, styled, svg

TEMPLATE = ROOT / "book" / "viewer.html"
LARGEST = 300_000
"Bytes of one compressed volume; larger ones are thinned out."
ERRORS = (
    ("false positive: in the mask, not in the label", "#D41159"),
    ("false negative: in the label, not in the mask", "#56B4E9"),
)
"What a mask gets wrong and its colour, told apart by the colour-blind too."
SHOWN_AT_FIRST = 1
"Arms whose mask is switched on when the page opens."


def show(chapter: Chapter, data_dir: Path | None = None) -> None:
    """Display the viewer in a notebook; where there is nothing to show, a card that says why."""
    from IPython.display import display

    drawn, holes = load_drawn(chapter, data_dir)
    display(
        {
            "text/html": page(drawn, holes, chapter.tasks, data_dir, not_shown(chapter, drawn)),
            "text/plain": f"<viewer: {caption(drawn, holes)}>",
        },
        raw=True,
    )


def page(
    drawn: Sequence[Drawn],
    holes: Sequence[str] = (),
    tasks: Sequence[str] = (),
    data_dir: Path | None = None,
    aside: str = "",
) -> str:
    """The block: still picture, caption, canvas, its volumes and its script. A flat task gets the
    still alone.

    aside: what the caption says of a case that is not shown.
    """
    scans = scans_at_hand(drawn, data_dir)
    volumes = bool(drawn) and find_task(drawn[0].task, data_dir).dims == 3
    note = " ".join(
        [f"{words[:1].upper()}{words[1:]}." if (words := caveat(tasks)) else "", scans]
    ).strip()
    facts = {
        "cases": [case_volumes(one, not scans, data_dir) for one in drawn] if volumes else [],
        "blank": int(bool(scans)),
        "errors": [{"title": words, "colour": ink, "rgb": rgb(ink)} for words, ink in ERRORS],
        "layers": layers(ordered(list(drawn[0].predictions)), not scans) if volumes else [],
        "note": note or ("" if volumes else "Pictures are shown as they are, without a viewer."),
    }
    text = json.dumps(facts, sort_keys=True).replace("<", "\\u003c")
    words = html.escape(f"{caption(drawn, holes, scans)} {aside}".strip())
    parts = {
        "ID": f"mvl-viewer-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        "DATA": text,
        "PLACES": "".join(
            f'<span id="case={html.escape(one.case)}"></span>' for one in drawn if volumes
        ),
        "CAPTION": words,
        "STILL": still(drawn, holes, tasks, scans, data_dir).replace(
            "<svg", f'<svg role="img" aria-label="{words}"', 1
        ),
        "CANVAS": (
            "Three slices and a rendering of the chosen case; the controls beside it choose what is"
            " shown."
        ),
    }
    out = TEMPLATE.read_text()
    for name, value in parts.items():
        out = out.replace(f"@@{name}@@", value)
    return out


def not_shown(chapter: Chapter, drawn: Sequence[Drawn]) -> str:
    """A sentence on the study's worst case where the block does not show it; else nothing."""
    if not drawn:
        return ""
    chosen = common_runs(chapter.done)
    worst = study_worst(chapter.cases, chosen)
    if worst["case"] in {one.case for one in drawn}:
        return ""
    return (
        f"The worst case of {title(str(worst['system']))} over all folds and seeds,"
        f" {worst['case']} (fold {int(worst['fold'])}, seed {int(worst['seed'])}, Dice"
        f" {worst['dice']:.3f}), is not shown: the weights of that run are not kept."
    )


def scans_at_hand(drawn: Sequence[Drawn], data_dir: Path | None = None) -> str:
    """Empty where the scans are there, else why only masks are shown."""
    try:
        for one in drawn:
            read_volume(one.task, one.case, data_dir)
    except TaskError:
        get = command_line("fetch", drawn[0].task, data_dir=data_dir)
        return f"Masks only: the scans are not at hand (`{get}` gets them)."
    return ""


def caption(drawn: Sequence[Drawn], holes: Sequence[str] = (), scans: str = "") -> str:
    """What the block shows and how its cases were chosen."""
    if not drawn:
        return "not yet recorded: " + ("; ".join(holes) or "no saved predictions")
    first = title(next(iter(drawn[0].predictions)))
    common = (drawn[0].fold, drawn[0].seed)
    cases = ", ".join(
        f"{one.case} ({one.rank}"
        + ("" if (one.fold, one.seed) == common else f", fold {one.fold}, seed {one.seed}")
        + ")"
        for one in drawn
    )
    seen = scans or "Scan, label (yellow) and the masks of each arm."
    if not scans and not generated([drawn[0].task]):
        task = find_task(drawn[0].task)
        seen += f" {task.title}: {task.licence}."
    return (
        f"{seen} Test cases of fold {common[0]}, seed {common[1]}, ranked by the Dice of {first},"
        f" none chosen by hand: {cases}."
    )


def layers(systems: Sequence[str], scans: bool) -> list[dict[str, Any]]:
    """What can be switched on and off, in drawing order: key, title, colour and whether it is on at
    first."""
    both = [("scan", "scan", "", True), ("label", "label", LABEL, True)] if scans else []
    arms = [(s, title(s), colour(s), i < SHOWN_AT_FIRST) for i, s in enumerate(systems)]
    return [
        {"key": key, "title": words, "colour": ink, "on": on, "rgb": rgb(ink)}
        for key, words, ink, on in [*both, *arms]
    ]


def rgb(ink: str) -> list[int]:
    """Red, green and blue, 0 to 255, of `#rrggbb`; nothing for no colour."""
    return [int(ink[i : i + 2], 16) for i in (1, 3, 5)] if ink else []


def case_volumes(drawn: Drawn, scans: bool, data_dir: Path | None = None) -> dict[str, Any]:
    """One case for the page: volumes as base64 of .nii.gz by layer, Dice in words by system, and
    the point in mm where it opens."""
    affine = np.array(drawn.affine)
    arrays: dict[str, np.ndarray] = {
        s: mask.astype(np.uint8) for s, mask in drawn.predictions.items()
    }
    middle = next(iter(drawn.predictions.values()))
    if scans:
        scan, label, _ = read_volume(drawn.task, drawn.case, data_dir)
        arrays, middle = {"scan": windowed(scan), "label": label.astype(np.uint8), **arrays}, label
    step = next(
        s
        for s in range(1, 99)
        if max(len(packed(a, affine, s)) for a in arrays.values()) <= LARGEST
    )
    text = {
        key: base64.b64encode(packed(array, affine, step)).decode() for key, array in arrays.items()
    }
    blank = (
        {}
        if scans
        else {
            "blank": (
                base64.b64encode(packed(np.zeros(middle.shape, np.uint8), affine, step)).decode()
            )
        }
    )
    return {
        "case": drawn.case,
        "rank": drawn.rank,
        "runs": f"fold {drawn.fold}, seed {drawn.seed}",
        "volumes": text,
        "at": opening(middle, drawn.z, affine),
        "dice": {s: f"{value:.3f}" for s, value in drawn.dice.items()},
        **blank,
    }


def windowed(scan: np.ndarray) -> np.ndarray:
    """Intensities between the 0.5th and the 99.5th percentile as 0 to 255."""
    low, high = np.percentile(scan, (0.5, 99.5))
    return np.round(255 * np.clip((scan - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)


def packed(array: np.ndarray, affine: np.ndarray, step: int = 1) -> bytes:
    """A gzipped NIfTI file of every `step`-th voxel, at the same place in mm."""
    from mvl.datasets.nifti import nifti_bytes

    thinned = affine.astype(np.float64).copy()
    thinned[:3, :3] *= step
    return nifti_bytes(np.ascontiguousarray(array[::step, ::step, ::step]), thinned)


def opening(mask: np.ndarray, z: int, affine: np.ndarray) -> list[float]:
    """The middle of the mask on slice `z`, in mm; the middle of the slice where the mask is empty
    there."""
    inside = np.argwhere(mask[..., z])
    x, y = inside.mean(axis=0) if len(inside) else (np.array(mask.shape[:2]) - 1) / 2
    return [float(v) for v in (affine @ np.array([x, y, z, 1.0]))[:3]]


def still(
    drawn: Sequence[Drawn],
    holes: Sequence[str],
    tasks: Sequence[str],
    scans: str,
    data_dir: Path | None = None,
) -> str:
    """SVG of the block's slices: over the scans where they are there, else the masks alone, else a
    card with the holes.

    It has no paper of its own, so that its words take the page's ink in either theme.
    """
    if not drawn:
        figure = hole("; ".join(holes) or "no saved predictions", tasks)
    elif scans:
        figure = masks_alone(drawn, data_dir)
    else:
        figure = example_segmentations([example(one, data_dir) for one in drawn])
    text = svg(figure)
    facts_of_file = r'<metadata>.*?</metadata>|\sxmlns(?::\w+)?="[^"]*"'
    text = re.sub(facts_of_file, "", text[text.index("<svg") :], flags=re.DOTALL)
    return with_ids(text.replace(f"fill: {CARD.lower()}", "fill: none"), "still-")


@styled
def masks_alone(drawn: Sequence[Drawn], data_dir: Path | None = None) -> Figure:
    """Rows: cases; columns: each arm's mask on the recorded slice, without scan and label."""
    systems = ordered(list(drawn[0].predictions))
    figure = Figure(
        figsize=(1.9 * max(3, len(systems)), 1.9 * len(drawn) + 0.7), layout="constrained"
    )
    grid = figure.subplots(len(drawn), len(systems), squeeze=False)
    for axes, one in zip(grid, drawn):
        axes[0].set_ylabel(f"{one.rank}\n{one.case}", fontsize=9.5)
        for axis, system in zip(axes, systems):
            mask = view(one.predictions[system], one.z, one.task, data_dir)
            axis.imshow(
                mask.T,
                cmap=mpl.colors.ListedColormap(["#00000000", colour(system)]),
                origin="lower",
                interpolation="nearest",
                vmin=0,
                vmax=1,
            )
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"Dice {one.dice[system]:.2f}", fontsize=9.5)
            axis.grid(False)
    for axis, system in zip(grid[0], systems):
        axis.set_title(title(system).replace(" ", "\n", 1), fontsize=10, loc="center")
    return finish(
        figure, [one.task for one in drawn], (), ["masks only: the scans are not at hand"]
    )


def case_table(drawn: Sequence[Drawn], holes: Sequence[str] = ()) -> str:
    """Markdown table: Dice of each arm on each shown case."""
    if not drawn:
        return f"Not yet recorded: {'; '.join(holes) or 'no saved predictions'}."
    systems = ordered(list(drawn[0].predictions))
    rows = [
        [one.case, one.rank, f"{one.fold}, {one.seed}", *(f"{one.dice[s]:.3f}" for s in systems)]
        for one in drawn
    ]
    head = ["case", "rank", "fold, seed", *map(title, systems)]
    label = caveat([one.task for one in drawn])
    made = f"{label}. " if label else ""
    table = markdown_table(head, "lll" + "r" * len(systems), rows)
    return f"{table}\n\n{made}Dice of the whole case on its own grid."
