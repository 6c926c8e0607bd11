"""The reproduction check: every recorded quantity of a study beside the rerun's, the tolerance and
a verdict.

Bitwise: where `environment.json` of a run says the same platform (system, processor and its flags,
torch build, threads, device), the same packages and, where it used one, the same GPU, driver and
libraries as its record, the sha256 of weights, cases and history must be the record's. Nothing is
tolerated. A run whose operators had no deterministic form on its GPU (`deterministic: warn` in
`status.json`) is compared as on another platform.

On other hardware rounding differs, so that weights diverge; differences no larger than those
between seeds are accepted. So the tolerance of an arm's mean over n runs is measured in the record:
t * sd * sqrt(2 / n), where sd is the standard deviation over seeds at one (task, system, fraction,
fold), pooled over the record's arms of that fraction that have several seeds; sqrt(2 / n) is the
spread of the difference of two such means; and t is the quantile of Student's t, for the sd's
degrees of freedom, at which a rerun with fresh seeds would fall outside anywhere in the study with
a chance of 1 % (Bonferroni over its arms and metrics). With fewer than 5 degrees of freedom at that
fraction the larger of its sd and that over all fractions is used; without several seeds anywhere,
the sd over all recorded runs of the study, arms and folds mixed. Each row says which.

A record made before the Decathlon's metrics were is compared in the columns that it has: those two
are left out of the rerun's `cases.csv` before its sha256 is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, DECATHLON, METRICS
from mvl.core.command_lines import command_line
from mvl.core.means import mean
from mvl.study import tables
from mvl.study.tables import gather, read_rows, without_decathlon

Row = dict[str, Any]
HASHES = ("weights_sha256", "cases_sha256", "history_sha256")
FAILURES = ("differs", "outside", "missing", "no record", "no tolerance")
"Verdicts that make the check fail; the others are bitwise, within and not recorded."
FALSE_ALARM = 0.01
"Chance that a rerun with fresh seeds fails the check on another platform."
MIN_DEGREES = 5
"Degrees of freedom below which one fraction's seeds do not set the tolerance alone."


@dataclass(frozen=True)
class Check:
    """One recorded quantity beside the rerun's."""

    quantity: str
    "Run or arm, and what of it."
    recorded: float | str | None
    "Value in the record; None: there is none."
    rerun: float | str | None
    "Value of the rerun; None: there is none."
    tolerance: float | None
    "Largest difference that passes; None: bytes are compared, or nothing can be."
    verdict: str
    "bitwise, within, not recorded, or one of `FAILURES`."
    note: str = ""
    "Where the tolerance comes from, or the remedy."

    @property
    def failed(self) -> bool:
        """True when this quantity does not reproduce."""
        return self.verdict in FAILURES


def check(study: str, results_dir: Path, records_dir: Path) -> list[Check]:
    """Compare a rerun of a study with its record: first each run, then each arm's means.

    A recorded run that the rerun lacks is `missing`, a record that is damaged or made with other
    settings is `no record`; both fail. Runs of the grid that were never recorded are listed and do
    not fail, unless nothing is recorded at all.
    """
    recorded, rerun = gather(study, records_dir)[0], gather(study, results_dir)[0]
    known = [(old, new) for old, new in zip(recorded, rerun) if old["state"] != "missing"]
    if not known:
        again = command_line("study", "record", study, results_dir=results_dir)
        return [
            Check(
                study,
                None,
                None,
                None,
                "no record",
                f"{records_dir / Path(study).stem} holds no run of it: `{again}`",
            )
        ]
    rerun = [in_columns_of(old, new, Path(results_dir)) for old, new in zip(recorded, rerun)]
    known = [(old, new) for old, new in zip(recorded, rerun) if old["state"] != "missing"]
    both = [old["run"] for old, new in known if old["state"] == new["state"] == "done"]
    same = {run: _same_platform(run, results_dir, records_dir) for run in both}
    rerun_command = command_line("study", "run", study, results_dir=results_dir)
    checks = [
        line
        for old, new in zip(recorded, rerun)
        for line in check_run(old, new, same.get(old["run"], False), rerun_command)
    ]
    arms: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for old, new in known:
        if old["state"] == "done":
            arms.setdefault(tuple(old[k] for k in ("task", "system", "fraction")), []).append(
                (old, new)
            )
    done = [old for old, _ in known if old["state"] == "done"]
    family = len(arms) * len(compared_metrics(done))

    def same_arm(pairs: list[tuple[Row, Row]]) -> bool:
        return all(same.get(old["run"]) for old, _ in pairs)

    return checks + [
        line
        for arm, pairs in arms.items()
        for line in check_arm(arm, pairs, done, same_arm(pairs), family)
    ]


