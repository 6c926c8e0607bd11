"""What a chapter says: the claims, tables, sentences and links that are computed from its runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core.config import ROOT
from mvl.core.files import sha256_file
from mvl.core.markdown import markdown_table
from mvl.evidence.arms import caveat, title
from mvl.evidence.chapter import Chapter, unplanned
from mvl.evidence.decision import verdict
from mvl.evidence.differences import OVERLAPS, differences
from mvl.evidence.reported import PAPER_TABLE
from mvl.evidence.topics import TOPICS
from mvl.study.links import run_address


def answer(chapter: Chapter) -> str:
    """The chapter's answer, one sentence for each comparison, computed, with what its interval
    leaves out; holes keep their line."""
    lead = f"**{sentence(chapter)}** " if chapter.smoke else ""
    if chapter.done.empty:
        return (
            f"{lead}No run of this chapter is recorded in the study `{chapter.study}` yet, so it"
            " has no answer."
        )
    table, several = differences(chapter), len(TOPICS[chapter.topic].metrics) > 1
    lines = [
        f"- {_sentence(row, OVERLAPS[row['metric']] if several else 'Dice')}"
        for row in table.to_dict("records")
    ]
    if absent := unplanned(chapter):
        lines.append(
            f"\nNot planned in the study `{chapter.study}`: {', '.join(f'`{s}`' for s in absent)}."
        )
    if not table["n_runs"].any():
        return "\n".join([lead + means(chapter), *([""] if lines else []), *lines])
    if (table["n_folds"] > 1).any():
        lines.append(f"\n*{INTERVAL}*")
    return "\n".join([f"{lead.strip()}\n"] * bool(lead) + lines)


def _sentence(row: dict[str, Any], metric: str) -> str:
    from mvl.evidence.run_pairs import cases_and_seeds
    from mvl.evidence.stats import ONE_FOLD, ONE_PAIR

    words = " ".join(str(row["comparison"]).removeprefix(f"{metric}: ").split("\n"))
    if row["hole"]:
        return (
            f"{words}: not yet recorded ({row['n_runs']} of {row['planned']} planned pairs of runs;"
            f" {row['hole']})."
        )
    low, mid, high = (100 * row[k] for k in ("low", "difference", "high"))
    interval = f"95 % interval {low:+z.2f} to {high:+z.2f}"
    word = verdict(row, metric)
    pairs = (
        f"{row['n_runs']} pairs of runs"
        if row["complete"]
        else f"{row['n_runs']} of {row['planned']} planned pairs of runs"
    )
    if row["n_runs"] == 1:
        there = "the one pair of runs" if row["complete"] else pairs
        return (
            f"{words}: {word}; **{mid:+z.2f} {metric} points** in {there} ({interval}, n ="
            f" {row['n_cases']} cases: {ONE_PAIR})."
        )
    adjusted = f", {row['p_holm']:.2g} after Holm" if row["complete"] else ""
    test = (
        f"corrected t-test p = {row['p_t']:.2g}{adjusted}"
        if row["n_folds"] > 1
        else f"no test: {ONE_FOLD}"
    )
    n = f"n = {cases_and_seeds(row['n_distinct'], row['n_cases'])}, {pairs}"
    return f"{words}: **{mid:+z.2f} {metric} points** ({interval}; {test}; {n}): {word}."


def means(chapter: Chapter) -> str:
    """Return the mean test Dice of each arm that has finished runs, in sentences."""
    parts = []
    for system, rows in chapter.done.groupby("system", sort=False):
        runs = "one run; run-to-run variation not measured"
        if len(rows) > 1:
            runs = f"mean of {len(rows)} runs"
        parts.append(
            f"{title(str(system))} reaches a test Dice of **{rows['dice'].mean():.3f}** on the"
            f" native grid ({runs}, n = {int(rows['n_test'].max())} test cases each)."
        )
    return " ".join(parts)


def results_table(chapter: Chapter) -> str:
    """Table, in Markdown, each arm's means over its done runs, how many are done, and n."""
    rows = []
    for (system, fraction), arm in chapter.runs.sort_values("fraction", kind="stable").groupby(
        ["system", "fraction"], sort=False
    ):
        done = arm[arm["state"] == "done"]
        numbers = ["not yet recorded", "", "", "", "", ""]
        if not done.empty:
            shown = (("dice", 3), ("nsd", 3), ("hd95_mm", 2), ("jaccard", 3))
            numbers = [
                str(int(done["n_test"].max())),
                *(_mean_sd(done[metric], digits) for metric, digits in shown),
                f"{int(done['trainable'].iloc[0]):,}",
            ]
        rows.append([title(str(system)), f"{fraction:.0%}", _runs_done(chapter, arm), *numbers])
    if not rows:
        return (
            f"No run of this chapter is planned or recorded in the study `{chapter.study}`:"
            f" {'; '.join(chapter.holes)}."
        )
    label = f"{sentence(chapter)} " if chapter.smoke else ""
    own = "scans" if chapter.unit == "mm" else "pictures"
    note = (
        f"Mean over the done runs ± standard deviation over runs; metrics on the {own}' own grid."
    )
    if (chapter.done.groupby(["system", "fraction"]).size() == 1).any():
        note += " **An arm with one run done has no ±: its run-to-run variation is not measured.**"
    head = (
        f"system | data | runs done | test cases | Dice | NSD | HD95, {chapter.unit} | IoU"
        " (Jaccard) | trainable parameters"
    )
    return f"{markdown_table(head, 'lrrrrrrrr', rows)}\n\n{label}{note}"


