"""Runs -> tidy tables: the only reader and writer of results. A run that is not there keeps its row, empty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvl import runs
from mvl.config import ROOT, Config, ConfigError, to_dict
from mvl.datasets.tasks import MADE, find_task
from mvl.evaluate import CASE_COLUMNS, METRICS, mean, run_columns

RUN_KEYS = ["study", "task", "system", "fraction", "fold", "seed"]
HISTORY_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "val_dice"]
RUN_COLUMNS = [*RUN_KEYS, "state", "n_test", "dice", "dice_sd", "jaccard", "sensitivity", "specificity", "nsd", "hd95_mm", "dice_resized",
               "missed", "best_epoch", "trainable", "frozen", "total", "runtime_s", "runtime_per_epoch_s", "peak_memory_mb", "run",
               "weights_sha256", "cases_sha256", "history_sha256"]
NEUTRAL = ("data.cache_gb", "data.num_workers")
"Settings that change no result, so a run made with others is not stale."
TEXT = {"study": str, "task": str, "system": str, "case": str, "label": str, "status": str, "state": str, "run": str,
        "weights_sha256": str, "cases_sha256": str, "history_sha256": str}


class TableError(RuntimeError):
    """A table or a record is absent, damaged or not complete; the message names the file and the remedy."""


def study_runs(study: str) -> list[Config]:
    """The study's grid; only `mvl.studies` says what it is."""
    from mvl.studies import study_runs as grid

    return grid(study)


def run_state(folder: Path, config: Config) -> str:
    """What `status.json` says, checked: `missing` without one, `damaged` if a hash differs, `stale` if other settings made the run."""
    status = runs.read_status(folder)
    if status["state"] == "new":
        return "missing"
    if status["state"] != "done":
        return str(status["state"])
    if not runs.is_done(folder):
        return "damaged"
    return "stale" if other_settings(folder, config) else "done"


def other_settings(folder: Path, config: Config) -> list[str]:
    """`key: old -> new` for each setting of a run folder that differs from the study's and can change a result."""
    try:
        made_with = to_dict(runs.read_config(folder))
    except ConfigError as error:
        return [str(error)]
    return [line for line in runs.differences(made_with, to_dict(config)) if not line.startswith(NEUTRAL)]


def collect(study: str, results_dir: Path) -> Path:
    """Write `runs.csv` (one row per run of the grid, holes included), `cases.csv` and `history.csv` of a study; returns their folder.

    Every number is that of the run's own files, digit for digit; the same runs give the same bytes.
    """
    folder, (table, cases, history) = Path(results_dir) / Path(study).stem, gather(study, results_dir)
    runs.write_csv(folder / "cases.csv", cases, CASE_COLUMNS)
    runs.write_csv(folder / "history.csv", history, [*RUN_KEYS, *HISTORY_COLUMNS])
    runs.write_csv(folder / "runs.csv", table, RUN_COLUMNS)
    return folder


