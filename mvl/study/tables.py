"""Runs -> tidy tables: the only reader and writer of results. A run that is not there keeps its
row, empty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core import files, run_folder
from mvl.core.block_config import LAYER_KINDS
from mvl.core.columns import CASE_COLUMNS, DECATHLON, METRICS, RUN_KEYS, run_columns
from mvl.core.config import Config, ConfigError, to_dict
from mvl.core.errors import MvlError
from mvl.datasets.splits import split_name
from mvl.training.metrics import mean

HISTORY_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "val_dice"]
RUN_COLUMNS = [
    *RUN_KEYS,
    "state",
    "n_test",
    "dice",
    "dice_sd",
    "jaccard",
    "sensitivity",
    "specificity",
    "nsd",
    "hd95_mm",
    "dice_resized",
    "missed",
    "best_epoch",
    "trainable",
    "frozen",
    "total",
    "runtime_s",
    "cpu_s",
    "runtime_per_epoch_s",
    "peak_memory_mb",
    "run",
    "weights_sha256",
    "cases_sha256",
    "history_sha256",
    *DECATHLON,
]
"""Columns of runs.csv, in order; the last two, as in cases.csv, only where a run of the study has
them."""
EXTERNAL_COLUMNS = ["trained_on", *CASE_COLUMNS]
"""Columns of external.csv: the run's own task, then the row of its external test, whose `task` is
the external one."""
NEUTRAL = ("data.cache_gb", "data.num_workers")
"Settings that change no result, so a run made with others is not stale."
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


class TableError(MvlError, RuntimeError):
    """A table or a record is absent, damaged or not complete; the message names the file and the
    remedy."""


def study_runs(study: str) -> list[Config]:
    """The study's grid; only `mvl.study.grid` says what it is."""
    from mvl.study.grid import study_runs as grid

    return grid(study)


def run_state(folder: Path, config: Config) -> str:
    """What `status.json` says, checked: `missing` without one, `damaged` if a hash differs, `stale`
    if other settings made the run."""
    status = run_folder.read_status(folder)
    if status["state"] == "new":
        return "missing"
    if status["state"] != "done":
        return str(status["state"])
    if not run_folder.is_done(folder):
        return "damaged"
    return "stale" if other_settings(folder, config) else "done"


def other_settings(folder: Path, config: Config) -> list[str]:
    """`key: old -> new` for each setting of a run folder that differs from the study's and can
    change a result."""
    try:
        made_with = to_dict(run_folder.read_config(folder))
    except ConfigError as error:
        return [str(error)]
    return [
        line
        for line in run_folder.differences(made_with, to_dict(config))
        if not line.startswith(NEUTRAL)
    ]


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
        if run_state(folder, config) == "done":
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
    """Rows of `runs.csv`, `cases.csv` and `history.csv`, read from the run folders, hashes checked."""
    table: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    splits: dict[tuple[Any, ...], tuple[str, Path]] = {}
    frozen = Fingerprints()
    for config in study_runs(study):
        folder = run_folder.run_dir(results_dir, config)
        state = run_state(folder, config)
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


