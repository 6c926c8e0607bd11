"""What state each run of a study is in, and how long the rest will take."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.core import run_folder
from mvl.core.config import Config
from mvl.core.device_faults import says_out_of_memory
from mvl.study.grid import study_runs

FAILED = ("failed", "diverged", "oom", "killed", "damaged", "stale")
"States that need a person; anything else that is not done goes on by itself."


def is_held(folder: Path) -> bool:
    """True while a live process holds the run's lock."""
    if not (folder / ".lock").is_file():
        return False
    with open(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def state_of(folder: Path, config: Config) -> str:
    """Say what state a run's folder is in: the only place that does.

    missing, running (a live process holds it), interrupted, failed, diverged, oom, killed; of a
    sealed run done, `damaged` when a file differs from its hash, and `stale` when other settings
    made it.
    """
    status = run_folder.read_status(folder)
    state = str(status["state"])
    if state == "done":
        if not run_folder.is_done(folder):
            return "damaged"
        return "stale" if run_folder.changed_settings(folder, config) else "done"
    if is_held(folder):
        return "running"
    if state == "new":
        return "missing"
    if state == "running":
        return "interrupted"
    if state == "failed" and says_out_of_memory(str(status.get("error"))):
        return "oom"  # a record of before the state had a word of its own
    return state


def run_state(config: Config, results_dir: Path) -> dict[str, Any]:
    """Return one run's line of `study_status`: its state, why, and by which process it is held."""
    folder = run_folder.run_dir(results_dir, config)
    status = run_folder.read_status(folder)
    state = state_of(folder, config)
    error = status.get("error")
    if state == "damaged":
        error = f"{folder}: a file is missing or differs from its hash in status.json"
    if state == "stale":
        changed = "; ".join(run_folder.changed_settings(folder, config)[:3])
        error = f"{folder}: finished with other settings ({changed})"
    return {
        "run": run_folder.run_name(config),
        "state": state,
        "held": (folder / ".lock").read_text() if state == "running" else None,
        "epoch": status.get("epoch"),
        "epochs": status.get("epochs"),
        "runtime_s": status.get("runtime_s"),
        "error": error,
    }


def study_status(name: str, results_dir: Path) -> dict[str, Any]:
    """What is done, running, failed and missing, and the time that one process would still need."""
    rows = [run_state(config, results_dir) for config in study_runs(name)]

    def count(*states: str) -> int:
        return sum(row["state"] in states for row in rows)

    return {
        "study": name,
        "total": len(rows),
        "done": count("done"),
        "running": count("running"),
        "failed": count(*FAILED),
        "missing": count("missing", "interrupted"),
        "remaining_s": remaining_s(rows),
        "runs": rows,
    }


def remaining_s(rows: list[dict[str, Any]]) -> float | None:
    """Seconds of computing that are left, from the runs so far; None before the first epoch of the
    first run."""
    done = [row["runtime_s"] for row in rows if row["state"] == "done" and row["runtime_s"]]
    share = [
        (row["epoch"], row["epochs"], row["runtime_s"])
        for row in rows
        if row["state"] in ("running", "interrupted") and row.get("epoch")
    ]
    whole = done + [runtime * epochs / epoch for epoch, epochs, runtime in share]
    if not whole:
        return None
    started = sum(runtime * (epochs - epoch) / epoch for epoch, epochs, runtime in share)
    untouched = sum(row["state"] in ("missing", "running", "interrupted") for row in rows) - len(
        share
    )
    return round(started + untouched * sum(whole) / len(whole), 1)


def progress_line(status: dict[str, Any], jobs: int) -> str:
    """`runs 5 of 21 | vit_baseline ... epoch 3/20 | about 4 min left`."""
    live = [
        f"{row['run'].split('/', 1)[1]} epoch {row['epoch'] or 0}/{row['epochs'] or '?'}"
        for row in status["runs"]
        if row["state"] == "running"
    ]
    left = status["remaining_s"]
    wait = "" if left is None else f" | about {max(1, round(left / jobs / 60))} min left"
    failed = f" | {status['failed']} failed" if status["failed"] else ""
    return (
        f"[{status['study']}] {status['done']} of {status['total']} runs done{failed} |"
        f" {'; '.join(live) or 'starting'}{wait}"
    )


def missing_runs(
    name: str, results_dir: Path, runs: Sequence[Config] | None = None
) -> list[Config]:
    """Runs of the study, or those among the given ones, that are not done."""
    return [
        config
        for config in (study_runs(name) if runs is None else runs)
        if state_of(run_folder.run_dir(results_dir, config), config) != "done"
    ]