def gather(study: str, results_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `runs.csv`, `cases.csv` and `history.csv`, read from the run folders, hashes checked."""
    table: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for config in study_runs(study):
        folder = runs.run_dir(results_dir, config)
        state = run_state(folder, config)
        scores = read_rows(folder / "cases.csv", CASE_COLUMNS) if state == "done" else []
        table.append(run_row(folder, config, state, scores))
        cases += scores
        if state == "done":
            history += [run_columns(config) | row for row in read_rows(folder / "history.csv", HISTORY_COLUMNS)]
    return table, cases, history


def run_row(folder: Path, config: Config, state: str, cases: list[dict[str, str]]) -> dict[str, Any]:
    """One row of `runs.csv`; numbers only when the run is done, always the mean over every case and label."""
    row: dict[str, Any] = {**dict.fromkeys(RUN_COLUMNS, ""), **run_columns(config), "state": state,
                           "run": f"{config.study}/runs/{runs.run_name(config)}"}
    if state != "done":
        return row
    if not cases:
        raise TableError(f"{folder / 'cases.csv'}: holds no case; score the run again with `mvl evaluate {folder}`")
    status = runs.read_status(folder)
    row |= case_means(cases, folder / "cases.csv")
    row |= {key: status.get(key, "") for key in ("best_epoch", "runtime_s", "runtime_per_epoch_s", "peak_memory_mb")}
    row |= {key: status.get("parameters", {}).get(key, "") for key in ("trainable", "frozen", "total")}
    return row | {f"{name}_sha256": status["files"].get(file, "") for name, file in
                  (("weights", "weights.safetensors"), ("cases", "cases.csv"), ("history", "history.csv"))}


def case_means(cases: list[dict[str, str]], path: Path) -> dict[str, Any]:
    """n, mean of each metric, sd of Dice (n - 1; empty for one row) and number of missed masks of one run's rows."""
    numbers = {metric: [float(row[metric]) for row in cases] for metric in METRICS}
    for metric, values in numbers.items():
        if not all(map(math.isfinite, values)):
            raise TableError(f"{path}: {metric} holds a value that is not finite; score the run again with `mvl evaluate {path.parent}`")
    out: dict[str, Any] = {"n_test": len({row["case"] for row in cases}), "missed": sum(row["status"] == "missed" for row in cases)}
    return out | {metric: mean(values) for metric, values in numbers.items()} | {"dice_sd": deviation(numbers["dice"])}


def deviation(values: Sequence[float | int]) -> float | str:
    """Standard deviation with n - 1, or "" for a single value."""
    if len(values) < 2:
        return ""
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def read_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows of a CSV as text, after checking its header and that no field is missing.

    Raises:
        TableError: no such file, other columns, or a short or long row; names file and line.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file; make it with `mvl study run`, or `mvl study collect` if the runs are done")
    reader = csv.DictReader(io.StringIO(path.read_text()))
    if reader.fieldnames != columns:
        raise TableError(f"{path}: columns are {reader.fieldnames}, expected {columns}; remove the run's folder and train it again")
    rows = list(reader)
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise TableError(f"{path}: line {line} does not have {len(columns)} fields; restore the file from its record")
    return rows


def read_runs(study: str, results_dir: Path) -> pd.DataFrame:
    """`runs.csv`: one row per run of the grid; a hole has its state and empty (NaN) numbers."""
    return read_table(Path(results_dir) / Path(study).stem / "runs.csv", RUN_COLUMNS)


def read_cases(study: str, results_dir: Path) -> pd.DataFrame:
    """`cases.csv`: one row per done run, case and label; every metric is finite.

    Raises:
        TableError: a metric is empty or not finite, or a row stands twice.
    """
    path = Path(results_dir) / Path(study).stem / "cases.csv"
    table = read_table(path, CASE_COLUMNS)
    if table[["status", *METRICS]].isna().any().any():
        raise TableError(f"{path}: a metric is empty or NaN; collect it again with `mvl study collect {study}`")
    if table.duplicated([*RUN_KEYS, "case", "label"]).any():
        raise TableError(f"{path}: a case stands twice; collect it again with `mvl study collect {study}`")
    return table


def read_history(study: str, results_dir: Path) -> pd.DataFrame:
    """`history.csv`: one row per done run and epoch."""
    return read_table(Path(results_dir) / Path(study).stem / "history.csv", [*RUN_KEYS, *HISTORY_COLUMNS])


def read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A CSV as a frame; floats read back exactly, empty fields are NaN, names stay text."""
    read_rows(path, columns)
    types = {column: kind for column, kind in TEXT.items() if column in columns}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""], float_precision="round_trip")


def record(study: str, results_dir: Path, records_dir: Path) -> Path:
    """Copy the records (no weights) of every done run of a study into `records_dir/<study>` and collect there; returns that folder.

    Runs that are not done leave a hole; what was recorded of them before is kept.

    Raises:
        TableError: a run that says done has a file without its recorded hash, or other settings than the study; nothing is copied.
    """
    grid = [(config, runs.run_dir(results_dir, config)) for config in study_runs(study)]
    states = {folder: run_state(folder, config) for config, folder in grid}
    if bad := [f"{folder} is {state}" for folder, state in states.items() if state in ("damaged", "stale")]:
        raise TableError(f"nothing recorded: {'; '.join(bad)}. Delete each and run `mvl study run {study}` again")
    for config, folder in grid:
        if states[folder] == "done":
            copy_record(folder, runs.run_dir(records_dir, config))
    if (tuning := Path(results_dir) / Path(study).stem / "tuning.csv").is_file():
        runs.atomic_write(Path(records_dir) / Path(study).stem / "tuning.csv", tuning.read_bytes())
    return collect(study, records_dir)


def copy_record(folder: Path, target: Path) -> None:
    """Copy one run's record, `status.json` last, and check the copy."""
    for name in (*runs.RECORD_FILES, "status.json"):
        if not (target / name).is_file() or (target / name).read_bytes() != (folder / name).read_bytes():
            runs.atomic_write(target / name, (folder / name).read_bytes())
    if not runs.is_done(target):
        raise TableError(f"{target}: the copy does not have the hashes of {folder}; was a run being written there? Record again")


def summary(study: str, results_dir: Path) -> pd.DataFrame:
    """One row per (task, system, fraction), in the grid's order: how many runs are planned and done, then mean and sd over the done runs.

    Columns: task, system, fraction, planned, done, n_cases (rows of one run, summed), missed, then `<metric>` and `<metric>_sd` (n - 1
    over runs; NaN for fewer than two). The mean of an arm with holes is over fewer runs than planned: show `done` of `planned` beside it.
    """
    table = read_runs(study, results_dir)
    rows = []
    for (task, system, fraction), arm in table.groupby(["task", "system", "fraction"], sort=False):
        done = arm[arm["state"] == "done"]
        row = {"task": task, "system": system, "fraction": fraction, "planned": len(arm), "done": len(done),
               "n_cases": int(done["n_test"].sum()), "missed": int(done["missed"].sum())}
        for metric in METRICS:
            values = done[metric].tolist()
            row[metric] = mean(values) if values else math.nan
            row[f"{metric}_sd"] = deviation(values) if len(values) > 1 else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def holes(study: str, results_dir: Path) -> list[str]:
    """`<run>: <state>` for each run of the grid that is not done."""
    table = read_runs(study, results_dir)
    return [f"{run}: {state}" for run, state in zip(table["run"], table["state"]) if state != "done"]


PAPER_COLUMNS = ["paper", "table", "task", "system", "metric", "value", "sd", "source", "confidence"]
PAPER_NAMES = {"vit_baseline": "ViT-Baseline", "medvisionllama_v3": "MedVisionLlama"}
"Our system = the name in `data/paper_reported.csv`."
PAPER_TABLES = {1.0: ("average", "dice", "test, mean of 10 tasks"), 0.3: ("few-shot 30 %", "val_dice", "validation, from a figure"),
                0.1: ("few-shot 10 %", "val_dice", "validation, from a figure")}
"Fraction of the training cases: table and metric of the MedVisionLlama paper that come nearest, and what they are."
SCAN_METRICS, PICTURE_METRICS = {"dice": 3, "nsd": 3, "hd95_mm": 2}, {"jaccard": 3, "dice": 3, "hd95_mm": 1}
"Columns of the README's tables and their digits."
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


PICTURE_NAMES = {"llm4seg": "LLM4Seg (best)"}
"Our system on pictures = the name in `data/paper_reported.csv`."


def paper_overlaps(reported: list[dict[str, str]], system: str) -> str:
    """What the LLM4Seg paper reports nearest to this arm, IoU and F1 in percent, with what it is; a dash where it reports nothing."""
    found = {row["metric"]: row["value"] for row in reported
             if row["paper"] == "P2" and row["table"] == "average" and row["system"] == PICTURE_NAMES.get(system)}
    return f"{found['iou_percent']} % / {found['f1_percent']} % (mean of its 2-D data sets)" if len(found) == 2 else "–"


def paper_dice(reported: list[dict[str, str]], system: str, fraction: float) -> str:
    """What the MedVisionLlama paper reports nearest to this arm, with what it is; a dash where it reports nothing."""
    table, metric, words = PAPER_TABLES.get(fraction, ("", "", ""))
    for row in reported:
        if [row[k] for k in ("paper", "table", "system", "metric")] == ["P1", table, PAPER_NAMES.get(system), metric]:
            return f"{row['value']}{' ± ' + row['sd'] if row['sd'] else ''} ({words})"
    return "–"


def readme_block(records_dir: Path, paper_csv: Path, link: str = "data/results") -> str:
    """Markdown tables of every recorded study: scans, then pictures, beside the papers' numbers; generated data apart, beside no paper's number.

    Every row is an arm (task, system, fraction) with n and a link to each of its runs under `link`; a hole says so.
    """
    reported = read_rows(Path(paper_csv), PAPER_COLUMNS)
    scans: list[str] = []
    pictures: list[str] = []
    phantoms: list[str] = []
    for path in sorted(Path(records_dir).glob("*/runs.csv")):
        table, study = read_runs(path.parent.name, Path(records_dir)), path.parent.name
        for _, arm in summary(study, Path(records_dir)).iterrows():
            members = table[(table["task"] == arm["task"]) & (table["system"] == arm["system"]) & (table["fraction"] == arm["fraction"])]
            if arm["task"] in MADE:
                phantoms.append(readme_row(study, arm, members, SCAN_METRICS, [], link))
            elif find_task(arm["task"]).unit == "px":
                pictures.append(readme_row(study, arm, members, PICTURE_METRICS, [paper_overlaps(reported, arm["system"])], link))
            else:
                scans.append(readme_row(study, arm, members, SCAN_METRICS, [paper_dice(reported, arm["system"], arm["fraction"])], link))
    first, last = ["Study", "Task", "System", "Training cases"], "Runs (fold/seed)"
    head = [*first, "Dice, native grid", "NSD", "HD95, mm", "n"]
    blocks = [markdown([*head, "Paper's Dice", last], scans)] if scans else ["No run on scans is recorded yet."]
    if pictures:
        blocks.append(markdown([*first, "IoU, native grid", "F1 (Dice)", "HD95, px", "n", "Paper's IoU / F1", last], pictures))
    if phantoms:
        blocks.append("Phantoms (a smoke study that shows the pipeline works; it says nothing about scans):\n\n"
                      + markdown([*head, last], phantoms))
    return "\n\n".join(blocks)


def readme_row(study: str, arm: pd.Series, members: pd.DataFrame, metrics: dict[str, int], paper: list[str], link: str) -> str:
    """One arm as a row of the README's table: mean over runs ± sd over runs (where there are several), n and links."""
    show = lambda m, digits: "–" if math.isnan(arm[m]) else f"{arm[m]:.{digits}f}" + (
        "" if math.isnan(arm[f"{m}_sd"]) else f" ± {arm[f'{m}_sd']:.{digits}f}")
    links = [f"[{fold}/{seed}]({link}/{run})" if state == "done" else f"{fold}/{seed} {state}"
             for fold, seed, run, state in zip(members["fold"], members["seed"], members["run"], members["state"])]
    n = f"{arm['n_cases']} case scores, {arm['done']} of {arm['planned']} runs"
    cells = [study, arm["task"], f"`{arm['system']}`", f"{100 * arm['fraction']:g} %"]
    return f"| {' | '.join([*cells, *(show(m, digits) for m, digits in metrics.items()), n, *paper, ', '.join(links)])} |"


def markdown(head: list[str], rows: list[str]) -> str:
    """A markdown table from its header cells and ready rows."""
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows])


def update_readme(path: Path, records_dir: Path | None = None, paper_csv: Path | None = None) -> bool:
    """Rewrite what stands between the result markers of a README; True when it changed.

    Raises:
        TableError: the file does not hold each marker once, in order.
    """
    text = Path(path).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise TableError(f"{path}: must hold the lines {BEGIN} and {END} once each, in this order")
    block = readme_block(records_dir or runs.records_dir(), paper_csv or ROOT / "data" / "paper_reported.csv")
    new = f"{text[:text.index(BEGIN)]}{BEGIN}\n\n{block}\n\n{text[text.index(END):]}"
    if new != text:
        runs.atomic_write(Path(path), new)
    return new != text