class Fingerprints:
    """What the runs of a study say of their frozen tensors, so that an arm that is not what its
    name says is refused."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[tuple[str, str], Path]] = {}
        self.arms: dict[tuple[Any, ...], tuple[str, Path]] = {}

    def check(self, config: Config, status: dict[str, Any], folder: Path) -> None:
        """Take in one done run.

        Raises:
            TableError: its frozen tensors moved in training, are those of an arm with other
                weights, or are not those of its own arm.
        """
        before, after = status.get("frozen_sha256_before"), status.get("frozen_sha256_after")
        if not before or not status.get("parameters", {}).get("frozen"):
            return
        block, again = config.model.token_block, "delete the run's folder and train it again"
        if after != before:
            raise TableError(
                f"{folder / 'status.json'}: its frozen tensors changed in training; {again}"
            )
        layer = (
            (block.kind, block.source)
            if block.kind in LAYER_KINDS and not block.trainable
            else ("no frozen layer", "none")
        )
        weights, other = self.weights.setdefault(before, (layer, folder))
        if weights != layer:
            raise TableError(
                f"{folder / 'status.json'}: an arm with {layer[0]} weights of {layer[1]} has the"
                f" frozen tensors of {other}, whose weights are {weights[0]} of {weights[1]};"
                " delete whichever is wrong and train it again"
            )
        known, other = self.arms.setdefault(
            (config.task, config.system, config.seed), (before, folder)
        )
        if known != before:
            raise TableError(
                f"{folder / 'status.json'}: its frozen tensors are not those of {other}, which is"
                f" the same system and seed; {again}"
            )


def check_split(
    folder: Path, config: Config, seen: dict[tuple[Any, ...], tuple[str, Path]]
) -> None:
    """Nothing when the run had the split of the runs `seen` before on its task, fraction and fold;
    notes it there.

    Raises:
        TableError: it had another, so that the two cannot be compared.
    """
    digest = run_folder.read_status(folder).get("split_sha256")
    if not digest:
        return
    first, other = seen.setdefault(
        (config.task, config.fraction, config.fold, config.data.split), (digest, folder)
    )
    if first != digest:
        raise TableError(
            f"{folder} and {other} were made with different splits (sha256 {digest[:12]}...,"
            f" {first[:12]}...) and cannot be compared; restore"
            f" {split_name(config.task, config.data.split)}, delete the run that has another and"
            " train it again"
        )


def run_row(
    folder: Path, config: Config, state: str, cases: list[dict[str, str]]
) -> dict[str, Any]:
    """One row of `runs.csv`; numbers only when the run is done, always the mean over every case and
    label."""
    row: dict[str, Any] = {
        **dict.fromkeys(RUN_COLUMNS, ""),
        **run_columns(config),
        "state": state,
        "run": f"{config.study}/runs/{run_folder.run_name(config)}",
    }
    if state != "done":
        return row
    if not cases:
        raise TableError(
            f"{folder / 'cases.csv'}: holds no case; score the run again with `mvl evaluate"
            f" {folder}`"
        )
    status = run_folder.read_status(folder)
    row |= case_means(cases, folder / "cases.csv")
    row |= {
        key: status.get(key, "")
        for key in ("best_epoch", "runtime_s", "cpu_s", "runtime_per_epoch_s", "peak_memory_mb")
    }
    row |= {
        key: status.get("parameters", {}).get(key, "") for key in ("trainable", "frozen", "total")
    }
    return row | {
        f"{name}_sha256": status["files"].get(file, "")
        for name, file in (
            ("weights", "weights.safetensors"),
            ("cases", "cases.csv"),
            ("history", "history.csv"),
        )
    }


def case_means(cases: list[dict[str, str]], path: Path) -> dict[str, Any]:
    """n, mean of each metric, sd of Dice (n - 1; empty for one row) and number of missed masks of
    one run's rows."""
    numbers = {metric: [float(row[metric]) for row in cases] for metric in METRICS}
    for metric, values in numbers.items():
        if not all(map(math.isfinite, values)):
            raise TableError(
                f"{path}: {metric} holds a value that is not finite; score the run again with `mvl"
                f" evaluate {path.parent}`"
            )
    numbers |= decathlon_numbers(cases, path)
    out: dict[str, Any] = {
        "n_test": len({row["case"] for row in cases}),
        "missed": sum(row["status"] == "missed" for row in cases),
    }
    return (
        out
        | {metric: mean(values) for metric, values in numbers.items()}
        | {"dice_sd": deviation(numbers["dice"])}
    )


