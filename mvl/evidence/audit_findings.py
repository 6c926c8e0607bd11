"""The audit of the papers' released code: findings of `data/audit.toml` with what was measured, and
what each fault is worth in our pipeline."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core import run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import ROOT, Config, load_config
from mvl.core.errors import MvlError
from mvl.core.means import mean
from mvl.evidence import run_pairs, stats
from mvl.evidence.audit_clone import CHECKS, which_paper
from mvl.evidence.audit_measures import MEASURES
from mvl.study.status import state_of
from mvl.study.tables import read_rows

FINDINGS = ROOT / "data" / "audit.toml"
TASK, FOLDS = "Task04_Hippocampus", (0, 1, 2)
CLEAN, CONTROL = "vit_baseline", "audit_control"
"The hippocampus' own arm, and the released three versions of each case without a fault."
KNOWN = {
    "run": "was run or computed here",
    "source": "the text of the code shows it",
    "reading": "rests on a reading of the code",
}
SHOWN = ("dice", "dice_resized")


class AuditError(MvlError, ValueError):
    """An entry of `data/audit.toml` is wrong; the message names it."""


@dataclass(frozen=True)
class Finding:
    """What a paper's code does, against what the paper says, and how to see it."""

    id: str
    paper: str
    "P1 or P2."
    title: str
    where: str
    "Files and lines in the commit named at the head of the file."
    says: str
    "What paper or README say; empty: nothing."
    does: str
    known: str
    "run | source | reading."
    command: str
    "For the reader's own clone."
    consequence: str
    measure: str = ""
    "Key of MEASURES."
    check: str = ""
    "Key of CHECKS."


@dataclass(frozen=True)
class Arm:
    """A fault that was switched on."""

    system: str
    study: str
    fault: str
    reported: str
    "The cases on which the code with this fault reports its score."
    reference: str
    "The arm that differs from it in the fault alone."


ARMS = (
    Arm(CLEAN, "hippocampus", "none: the protocol", "validation cases", CLEAN),
    Arm("audit_loss", "audit", "thresholded Dice: cross-entropy alone", "validation cases", CLEAN),
    Arm("audit_train_loss", "audit", "epoch chosen by training loss", "validation cases", CLEAN),
    Arm("audit_test", "audit", "epoch chosen on the test cases", "the test cases", CLEAN),
    Arm(
        CONTROL,
        "audit",
        "none: the released three versions, label turned with the image",
        "validation cases",
        CLEAN,
    ),
    Arm("audit_planes", "audit", "label turned in another plane", "validation cases", CONTROL),
    Arm(
        "audit_leak",
        "audit",
        "copies on both sides of the split",
        "versions of trained cases",
        CONTROL,
    ),
    Arm(
        "audit_released",
        "audit",
        "the four of MedVisionLlama together",
        "versions of trained cases",
        CLEAN,
    ),
)


@cache
def read_findings(path: Path = FINDINGS) -> dict[str, Any]:
    """The file, as it is."""
    return tomllib.loads(path.read_text())


def load_findings(path: Path = FINDINGS) -> list[Finding]:
    """The findings in the order of the file.

    Raises:
        AuditError: an unknown key, paper, measure, check or way of knowing, or an id that stands
            twice.
    """
    read, names = read_findings(path), {field.name for field in fields(Finding)}
    for entry in read["finding"]:
        wrong = [key for key in entry if key not in names]
        wrong += [
            entry[key]
            for key, known in (
                ("paper", read["papers"]),
                ("measure", MEASURES),
                ("check", CHECKS),
                ("known", KNOWN),
            )
            if entry.get(key) and entry[key] not in known
        ]
        if wrong:
            raise AuditError(f"{path.name}: finding {entry.get('id')}: unknown {wrong[0]!r}")
    found = [Finding(**entry) for entry in read["finding"]]
    if len({finding.id for finding in found}) < len(found):
        raise AuditError(f"{path.name}: an id stands twice")
    return found


@cache
def measured(finding: Finding) -> str:
    """The finding's figure in a sentence; empty where there is none."""
    return MEASURES[finding.measure]() if finding.measure else ""


def arm_configs(arm: Arm) -> list[Config]:
    """The arm's planned runs."""
    return [load_config(arm.study, TASK, arm.system, fold=fold) for fold in FOLDS]


