"""The README's answer, and the table of all arms that lies beside the records: one row for each
arm that has runs, beside the papers' numbers; what is planned and not run stands below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.core import files
from mvl.core.markdown import markdown_table
from mvl.datasets.registry import find_task
from mvl.evidence import claims_text, second_study
from mvl.evidence.arms import caveat
from mvl.evidence.claims_ledger import Entry
from mvl.evidence.claims_verdicts import Verdict
from mvl.evidence.lesion_classes import EMPTY
from mvl.evidence.reported import paper_values, reported
from mvl.publish import answer_in_brief
from mvl.publish.book_facts import PUBLISHED
from mvl.study.tables import TableError, read_cases, read_runs, summary

PAPER_NAMES = {"vit_baseline": "ViT-Baseline", "medvisionllama_v3": "MedVisionLlama"}
"Our system = the name in `data/paper_reported.csv`."
PAPER_TABLES = {
    1.0: ("average", "dice", "test, mean of 10 tasks"),
    0.3: ("few-shot 30 %", "val_dice", "validation, from a figure"),
    0.1: ("few-shot 10 %", "val_dice", "validation, from a figure"),
}
"""Fraction of the training cases: table and metric of the MedVisionLlama paper that come nearest,
and what they are."""
PICTURE_NAMES = {"llm4seg": "LLM4Seg (best)"}
"Our system on pictures = the name in `data/paper_reported.csv`."
SCAN_METRICS = {"dice": ("Dice", 3), "nsd": ("NSD", 3), "hd95_mm": ("HD95, mm", 2)}
PICTURE_METRICS = {"jaccard": ("IoU", 3), "dice": ("F1 (Dice)", 3), "hd95_mm": ("HD95, px", 1)}
"Columns of the README's tables: metric, heading, digits."
NOTE = (
    "± is the standard deviation over an arm's runs (folds and seeds). `130 x 2`: 130 test cases"
    " under two seeds."
)
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def paper_overlaps(system: str) -> str:
    """What the LLM4Seg paper reports nearest to this arm, IoU and F1 in percent, with what it is; a
    dash where it reports nothing."""
    asked = {"paper": "P2", "table": "average", "system": PICTURE_NAMES.get(system, "")}
    found = [
        value
        for metric in ("iou_percent", "f1_percent")
        for value in paper_values(**asked, metric=metric)
    ]
    if len(found) != 2:
        return "–"
    return f"{found[0]:g} % / {found[1]:g} % (mean of its 2-D data sets)"


def paper_dice(system: str, fraction: float) -> str:
    """What the MedVisionLlama paper reports nearest to this arm, with what it is; a dash where it
    reports nothing."""
    table, metric, words = PAPER_TABLES.get(fraction, ("", "", ""))
    rows = reported()
    asked = {"paper": "P1", "table": table, "system": PAPER_NAMES.get(system), "metric": metric}
    for column, value in asked.items():
        rows = rows[rows[column] == value]
    if rows.empty:
        return "–"
    row = rows.iloc[0]
    spread = "" if math.isnan(row["sd"]) else f" ± {row['sd']:g}"
    return f"{row['value']:g}{spread} ({words})"


def readme_block(records_dir: Path, link: str = "data/results") -> str:
    """Markdown of every recorded study, each with its table: the book's first, beside the papers'
    numbers; what only shows that the pipeline works last, beside none.

    Every row is an arm (system, fraction) with n, how many of the planned runs are done, and a link
    to them under `link`.
    """
    names = [path.parent.name for path in sorted(Path(records_dir).glob("*/runs.csv"))]
    studies = sorted(names, key=lambda name: (*PUBLISHED, name).index(name))
    real = [study_block(study, Path(records_dir), link, made=False) for study in studies]
    made = [study_block(study, Path(records_dir), link, made=True) for study in studies]
    blocks = [block for block in real if block] or ["No run on scans is recorded yet."]
    blocks.insert(0, NOTE)
    if any(made):
        blocks.append(
            "<details><summary>What only shows that the pipeline works, and is no evidence"
            "</summary>\n\n" + "\n\n".join(filter(None, made)) + "\n\n</details>"
        )
    return "\n\n".join(blocks)


def study_block(study: str, records_dir: Path, link: str, made: bool) -> str:
    """One study's tables, one for each of its tasks that have a caveat (`made`) or none, each with
    its holes below; empty without such a task."""
    arms, parts, table = summary(study, records_dir), [], read_runs(study, records_dir)
    folders = table.drop_duplicates(["task", "system"]).set_index(["task", "system"])["run"]
    for task, rows in arms.groupby("task", sort=False):
        if bool(caveat([str(task)])) != made:
            continue
        pixels = find_task(str(task)).unit == "px"
        metrics, theirs = (
            (PICTURE_METRICS, "Paper's IoU / F1") if pixels else (SCAN_METRICS, "Paper's Dice")
        )
        head = [
            "System",
            "Training cases",
            *(words for words, _ in metrics.values()),
            "Runs done",
            "Test cases",
            *([] if made else [theirs]),
        ]
        lines = []
        for _, arm in rows[rows["done"] > 0].iterrows():
            paper = (
                paper_overlaps(arm["system"])
                if pixels
                else paper_dice(arm["system"], arm["fraction"])
            )
            lines.append(
                readme_row(
                    arm,
                    metrics,
                    [] if made else [paper],
                    f"{link}/{Path(folders[task, arm['system']]).parent}",
                    counted(table, arm),
                )
            )
        holes = [
            f"`{arm['system']}` at {100 * arm['fraction']:g} % ({arm['planned']})"
            for _, arm in rows[rows["done"] == 0].iterrows()
        ]
        note = lesion_note(study, records_dir) if pixels and not made else ""
        below = f"\n\n{note}" if note else ""
        below += (
            f"\n\nPlanned and not yet run (number of runs): {', '.join(holes)}." if holes else ""
        )
        shown = markdown_table(head, "l" * len(head), lines) if lines else "no run yet."
        parts.append(f"Study `{study}`, {task}:\n\n{shown}{below}")
    return "\n\n".join(parts)


def lesion_note(study: str, records_dir: Path) -> str:
    """IoU and F1 over the pictures with a lesion alone, by system, where the rows above mix them
    with normal pictures; else empty."""
    every = read_cases(study, records_dir)
    cases = every[~every["status"].isin(EMPTY)]
    if len(cases) == len(every):
        return ""
    means = cases.groupby("system", sort=False)[["jaccard", "dice"]].mean()
    found = "; ".join(
        f"`{system}` {row['jaccard']:.3f} / {row['dice']:.3f}" for system, row in means.iterrows()
    )
    return (
        "These rows mix pictures with a lesion and normal ones, whose score is 0 or 1. With a"
        f" lesion alone, IoU / F1: {found}."
    )


def counted(table: pd.DataFrame, arm: pd.Series) -> str:
    """An arm's test cases, each once, with the number of seeds where it is more than one: `130 x
    2`; with that of the scores where only some folds have another seed."""
    done = table[
        (table["state"] == "done")
        & np.logical_and.reduce([table[key] == arm[key] for key in ("task", "system", "fraction")])
    ]
    distinct = int(done.drop_duplicates("fold")["n_test"].sum())
    if distinct == arm["n_cases"]:
        return str(distinct)
    times, rest = divmod(int(arm["n_cases"]), distinct)
    return f"{distinct} ({arm['n_cases']} scores)" if rest else f"{distinct} x {times}"


def readme_row(
    arm: pd.Series, metrics: dict[str, tuple[str, int]], paper: list[str], folder: str, cases: str
) -> list[str]:
    """One arm as a row of the README's table: mean over runs ± sd over runs (where there are
    several), cases and a link to its runs."""
    cells = [f"`{arm['system']}`", f"{100 * arm['fraction']:g} %"]
    for metric, (_, digits) in metrics.items():
        sd = arm[f"{metric}_sd"]
        spread = "" if math.isnan(sd) else f" ± {sd:.{digits}f}"
        cells.append(f"{arm[metric]:.{digits}f}{spread}")
    cells += [f"[{arm['done']} of {arm['planned']}]({folder})", cases, *paper]
    return cells


def short_answer(entries: Sequence[Entry], records_dir: Path) -> str:
    """Return the answer with its table, then what the first study says."""
    said = {entry.claim.id: entry for entry in entries if entry.verdict and entry.verdict.numbers}
    first = said.get("mean_dice")
    if first is None:
        return ""
    found = _found(dict(first.elsewhere).get(second_study.FIRST) or first.verdict)
    of_the_first = (
        f"At a rate that suits the ViT alone, the first study finds {found}; but there the network"
        " may ignore its layer, so that nothing follows for it."
    )
    tables = second_study.recorded_differences(records_dir)
    answer = answer_in_brief.in_brief(tables, records_dir, "book/second_study.md")
    return f"{answer}\n\n{of_the_first}" if answer else ""


def _found(verdict: Verdict | None) -> str:
    """Return a verdict's first difference with its word."""
    assert verdict is not None
    return f"**{claims_text.short(verdict.numbers[0]).rpartition(', ')[0]}** ({verdict.word})"


def results_page(records_dir: Path) -> str:
    """Return the page of all arms, which lies beside the records."""
    return (
        "# Results by arm\n\nWritten by `mvl figures` from the records in this folder. Means are"
        " over test cases that no choice was made on (but in `audit_test`, whose fault that is)."
        " Differences are taken over pairs of runs, stand in the book, and need not be those of two"
        " means here: not every arm has the same folds and seeds."
        " The papers' numbers are theirs, on their splits and resized grids.\n\n"
        f"{readme_block(records_dir, '.')}\n"
    )


def update_readme(path: Path, words: str) -> bool:
    """Put the words between the result markers of a README; True when it changed.

    Raises:
        TableError: the file does not hold each marker once, in order.
    """
    text = Path(path).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise TableError(f"{path}: must hold the lines {BEGIN} and {END} once each, in this order")
    new = f"{text[: text.index(BEGIN)]}{BEGIN}\n\n{words}\n\n{text[text.index(END) :]}"
    if new != text:
        files.atomic_write(Path(path), new)
    return new != text