def in_columns_of(recorded: Row, rerun: Row, results_dir: Path) -> Row:
    """The rerun's row, with the sha256 of its cases taken in the columns that the record has."""
    new_columns = all(rerun[metric] != "" and recorded[metric] == "" for metric in DECATHLON)
    if recorded["state"] != "done" or rerun["state"] != "done" or not new_columns:
        return rerun
    columns = without_decathlon(CASE_COLUMNS)
    rows = read_rows(results_dir / rerun["run"] / "cases.csv", CASE_COLUMNS)
    kept = [{column: row[column] for column in columns} for row in rows]
    return {**rerun, "cases_sha256": files.sha256_bytes(files.csv_text(kept, columns).encode())}


def compared_metrics(rows: Sequence[Row]) -> tuple[str, ...]:
    """The metrics whose means are compared: those of the Decathlon only where each of the rows has
    them."""
    held = [metric for metric in DECATHLON if all(row[metric] != "" for row in rows)]
    return (*METRICS, *held)


def _same_platform(run: str, results_dir: Path, records_dir: Path) -> bool:
    """Whether a run and its record say the same under `platform`, `packages` and `gpu`, and were
    both made to repeat."""
    folders = [Path(folder) / run for folder in (results_dir, records_dir)]
    read = [json.loads((folder / "environment.json").read_text()) for folder in folders]
    facts = [(said.get("platform"), said.get("packages"), said.get("gpu")) for said in read]
    strict = all(
        run_folder.read_status(folder).get("deterministic") != "warn" for folder in folders
    )
    return facts[0][0] is not None and facts[0] == facts[1] and strict


def determinism_line(study: str, results_dir: Path) -> str:
    """How many of the rerun's finished runs used operators that repeat bit for bit, in words."""
    statuses = [
        run_folder.read_status(run_folder.run_dir(results_dir, config))
        for config in tables.study_runs(study)
    ]
    said = [status.get("deterministic") for status in statuses if status["state"] == "done"]
    words = {
        "strict": "strict (every operator repeats bit for bit)",
        "warn": "warn (some operators do not: compared within tolerances)",
        None: "made before this was recorded",
    }
    counts = [f"{said.count(key)} {text}" for key, text in words.items() if key in said]
    return f"{study}: determinism of the rerun's runs: {', '.join(counts) or 'none is done'}"


def check_run(old: Row, new: Row, same_platform: bool, rerun_command: str) -> list[Check]:
    """State of one run, and its three hashes where the platforms are one; `rerun_command` makes a
    run that is missing."""
    if old["state"] == "missing":
        return [Check(old["run"], None, new["state"], None, "not recorded")]
    if old["state"] != "done":
        note = f"the record is {old['state']}: restore it, or record the study again"
        return [Check(old["run"], old["state"], new["state"], None, "no record", note)]
    if new["state"] != "done":
        note = f"run `{rerun_command}` for it"
        return [Check(old["run"], "done", new["state"], None, "missing", note)]
    if not same_platform:
        return [
            Check(
                old["run"],
                "done",
                "done",
                None,
                "within",
                "another platform: hashes are not compared, means are below",
            )
        ]
    return [_check_hash(f"{old['run']} {name}", old[name], new[name]) for name in HASHES]


def _check_hash(quantity: str, old: str, new: str) -> Check:
    equal = bool(old) and old == new
    note = (
        ""
        if equal
        else (
            "same platform and packages, other bytes: compare the code's commit in both"
            " environment.json"
        )
    )
    return Check(quantity, old, new, None, "bitwise" if equal else "differs", note)


def check_arm(
    arm: tuple[Any, ...],
    pairs: Sequence[tuple[Row, Row]],
    record: Sequence[Row],
    same_platform: bool,
    family: int,
) -> list[Check]:
    """The arm's mean of each metric over its recorded runs; `family` is how many such means the
    study has."""
    name, out = f"{arm[0]}/{arm[1]}/fraction-{arm[2]!r}", []
    whole = all(new["state"] == "done" for _, new in pairs)
    rerun = [new for _, new in pairs if new["state"] == "done"]
    for metric in (*compared_metrics([*record, *rerun]), "n_test"):
        old, new = (
            mean([o[metric] for o, _ in pairs]),
            (mean([n[metric] for _, n in pairs]) if whole else None),
        )
        exact = same_platform or metric == "n_test"
        sd, degrees, note = (0.0, 1, "") if exact else seed_sd(record, metric, arm[2])
        tolerance = (
            None if sd is None else quantile(degrees, family) * sd * math.sqrt(2 / len(pairs))
        )
        word = verdict(old, new, tolerance, same_platform)
        out.append(
            Check(f"{name} {metric} (n = {len(pairs)} runs)", old, new, tolerance, word, note)
        )
    return out


