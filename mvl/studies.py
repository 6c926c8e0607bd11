"""A study is a grid of runs: which there are, and which are done."""

from __future__ import annotations

import fcntl
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl import runs
from mvl.config import Config, ConfigError, did_you_mean, load_config, named
from mvl.device_faults import says_out_of_memory

STUDY_KEYS = {"title", "tasks", "grid", "data", "model", "train", "overrides", "task_overrides", "fraction_overrides", "arms", "notebooks", "tuning"}
BLOCK_KEYS = {"name", "tasks", "systems", "fractions", "folds", "seeds"}
FAILED = ("failed", "diverged", "oom", "killed")
"States that need a person; anything else that is not done goes on by itself."


@dataclass(frozen=True)
class Study:
    """A study's YAML: title, tasks and named blocks of the grid."""

    name: str
    title: str
    tasks: tuple[str, ...]
    grid: tuple[dict[str, Any], ...]
    notebooks: tuple[str, ...]

    def block(self, name: str) -> dict[str, Any]:
        """The grid block of that name.

        Raises:
            ConfigError: there is none; lists those there are.
        """
        known = [str(block["name"]) for block in self.grid]
        if name not in known:
            raise ConfigError(f"study {self.name}: no grid block {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}")
        return self.grid[known.index(name)]


def load_study(name: str) -> Study:
    """Read `mvl/configs/studies/<name>.yaml`.

    Raises:
        ConfigError: no such study, or an unknown or missing key.
    """
    plan = named("studies", name)
    if unknown := sorted(set(plan) - STUDY_KEYS):
        raise ConfigError(f"studies/{name}.yaml: unknown key {unknown[0]!r}{did_you_mean(unknown[0], sorted(STUDY_KEYS))}")
    for block in plan.get("grid", []):
        if set(block) - BLOCK_KEYS or not {"name", "systems"} <= set(block):
            raise ConfigError(f"studies/{name}.yaml: a grid block takes {', '.join(sorted(BLOCK_KEYS))}, and needs name and systems; got {block}")
    if not plan.get("tasks") or not plan.get("grid"):
        raise ConfigError(f"studies/{name}.yaml: needs tasks and grid")
    tasks = {*plan["tasks"], *(task for block in plan["grid"] for task in block.get("tasks", ()))}
    systems = {system for block in plan["grid"] for system in block["systems"]}
    fractions = {float(fraction) for block in plan["grid"] for fraction in block.get("fractions", [1.0])}
    for key, known in (("overrides", systems), ("arms", systems), ("task_overrides", tasks), ("fraction_overrides", fractions)):
        if unknown := sorted(set(plan.get(key, {})) - known):
            hint = did_you_mean(str(unknown[0]), sorted(map(str, known)))
            raise ConfigError(f"studies/{name}.yaml: {key} names {unknown[0]!r}, which the grid has not{hint}")
    return Study(Path(name).stem, plan.get("title", name), tuple(plan["tasks"]), tuple(plan["grid"]), tuple(plan.get("notebooks", ())))


def study_runs(name: str, block: str | None = None) -> list[Config]:
    """Configs of every run of the study, or of one block, each once, in the order of the YAML."""
    study, out = load_study(name), dict[str, Config]()
    for part in study.grid if block is None else [study.block(block)]:
        axes = (part.get("tasks", study.tasks), part["systems"], part.get("fractions", [1.0]), part.get("seeds", [0]), part.get("folds", [0]))
        for task, system, fraction, seed, fold in itertools.product(*axes):
            config = load_config(name, task, system, float(fraction), fold, seed)
            out.setdefault(runs.run_name(config), config)
    return list(out.values())


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


def run_state(config: Config, results_dir: Path) -> dict[str, Any]:
    """One run's line of `study_status`: state is done, running, failed, diverged, oom, interrupted or missing; `held`: by which process."""
    folder = runs.run_dir(results_dir, config)
    status = runs.read_status(folder)
    state = status["state"]
    if state == "done":
        state = "done" if runs.is_done(folder) else "failed"
        status.setdefault("error", None if state == "done" else f"{folder}: a file is missing or differs from its hash in status.json")
    elif is_held(folder):
        state = "running"
    elif state in ("new", "running"):
        state = "missing" if state == "new" else "interrupted"
    elif state == "failed" and says_out_of_memory(str(status.get("error"))):
        state = "oom"
    held = (folder / ".lock").read_text() if state == "running" else None
    keep = ("epoch", "epochs", "runtime_s", "error")
    return {"run": runs.run_name(config), "state": state, "held": held, **{k: status.get(k) for k in keep}}


def study_status(name: str, results_dir: Path) -> dict[str, Any]:
    """What is done, running, failed and missing, and the time that one process would still need."""
    rows = [run_state(config, results_dir) for config in study_runs(name)]
    count = lambda *states: sum(row["state"] in states for row in rows)
    return {
        "study": name, "total": len(rows), "done": count("done"), "running": count("running"), "failed": count(*FAILED),
        "missing": count("missing", "interrupted"), "remaining_s": remaining_s(rows), "runs": rows}


def remaining_s(rows: list[dict[str, Any]]) -> float | None:
    """Seconds of computing that are left, from the runs so far; None before the first epoch of the first run."""
    done = [row["runtime_s"] for row in rows if row["state"] == "done" and row["runtime_s"]]
    share = [(row["epoch"], row["epochs"], row["runtime_s"]) for row in rows if row["state"] in ("running", "interrupted") and row.get("epoch")]
    whole = done + [runtime * epochs / epoch for epoch, epochs, runtime in share]
    if not whole:
        return None
    started = sum(runtime * (epochs - epoch) / epoch for epoch, epochs, runtime in share)
    untouched = sum(row["state"] in ("missing", "running", "interrupted") for row in rows) - len(share)
    return round(started + untouched * sum(whole) / len(whole), 1)


def progress_line(status: dict[str, Any], jobs: int) -> str:
    """`runs 5 of 21 | vit_baseline ... epoch 3/20 | about 4 min left`."""
    live = [f"{row['run'].split('/', 1)[1]} epoch {row['epoch'] or 0}/{row['epochs'] or '?'}" for row in status["runs"] if row["state"] == "running"]
    left = status["remaining_s"]
    wait = "" if left is None else f" | about {max(1, round(left / jobs / 60))} min left"
    failed = f" | {status['failed']} failed" if status["failed"] else ""
    return f"[{status['study']}] {status['done']} of {status['total']} runs done{failed} | {'; '.join(live) or 'starting'}{wait}"


def missing_runs(name: str, results_dir: Path, block: str | None = None) -> list[Config]:
    """Runs of the study, or of one block, that are not done."""
    return [config for config in study_runs(name, block) if not runs.is_done(runs.run_dir(results_dir, config))]
