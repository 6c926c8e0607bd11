"""The audit's pages: each finding with its evidence, and what each fault is worth here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.core.markdown import markdown_table
from mvl.evidence.audit_findings import (
    KNOWN,
    TASK,
    Finding,
    answer,
    load_findings,
    measured,
    read_findings,
    worth,
)
from mvl.study.links import run_address


def worth_table(results_dir: Path) -> str:
    """`worth` as Markdown, Dice in hundredths for the differences."""
    head = (
        "fault switched on | runs | Dice it reports | Dice on test cases | reports too much,"
        " points | test Dice, scan's own grid | difference, points [95 % interval]"
    )
    rows = worth(results_dir).to_dict("records")
    return markdown_table(head, "lrlrrrl", [_cells(row, results_dir) for row in rows])


def _cells(row: dict[str, Any], results_dir: Path) -> list[str]:
    def number(value: float, form: str) -> str:
        return format(value, form) if math.isfinite(value) else "–"

    def points(value: float) -> str:
        return number(100 * value, "+z.2f")

    difference = "" if row["reference"] == row["system"] else "not yet recorded"
    if math.isfinite(row["difference"]):
        p = f"p = {row['p']:.2g}" if math.isfinite(row["p"]) else "one fold, no p"
        difference = (
            f"{points(row['difference'])} [{points(row['low'])}, {points(row['high'])}] to"
            f" `{row['reference']}`; n = {row['n_cases']} cases of {row['n_runs']} folds, {p}"
        )
    done = f"{row['done']} of {row['planned']}"
    if row["done"]:
        place = f"{row['study']}/runs/{TASK}/{row['system']}#fraction-1.0"
        done = f"[{done}]({run_address(results_dir, place)})"
    return [
        f"{row['fault']} (`{row['system']}`)",
        done,
        f"{number(row['reported'], '.4f')} on {row['reported_on']}",
        number(row["resized"], ".4f"),
        points(row["gap"]),
        number(row["dice"], ".4f"),
        difference,
    ]


def finding_page(finding: Finding) -> str:
    """A finding as Markdown; `REPOSITORY` stands for our address."""
    lines = [f"### {finding.title}", "", f"*{finding.where}; {KNOWN[finding.known]}.*", ""]
    lines += [f"**README or paper says.** {finding.says}", ""] if finding.says else []
    lines += [f"**Code does.** {finding.does}", ""]
    if finding.measure:
        source = f"[`{finding.measure}`](REPOSITORY/blob/main/mvl/evidence/audit_measures.py)"
        lines += [f"**Measured.** {measured(finding)} {source}", ""]
    return "\n".join(
        [
            *lines,
            f"**Consequence.** {finding.consequence}",
            "",
            "```bash",
            finding.command,
            "```",
            "",
        ]
    )


def facts(studies: Sequence[str], results_dir: Path, repository: str) -> dict[str, Any]:
    """What `book/audit.md` shows; the table is of the study that has the clean arm."""
    papers, found = read_findings()["papers"], load_findings()

    table = "The study `audit` is on scans: its table is in the published book."
    short = ""
    if "hippocampus" in studies:
        table = worth_table(results_dir)
        short = answer(results_dir)

    pages = {}
    for paper in papers:
        parts = [finding_page(f) for f in found if f.paper == paper]
        pages[paper] = "\n".join(parts).replace("REPOSITORY", repository)

    numbers = {kind: sum(finding.known == kind for finding in found) for kind in KNOWN}
    return {
        "audit_worth": table,
        "audit_answer": short,
        "audit_pages": pages,
        "audit_papers": papers,
        "audit_count": len(found),
        "audit_known": numbers,
    }
