"""What the second protocol's designs can decide, and how often they err, as the page on statistics
shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mvl.core.markdown import markdown_table
from mvl.core.run_folder import records_dir
from mvl.evidence import calibration, calibration_families, power_plan, run_pairs, second_study
from mvl.evidence.arms import title
from mvl.evidence.second_study import HYBRID, VIT
from mvl.study.grid import load_study
from mvl.study.tables import read_cases

MEASURED = "hippocampus2_published"
"The study whose variances the simulations take."


def power_table(results: Path | None = None) -> str:
    """Every planned contrast of the protocol as a Markdown table, from the variances recorded so
    far."""
    rows = []
    for study in second_study.STUDIES:
        value = power_plan.power_plan(study, results_dir=results)
        rows += [_cells(study, row, value["margin"]) for row in value["rows"]]
    head = (
        "study | difference | folds x seeds | standard deviation, points | sees, points | called"
        " equivalent | variances of"
    )
    return markdown_table(head, "lllrrrl", rows)


def _cells(study: str, row: dict[str, Any], margin: float) -> list[str]:
    words = f"{title(row['system'])} minus {title(row['reference'])}"
    if row["fraction"] != 1:
        words += f", {row['fraction']:.0%} of the cases"
    start = [load_study(study).title, words, f"{row['folds']} x {row['seeds']}"]
    if row["sd"] is None:
        return [*start, "not measured", "", "", ""]
    family = row["family"]
    seen = f"{row['detectable'][str(family)]:.2f}"
    seen += f" (one of {family})" if family > 1 else ""
    same = f"{row['equivalence']:.0%} within {margin:g}"
    return [*start, f"{row['sd']:.2f}", seen, same, _in_words(row["source"])]


def _in_words(source: str) -> str:
    """Return the study, and the two arms where they are another contrast's, in their titles."""
    study, _, arms = source.partition(": ")
    shown = " minus ".join(title(arm) for arm in arms.split(" - ")) if arms else ""
    return load_study(study).title + (f": {shown}" if shown else "")


def calibration_table(results: Path | None = None) -> str:
    """How often each design and family errs, at the variances of the first study of the protocol
    that has records; nothing without them."""
    folder = Path(results or records_dir())
    if not (folder / MEASURED / "cases.csv").is_file():
        return ""
    cases = read_cases(MEASURED, folder)
    pairs = run_pairs.pair(cases, HYBRID, VIT, load_study(MEASURED).tasks[0])
    variances = calibration.components(pairs)
    assert variances is not None, "ten pairs of runs are recorded"
    return calibration_families.table(variances)


def own_calibration_table(results: Path | None = None) -> str:
    """How often each recorded family of the protocol errs at the variances of its own first
    contrast, simulated; nothing without records."""
    folder = Path(results or records_dir())
    rows = []
    for question in second_study.QUESTIONS:
        planned = power_plan.contrasts_of(question)
        records = power_plan.recorded_cases([question.study], folder)
        found = power_plan.measured(planned[0], records)
        if found is None or found[1] != question.study:
            continue
        folds, seeds = power_plan.own_design(planned[0])
        rate = calibration_families.rates(found[0], folds, seeds, len(planned))
        words = [load_study(question.study).title, question.words, f"{folds} x {seeds}"]
        rows.append([*words, len(planned), f"{rate.called:.1%}", f"{rate.covered:.1%}"])
    head = (
        "study | question | folds x seeds | contrasts in the family"
        " | calls a difference that is not there | interval holds the truth"
    )
    return markdown_table(head, "lllrrr", rows) if rows else ""


def facts() -> dict[str, str]:
    """What `book/statistics.md` shows of the second protocol."""
    return {
        "protocol_power": power_table(),
        "protocol_calibration": calibration_table(),
        "own_calibration": own_calibration_table(),
    }
