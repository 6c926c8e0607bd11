"""The figures of `make faults`: what was broken on purpose, how often, and what came out; kept in
`data/faults.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvl.core import files, machine
from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table

RECORD = ROOT / "data" / "faults.json"
FIGURES = {
    "kills": (
        (
            "training processes killed at random moments, whose run still ended with the bytes of"
            " an undisturbed one"
        ),
        "1,000 kills over 20 runs",
    ),
    "study_kills": (
        (
            "kills, at random moments, of a study with all its processes, whose records still ended"
            " with the bytes of an undisturbed one"
        ),
        "50 kills, 12 runs, same bytes",
    ),
    "checkpoint_kills": (
        "kills inside the writing of a checkpoint, loadable afterwards",
        "1,000 of 1,000",
    ),
    "bit_flips": ("flipped bits in `.nii.gz` files, refused with the file's name", "600 of 600"),
    "holes": ("zeroed blocks of 512 bytes in `.nii.gz` files, refused", "150 of 150"),
    "truncations": ("shortened `.nii.gz` files, refused", "300 of 300"),
    "hostile_inputs": (
        "malformed or hostile scans, labels and lists, refused or flagged with file and remedy",
        "all",
    ),
    "scan_verdicts": (
        (
            "scans at random (type, slope, forms, units, axes, compression), of which `mvl verify`,"
            " training, evaluation and prediction say the same"
        ),
        "500 of 500",
    ),
    "picture_verdicts": (
        (
            "pictures with masks at random (mode, palette, alpha, turn, ending), of which"
            " `mvl verify`, training and prediction say the same"
        ),
        "500 of 500",
    ),
    "start_interrupts": (
        "interrupts at random moments of a command's start, which end with 130 and leave nothing",
        "200 of 200",
    ),
    "archives": (
        "hostile archives, nothing written outside the folder or left in it",
        "at least 12, all",
    ),
    "weights": ("faults of pretrained weights, refused", "all"),
    "two_writers": (
        "rows of two processes that write at once, found again in the tables",
        "600 of 600",
    ),
    "second_start": (
        "second starts of a run that another process holds, refused with its pid",
        "all",
    ),
    "disk_full": (
        "failed writes, fsyncs and renames in every writer, old file whole and nothing left behind",
        "all",
    ),
    "metric_table": (
        (
            "cells of the golden table of metrics (empty masks, spacing, NaN), equal to a second"
            " implementation"
        ),
        "all",
    ),
    "false_positive_rate": (
        "planned tests that call two equal arms different, in simulation",
        "0.05 within 0.01",
    ),
    "leakage": ("splits with a shared case, patient or voxel hash, refused", "all"),
    "notebooks": (
        "notebooks that fail (exception, dead kernel, timeout, early exit), the build fails too",
        "6 of 6",
    ),
}
"Figure -> what it counts, and the target that was set beforehand."
RATES = ("false_positive_rate",)
"Figures that are a share, not a count of `n`."


def read_figures(path: Path = RECORD) -> dict[str, Any]:
    """What was measured by figure; nothing where the file is absent or not JSON."""
    try:
        return dict(json.loads(path.read_text())["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def keep_figure(path: Path, key: str, value: float, n: int, words: str) -> None:
    """Put one figure in the file, in place of that figure's older value; safe when several
    processes do so at once."""
    with files.waiting_lock(path.with_name(f".{path.name}.lock")):
        figures = read_figures(path) | {
            key: {"value": value, "n": n, "words": words, "measured": files.now()}
        }
        files.write_json(path, {"platform": machine.platform_facts(), "figures": figures})


def found(key: str, row: dict[str, Any] | None) -> str:
    """`600 of 600`, a share with its n, or that it was not measured."""
    if row is None:
        return "not measured"
    return (
        f"{row['value']:.3g} (n = {row['n']:,})"
        if key in RATES
        else f"{row['value']:,.0f} of {row['n']:,}"
    )


def table(path: Path = RECORD) -> str:
    """Every figure as a Markdown table: what was really run, beside its target; a figure that
    nobody measured says so."""
    figures = read_figures(path)
    rows = [
        [title, found(key, figures.get(key)), target, figures.get(key, {}).get("words", "")]
        for key, (title, target) in FIGURES.items()
    ]
    head = ["what was broken, and what is counted", "found", "target", "how"]
    return markdown_table(head, "lrll", rows)


def facts(path: Path = RECORD) -> dict[str, str]:
    """What `book/reliability.md` shows."""
    figures = read_figures(path)
    days = sorted({row["measured"][:10] for row in figures.values()})
    when = f", on {days[0]}" if days else ""
    if len(days) > 1:
        when = f", between {days[0]} and {days[-1]}"
    return {
        "faults_table": table(path),
        "faults_measured": f"{len(figures)} of {len(FIGURES)} figures are measured{when}",
    }


if __name__ == "__main__":
    print(table())
