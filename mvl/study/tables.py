"""Runs -> tidy tables: the only reader and writer of results. A run that is not there keeps its
row, empty."""

from __future__ import annotations

import csv
import io
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core import files, run_folder
from mvl.core.columns import (
    CASE_COLUMNS,
    DECATHLON,
    HISTORY_COLUMNS,
    METRICS,
    RUN_KEYS,
    run_columns,
)
from mvl.core.command_lines import command_line
from mvl.core.config import Config
from mvl.core.means import mean
from mvl.study.run_rows import (
    RUN_COLUMNS,
    Fingerprints,
    TableError,
    check_split,
    deviation,
    run_row,
)
from mvl.study.status import state_of

EXTERNAL_COLUMNS = ["trained_on", *CASE_COLUMNS]
"""Columns of external.csv: the run's own task, then the row of its external test, whose `task` is
the external one."""
TEXT = {
    "trained_on": str,
    "study": str,
    "task": str,
    "system": str,
    "case": str,
    "label": str,
    "status": str,
    "state": str,
    "run": str,
    "weights_sha256": str,
    "cases_sha256": str,
    "history_sha256": str,
}


def study_runs(study: str) -> list[Config]:
    """The study's grid; only `mvl.study.grid` says what it is."""
    from mvl.study.grid import study_runs as grid

    return grid(study)


def collect(study: str, results_dir: Path) -> Path:
    """Write `runs.csv` (one row per run of the grid, holes included), `cases.csv` and `history.csv`
    of a study; returns their folder.

    Every number is that of the run's own files, digit for digit; the same runs give the same bytes.
    """
    with files.locked(Path(results_dir) / Path(study).stem, wait=True):
        return _collect_locked(study, results_dir)


def _collect_locked(study: str, results_dir: Path) -> Path:
    folder, (table, cases, history) = (
        Path(results_dir) / Path(study).stem,
        gather(study, results_dir),
    )
    for name in ("cases.csv", "external.csv", "history.csv", "runs.csv"):
        files.sweep(folder, name)
    write_table(folder / "cases.csv", cases, CASE_COLUMNS)
    files.write_csv(folder / "history.csv", history, [*RUN_KEYS, *HISTORY_COLUMNS])
    if external := gather_external(study, results_dir):
        write_table(folder / "external.csv", external, EXTERNAL_COLUMNS)
    else:
        (folder / "external.csv").unlink(missing_ok=True)
    write_table(folder / "runs.csv", table, RUN_COLUMNS)
    return folder