def decathlon_numbers(cases: list[dict[str, str]], path: Path) -> dict[str, list[float]]:
    """The Decathlon's metrics of one run's rows; nothing for a run that was scored before they
    were.

    Raises:
        TableError: a value is empty or not finite.
    """
    held = [metric for metric in DECATHLON if metric in cases[0]]
    numbers = {metric: [float(row[metric] or "nan") for row in cases] for metric in held}
    if not all(map(math.isfinite, [value for values in numbers.values() for value in values])):
        raise TableError(
            f"{path}: a metric is empty or not finite; score the run again with `mvl evaluate"
            f" {path.parent}`"
        )
    return numbers


def deviation(values: Sequence[float | int]) -> float | str:
    """Standard deviation with n - 1, or "" for a single value."""
    if len(values) < 2:
        return ""
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def read_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV as text, after checking its header and that no field is missing; the
    Decathlon's metrics may be absent.

    Raises:
        TableError: no such file, other columns, or a short or long row; names file and line.
    """
    if not path.is_file():
        raise TableError(
            f"{path}: no such file; make it with `mvl study run`, or `mvl study collect` if the"
            " runs are done"
        )
    reader = csv.DictReader(io.StringIO(path.read_text()))
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
    return read_table(Path(results_dir) / Path(study).stem / "runs.csv", RUN_COLUMNS)


def read_cases(study: str, results_dir: Path) -> pd.DataFrame:
    """`cases.csv`: one row per done run, case and label; every metric is finite.

    Raises:
        TableError: a metric is empty or not finite, or a row stands twice.
    """
    return read_scores(study, Path(results_dir) / Path(study).stem / "cases.csv", CASE_COLUMNS)


def read_external(study: str, results_dir: Path) -> pd.DataFrame:
    """Return `external.csv`, checked as `read_cases` does: one row per done run, external case and
    label; no row without a file."""
    path = Path(results_dir) / Path(study).stem / "external.csv"
    if not path.is_file():
        return pd.DataFrame(columns=EXTERNAL_COLUMNS)
    return read_scores(study, path, EXTERNAL_COLUMNS)


def read_scores(study: str, path: Path, columns: list[str]) -> pd.DataFrame:
    """Return a table of cases after checking that no metric is empty and no row stands twice."""
    table = read_table(path, columns)
    if table[["status", *METRICS]].isna().any().any():
        raise TableError(
            f"{path}: a metric is empty or NaN; collect it again with `mvl study collect {study}`"
        )
    if table.duplicated(
        [column for column in columns if column in ("trained_on", *RUN_KEYS, "case", "label")]
    ).any():
        raise TableError(
            f"{path}: a case stands twice; collect it again with `mvl study collect {study}`"
        )
    return table


def read_history(study: str, results_dir: Path) -> pd.DataFrame:
    """`history.csv`: one row per done run and epoch."""
    return read_table(
        Path(results_dir) / Path(study).stem / "history.csv", [*RUN_KEYS, *HISTORY_COLUMNS]
    )


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A CSV as a frame; floats read back exactly, empty fields are NaN, names stay text; the
    Decathlon's metrics are NaN where absent."""
    read_rows(path, columns)
    types = {column: kind for column, kind in TEXT.items() if column in columns}
    table = pd.read_csv(
        path, dtype=types, keep_default_na=False, na_values=[""], float_precision="round_trip"
    )
    return table.reindex(columns=columns)


def record(study: str, results_dir: Path, records_dir: Path) -> Path:
    """Copy the records (no weights) of every done run of a study into `records_dir/<study>` and
    collect there; returns that folder.

    Runs that are not done leave a hole; what was recorded of them before is kept.

    Raises:
        TableError: a run that says done has a file without its recorded hash, or other settings
            than the study; nothing is copied.
    """
    grid = [(config, run_folder.run_dir(results_dir, config)) for config in study_runs(study)]
    states = {folder: run_state(folder, config) for config, folder in grid}
    if bad := [
        f"{folder} is {state}" for folder, state in states.items() if state in ("damaged", "stale")
    ]:
        raise TableError(
            f"nothing recorded: {'; '.join(bad)}. Delete each and run `mvl study run {study}` again"
        )
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