def arm_runs(arm: Arm, results_dir: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows of `cases.csv` of the arm's done runs, as numbers, and the Dice at the chosen epoch on
    the cases that it watched."""
    rows: list[dict[str, Any]] = []
    watched: list[float] = []
    for config in arm_configs(arm):
        folder = run_folder.run_dir(results_dir, config)
        if state_of(folder, config) == "done":
            found = read_rows(folder / "cases.csv", CASE_COLUMNS)
            numbers = {"fraction": config.fraction, "fold": config.fold, "seed": config.seed}
            rows += [
                row | numbers | {metric: float(row[metric]) for metric in SHOWN} for row in found
            ]
            watched.append(float(run_folder.read_status(folder)["best_dice"]))
    return rows, watched


def worth(results_dir: Path) -> pd.DataFrame:
    """One row per arm: what it reports itself, what is true of its test cases, and its difference
    to its reference; holes are NaN.

    `reported` and `resized` are Dice on the network's grid, so that they can be compared; `dice` is
    on the scan's own. `gap` is reported minus resized. Differences are paired over the cases of the
    same fold and seed.
    """
    found = {arm.system: arm_runs(arm, results_dir) for arm in ARMS}
    cases = pd.DataFrame([row for rows, _ in found.values() for row in rows])
    return pd.DataFrame([_row(arm, *found[arm.system], cases) for arm in ARMS])


def _row(
    arm: Arm, rows: Sequence[dict[str, Any]], watched: Sequence[float], cases: pd.DataFrame
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "system": arm.system,
        "study": arm.study,
        "fault": arm.fault,
        "reported_on": arm.reported,
        "reference": arm.reference,
        "done": len(watched),
        "planned": len(FOLDS),
    }
    values = (
        [mean(watched), *(mean([r[m] for r in rows]) for m in ("dice_resized", "dice"))]
        if rows
        else [math.nan] * 3
    )
    row |= dict(zip(("reported", "resized", "dice"), values)) | {"gap": values[0] - values[1]}
    row |= dict.fromkeys(("difference", "low", "high", "p"), math.nan) | {"n_cases": 0, "n_runs": 0}
    done = set() if cases.empty else set(cases["system"])
    if arm.reference == arm.system or not {arm.system, arm.reference} <= done:
        return row
    try:
        found = stats.row(
            stats.compare(
                cases, arm.system, arm.reference, TASK, planned=[(fold, 0) for fold in FOLDS]
            )
        )
    except run_pairs.StatsError:  # no fold that both have
        return row
    kept = ("difference", "low", "high", "n_cases", "n_runs")
    return row | {key: found[key] for key in kept} | {"p": found["p_t"]}


def answer(results_dir: Path) -> str:
    """Which fault flatters a report most and which costs the network most, in a sentence; nothing
    while runs are missing."""
    rows = worth(results_dir)
    faults = rows[~rows["fault"].str.startswith("none")]
    if (rows["done"] < rows["planned"]).any():
        return ""
    flatters, costs = (
        faults.loc[index] for index in (faults["gap"].idxmax(), faults["difference"].idxmin())
    )
    together = faults.set_index("system").loc["audit_released"]
    return (
        f"**In short.** The fault that flatters a report most is *{flatters['fault']}*: the"
        f" reported Dice is {100 * flatters['gap']:+z.1f} points from the same network's on test"
        " cases. The"
        f" costliest is *{costs['fault']}*: {100 * costs['difference']:+z.1f} points on test cases"
        f" [{100 * costs['low']:+z.1f}, {100 * costs['high']:+z.1f}] (p ="
        f" {costs['p']:.2g}).\n\n**Measured in the ViT alone, the faults do not raise its"
        " report towards 0.87.** The four of MedVisionLlama's that a switch can bring about change"
        " the true test Dice together by"
        f" {100 * together['difference']:+z.1f} points"
        f" [{100 * together['low']:+z.1f}, {100 * together['high']:+z.1f}] (p ="
        f" {together['p']:.2g}), and the report that such code makes of itself is"
        f" {100 * together['gap']:+z.2f} points from the same network's Dice on test"
        " cases. The released code has them in both arms; here they were measured in the ViT alone,"
        " so that what they do to the difference between the arms is not known."
    )


def check_clone(clone: Path) -> list[dict[str, Any]]:
    """Per finding of the clone's paper that has a check: whether this clone shows it, and where."""
    paper = which_paper(clone)
    return [
        {"id": f.id, "shown": bool(where := CHECKS[f.check](clone)), "where": where}
        for f in load_findings()
        if f.paper == paper and f.check
    ]


def report(clone: Path | None, results_dir: Path) -> dict[str, Any]:
    """Collect what `mvl audit` says: findings with their figures, the table, a clone's checks."""
    findings = [
        {key: getattr(f, key) for key in ("id", "paper", "title", "where", "known", "command")}
        | {"measured": measured(f)}
        for f in load_findings()
    ]
    rows = [
        {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in row.items()
        }
        for row in worth(results_dir).to_dict("records")
    ]
    return {"findings": findings, "worth": rows, "clone": check_clone(clone) if clone else []}


def report_as_text(found: dict[str, Any]) -> str:
    """Write `report` as lines for a terminal."""
    lines = []
    for finding in found["findings"]:
        known = KNOWN[finding["known"]]
        lines.append(
            f"{finding['paper']} {finding['id']}: {finding['title']} ({finding['where']}; {known})"
        )
        if finding["measured"]:
            lines.append(f"    {finding['measured'].replace('`', '')}")
        lines.append(f"    $ {finding['command']}")

    lines += [
        "",
        "fault switched on: Dice it reports, Dice on test cases, difference on the scan's own grid",
    ]
    for row in found["worth"]:
        numbers = [row[key] for key in ("reported", "resized", "difference")]
        three = "  ".join("not yet recorded" if n is None else f"{n:.4f}" for n in numbers)
        lines.append(f"    {row['system']:<18}{three}  {row['fault']}")

    if found["clone"]:
        lines.append("")
    for check in found["clone"]:
        shown = "shown" if check["shown"] else "NOT shown"
        lines.append(f"{shown:<10}{check['id']}: {', '.join(check['where'])}")
    return "\n".join(lines)