def gather_external(study: str, results_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of every external test that is sealed in a done run of the grid, in the
    grid's order."""
    rows: list[dict[str, Any]] = []
    for config in study_runs(study):
        folder = run_folder.run_dir(results_dir, config)
        if state_of(folder, config) == "done":
            for name in run_folder.external_files(folder):
                rows += [
                    {"trained_on": config.task} | row
                    for row in read_rows(folder / name, CASE_COLUMNS)
                ]
    return rows


def without_decathlon(columns: list[str]) -> list[str]:
    """The columns of a table that was made before the Decathlon's metrics were."""
    return [column for column in columns if column not in DECATHLON]


def write_table(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write rows as CSV, without the Decathlon's metrics where no row has them, so that old records
    give the same bytes."""
    any_new = any(row.get(column, "") != "" for row in rows for column in DECATHLON)
    held = columns if any_new else without_decathlon(columns)
    files.write_csv(path, [{column: row.get(column, "") for column in held} for row in rows], held)


def gather(
    study: str, results_dir: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `runs.csv`, `cases.csv` and `history.csv`, read from the run folders, hashes
    checked."""
    table: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    splits: dict[tuple[Any, ...], tuple[str, Path]] = {}
    frozen = Fingerprints()
    for config in study_runs(study):
        folder = run_folder.run_dir(results_dir, config)
        state = state_of(folder, config)
        scores = read_rows(folder / "cases.csv", CASE_COLUMNS) if state == "done" else []
        table.append(run_row(folder, config, state, scores))
        cases += scores
        if state == "done":
            frozen.check(config, run_folder.read_status(folder), folder)
            check_split(folder, config, splits)
            history += [
                run_columns(config) | row
                for row in read_rows(folder / "history.csv", HISTORY_COLUMNS)
            ]
    return table, cases, history


def read_rows(path: Path, columns: list[str], remedy: str = "") -> list[dict[str, str]]:
    """The rows of a CSV as text, after checking its header and that no field is missing; the
    Decathlon's metrics may be absent.

    Raises:
        TableError: no such file, other columns, or a short or long row; names file and line.
    """
    return _checked_rows(path, _text(path, remedy), columns)


def _text(path: Path, remedy: str) -> str:
    if not path.is_file():
        raise TableError(f"{path}: no such file; {remedy or 'restore it from its record'}")
    return path.read_text()


def _checked_rows(path: Path, text: str, columns: list[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    if reader.fieldnames not in (columns, without_decathlon(columns)):
        raise TableError(
            f"{path}: columns are {reader.fieldnames}, expected {columns}; remove the run's folder"
            " and train it again"
        )
    rows, width = list(reader), len(reader.fieldnames or ())
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise TableError(
                f"{path}: line {line} does not have {width} fields; restore the file from its"
                " record"
            )
    return rows


def read_runs(study: str, results_dir: Path) -> pd.DataFrame:
    """`runs.csv`: one row per run of the grid; a hole has its state and empty (NaN) numbers."""
    return read_table(study, results_dir, "runs.csv", RUN_COLUMNS)


def read_cases(study: str, results_dir: Path) -> pd.DataFrame:
    """`cases.csv`: one row per done run, case and label; every metric is finite.

    Raises:
        TableError: a metric is empty or not finite, or a row stands twice.
    """
    return read_scores(study, results_dir, "cases.csv", CASE_COLUMNS)


def read_external(study: str, results_dir: Path) -> pd.DataFrame:
    """Return `external.csv`, checked as `read_cases` does: one row per done run, external case and
    label; no row without a file."""
    path = Path(results_dir) / Path(study).stem / "external.csv"
    if not path.is_file():
        return pd.DataFrame(columns=EXTERNAL_COLUMNS)
    return read_scores(study, results_dir, path.name, EXTERNAL_COLUMNS)


def read_scores(study: str, results_dir: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """Return a table of cases after checking that no metric is empty and no row stands twice."""
    table = read_table(study, results_dir, name, columns)
    path = Path(results_dir) / Path(study).stem / name
    again = command_line("study", "collect", study, results_dir=results_dir)
    if table[["status", *METRICS]].isna().any().any():
        raise TableError(f"{path}: a metric is empty or NaN; collect it again with `{again}`")
    if table.duplicated(
        [column for column in columns if column in ("trained_on", *RUN_KEYS, "case", "label")]
    ).any():
        raise TableError(f"{path}: a case stands twice; collect it again with `{again}`")
    return table


def read_history(study: str, results_dir: Path) -> pd.DataFrame:
    """`history.csv`: one row per done run and epoch."""
    return read_table(study, results_dir, "history.csv", [*RUN_KEYS, *HISTORY_COLUMNS])


def read_table(study: str, results_dir: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """A CSV as a frame; floats read back exactly, empty fields are NaN, names stay text; the
    Decathlon's metrics are NaN where absent."""
    path = Path(results_dir) / Path(study).stem / name
    run, collect_it = (
        command_line("study", action, study, results_dir=results_dir)
        for action in ("run", "collect")
    )
    text = _text(path, f"make it with `{run}`, or `{collect_it}` if the runs are done")
    return _frame(path, text, tuple(columns)).copy()


@lru_cache(maxsize=32)
def _frame(path: Path, text: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Parse a table once: the pages of a book ask for the same few again and again."""
    _checked_rows(path, text, list(columns))
    types = {column: kind for column, kind in TEXT.items() if column in columns}
    table = pd.read_csv(
        io.StringIO(text),
        dtype=types,
        keep_default_na=False,
        na_values=[""],
        float_precision="round_trip",
    )
    return table.reindex(columns=list(columns))


def record(study: str, results_dir: Path, records_dir: Path) -> Path:
    """Copy the records (no weights) of every done run of a study into `records_dir/<study>` and
    collect there; returns that folder.

    Runs that are not done leave a hole; what was recorded of them before is kept.

    Raises:
        TableError: a run that says done has a file without its recorded hash, or other settings
            than the study; nothing is copied.
    """
    grid = [(config, run_folder.run_dir(results_dir, config)) for config in study_runs(study)]
    states = {folder: state_of(folder, config) for config, folder in grid}
    if bad := [
        f"{folder} is {state}" for folder, state in states.items() if state in ("damaged", "stale")
    ]:
        again = command_line("study", "run", study, results_dir=results_dir)
        raise TableError(f"nothing recorded: {'; '.join(bad)}. Delete each and run `{again}` again")
    target, tuning = (Path(place) / Path(study).stem for place in (records_dir, results_dir))
    with files.locked(target, wait=True):
        files.sweep(target, "tuning.csv")
        for config, folder in grid:
            if states[folder] == "done":
                copy_record(folder, run_folder.run_dir(records_dir, config))
        if (tuning / "tuning.csv").is_file():
            files.atomic_write(target / "tuning.csv", (tuning / "tuning.csv").read_bytes())
        return _collect_locked(study, records_dir)


def copy_record(folder: Path, target: Path) -> None:
    """Copy one run's record, `status.json` last, and check the copy; call it under the lock of the
    study's folder."""
    files.sweep(target)
    for name in (*run_folder.recorded_files(folder), "status.json"):
        if (
            not (target / name).is_file()
            or (target / name).read_bytes() != (folder / name).read_bytes()
        ):
            files.atomic_write(target / name, (folder / name).read_bytes())
    if not run_folder.is_done(target):
        raise TableError(
            f"{target}: the copy does not have the hashes of {folder}; was a run being written"
            " there? Record again"
        )


def summary(study: str, results_dir: Path) -> pd.DataFrame:
    """One row per (task, system, fraction), in the grid's order: how many runs are planned and
    done, then mean and sd over the done runs.

    Columns: task, system, fraction, planned, done, n_cases (rows of one run, summed), missed, then
    `<metric>` and `<metric>_sd` (n - 1 over runs; NaN for fewer than two). The Decathlon's metrics
    are NaN unless every done run has them. The mean of an arm with holes is over fewer runs than
    planned: show `done` of `planned` beside it.
    """
    table = read_runs(study, results_dir)
    rows = []
    for (task, system, fraction), arm in table.groupby(["task", "system", "fraction"], sort=False):
        done = arm[arm["state"] == "done"]
        row = {
            "task": task,
            "system": system,
            "fraction": fraction,
            "planned": len(arm),
            "done": len(done),
            "n_cases": int(done["n_test"].sum()),
            "missed": int(done["missed"].sum()),
        }
        for metric in (*METRICS, *DECATHLON):
            values = done[metric].tolist()
            if metric in DECATHLON and any(map(math.isnan, values)):
                values = []
            row[metric] = mean(values) if values else math.nan
            row[f"{metric}_sd"] = deviation(values) if len(values) > 1 else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def holes(study: str, results_dir: Path) -> list[str]:
    """`<run>: <state>` for each run of the grid that is not done."""
    table = read_runs(study, results_dir)
    return [
        f"{run}: {state}" for run, state in zip(table["run"], table["state"]) if state != "done"
    ]