def sentence(chapter: Chapter) -> str:
    """The caveat of the chapter's tasks as a sentence."""
    words = caveat(chapter.tasks)
    return f"{words[:1].upper()}{words[1:]}."


def convergence_table(chapter: Chapter) -> str:
    """Markdown table: what the validation Dice of each arm still gains in the last quarter of the
    training, and which epoch is kept.

    The gain is the rise of the least-squares line through a run's last quarter, from its start to
    its end, in Dice points.
    """
    from mvl.publish.figures_curves import selected_epochs

    if chapter.history.empty:
        return (
            f"No training history of this chapter is recorded in the study `{chapter.study}` yet."
        )
    rows = []
    for (system, fraction), arm in chapter.history.groupby(["system", "fraction"], sort=False):
        gains = pd.Series(
            [last_quarter_gain(run) for _, run in arm.groupby(["task", "fold", "seed"])]
        )
        kept, count = selected_epochs(arm)["epoch"].median() + 1, int(arm["epoch"].max()) + 1
        spread = "validated once there" if gains.isna().all() else f"{gains.mean():+z.2f}"
        if gains.notna().sum() > 1:
            spread += f" ({gains.min():+z.2f} to {gains.max():+z.2f})"
        share = f"{fraction:.0%}"
        rows.append([title(str(system)), share, len(gains), count, spread, f"{kept:g}"])
    head = (
        "system | data | runs | epochs | gain in the last quarter, Dice points: mean"
        " (smallest to largest) | epoch kept, median"
    )
    return markdown_table(head, "lrrrrr", rows)


def last_quarter_gain(run: pd.DataFrame) -> float:
    """Dice points by which the line through the validated epochs of a run's last quarter rises; NaN
    with fewer than two of them."""
    end = run["epoch"].max() + 1
    last = run[run["epoch"] >= 0.75 * end].dropna(subset=["val_dice"])
    if len(last) < 2:
        return math.nan
    return (
        100
        * float(np.polyfit(last["epoch"], last["val_dice"], 1)[0])
        * float(last["epoch"].max() - last["epoch"].min())
    )


def _runs_done(chapter: Chapter, arm: pd.DataFrame) -> str:
    """`3 of 5`, linked to the arm's runs."""
    first, done = arm.iloc[0], (arm["state"] == "done").sum()
    runs = f"{Path(chapter.study).stem}/runs/{first['task']}/{first['system']}"
    place = f"{runs}#fraction-{first['fraction']}"
    return f"[{done} of {len(arm)}]({run_address(chapter.results_dir, place)})"


def arm_links(chapter: Chapter) -> str:
    """One sentence: each arm of the chapter, and how many of its planned runs are done, linked to
    them."""
    arms = chapter.runs.groupby(["system", "fraction"], sort=False)

    listed = []
    for (system, fraction), arm in arms:
        share = "" if fraction == 1 else f" at {fraction:.0%} of the data"
        listed.append(f"{title(str(system))}{share} {_runs_done(chapter, arm)}")
    return f"The runs behind it: {'; '.join(listed)}." if listed else ""


def _mean_sd(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f}" + (
        f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
    )


INTERVAL = (
    "Intervals are those of the corrected t-test over folds; with one fold they are over cases"
    " alone."
)


def run_links(*chapters: Chapter) -> str:
    """Return the done runs of the chapters as a folded Markdown table, each with its config,
    environment and cases; links where the runs are published."""
    done = [(chapter, run) for chapter in chapters for run in chapter.done["run"]]
    if not done:
        return "No run is recorded yet."
    rows = []
    for chapter, run in done:
        files = [
            f"[{name}]({run_address(chapter.results_dir, f'{run}/{name}')})"
            for name in ("config.yaml", "environment.json", "cases.csv")
        ]
        address = run_address(chapter.results_dir, str(run))
        rows.append([f"[`{str(run).split('/runs/')[-1]}`]({address})", *files])
    table = markdown_table("run | config | environment | cases", "llll", rows)
    return folded(f"Every run behind this page ({len(done)})", table)


def folded(words: str, markdown: str) -> str:
    """Return Markdown that is folded under its words, in a notebook as in the book."""
    return f"<details><summary>{words}</summary>\n\n{markdown}\n\n</details>"


def inputs(chapter: Chapter) -> str:
    """Return the sha256 of each table that the chapter read, folded, one line each."""
    folder = chapter.folder
    drawn = (
        ("examples.npz", "masks.csv", "activations.csv", "activations.npz")
        if chapter.topic == "qualitative"
        else ()
    )
    names = [folder / name for name in ("runs.csv", "cases.csv", "history.csv", *drawn)]
    tables = [path for path in (*names, PAPER_TABLE) if path.is_file()]

    lines = []
    for path in tables:
        inside = path.is_relative_to(ROOT)
        name = path.relative_to(ROOT) if inside else Path(chapter.study) / path.name
        lines.append(f"{sha256_file(path)}  {name}")
    text = "```text\n" + "\n".join(lines) + "\n```"
    return folded("The tables that this page read, by sha256", text)


def repeat(chapter: Chapter, notebook: str) -> str:
    """The commands that repeat the chapter's runs and the chapter."""
    where = "data/results" if chapter.published else "data/runs"
    return (
        f"```bash\nSTUDY={chapter.study} make reproduce\nmvl notebook {notebook} -p study"
        f" {chapter.study} -p results_dir {where}\n```"
    )


def say(markdown: str) -> None:
    """Show Markdown in a notebook; nothing where there is none, of which a page would show the
    object's name."""
    from IPython.display import Markdown, display

    if markdown:
        display(Markdown(markdown))