def quantile(degrees: int, family: int) -> float:
    """Two-sided quantile of Student's t that one of `family` differences exceeds with a chance of
    at most `FALSE_ALARM`."""
    from scipy.stats import t

    return float(t.ppf(1 - FALSE_ALARM / (2 * family), degrees))


def verdict(old: float, new: float | None, tolerance: float | None, same_platform: bool) -> str:
    """The word for a recorded and a rerun mean."""
    if new is None:
        return "missing"
    if same_platform:
        return "bitwise" if old == new else "differs"
    if tolerance is None:
        return "no tolerance"
    return "within" if abs(old - new) <= tolerance else "outside"


def seed_sd(record: Sequence[Row], metric: str, fraction: float) -> tuple[float | None, int, str]:
    """Standard deviation of a metric over seeds in the record, its degrees of freedom, and what it
    was measured over (see the module's text)."""
    sd, degrees = pooled_sd([row for row in record if row["fraction"] == fraction], metric)
    if sd is not None and degrees >= MIN_DEGREES:
        return sd, degrees, f"seeds at this fraction ({degrees} degrees of freedom)"
    everywhere, all_degrees = pooled_sd(record, metric)
    if everywhere is not None:
        return (
            max(everywhere, sd or 0.0),
            all_degrees,
            f"seeds at all fractions ({all_degrees} degrees of freedom)",
        )
    values = [row[metric] for row in record]
    if len(values) < 2:
        return None, 1, "the record holds one run: it cannot say how far two runs may differ"
    squares, degrees = _sum_of_squares(values)
    return (
        math.sqrt(squares / degrees),
        degrees,
        f"no arm has several seeds: sd over all {len(values)} recorded runs, arms and folds mixed",
    )


def pooled_sd(record: Sequence[Row], metric: str) -> tuple[float | None, int]:
    """Within-(task, system, fraction, fold) sd over seeds, pooled by degrees of freedom; (None, 0)
    where no arm has several seeds."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in record:
        groups.setdefault(tuple(row[k] for k in ("task", "system", "fraction", "fold")), []).append(
            row[metric]
        )
    parts = [_sum_of_squares(values) for values in groups.values()]
    degrees = sum(d for _, d in parts)
    return (math.sqrt(math.fsum(s for s, _ in parts) / degrees), degrees) if degrees else (None, 0)


def _sum_of_squares(values: Sequence[float | int]) -> tuple[float, int]:
    centre = mean(values)
    return math.fsum((v - centre) ** 2 for v in values), len(values) - 1


def report(study: str, checks: Sequence[Check]) -> str:
    """The checks as a table, failures repeated with their notes, and one line that says whether the
    study reproduces."""
    rows = [
        ("quantity", "recorded", "rerun", "tolerance", "verdict"),
        *(
            (
                c.quantity,
                _show(c.recorded),
                _show(c.rerun),
                _show(c.tolerance),
                c.verdict.upper() if c.failed else c.verdict,
            )
            for c in checks
        ),
    ]
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    notes = sorted({f"tolerance: {c.note}" for c in checks if c.tolerance and c.note})
    failed = [
        f"{c.verdict.upper()}: {c.quantity}" + (f" ({c.note})" if c.note else "")
        for c in checks
        if c.failed
    ]
    counts = ", ".join(
        f"{sum(c.verdict == word for c in checks)} {word}"
        for word in dict.fromkeys(c.verdict for c in checks)
    )
    last = (
        f"{study}: {'does NOT reproduce' if failed or not checks else 'reproduces'} ({len(checks)}"
        f" quantities: {counts})"
    )
    return "\n".join([lines[0], "-" * (sum(widths) + 8), *lines[1:], *notes, *failed, last])


def _show(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value[:12] if isinstance(value, str) else f"{value:.6g}"


def main(study: str, results_dir: Path, records_dir: Path | None = None) -> int:
    """Print the check; 1 when a quantity does not reproduce, else 0."""
    checks = check(study, Path(results_dir), Path(records_dir or run_folder.records_dir()))
    print(determinism_line(study, Path(results_dir)))
    print(report(study, checks))
    return int(not checks or any(c.failed for c in checks))
