"""A study is a grid of runs: which there are, which are done, and running the rest (Snakemake, or one after another)."""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl import runs
from mvl.config import ROOT, Config, ConfigError, did_you_mean, load_config, named, read_yaml

WAIT_S = 5.0
"Seconds between two looks at runs that other processes hold."
STUDY_KEYS = {"title", "tasks", "grid", "data", "model", "train", "overrides", "task_overrides", "fraction_overrides", "arms", "notebooks", "tuning"}
BLOCK_KEYS = {"name", "tasks", "systems", "fractions", "folds", "seeds"}
FAILED = ("failed", "diverged", "oom", "killed")
"States that need a person; anything else that is not done goes on by itself."
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory")
"What the error of a run says that ran out of memory: Python's and PyTorch's words, on a GPU and on a CPU."


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
    elif state == "failed" and any(words in str(status.get("error")) for words in OUT_OF_MEMORY):
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


def ensure_runs(name: str, block: str, results_dir: Path, data_dir: Path | None = None) -> list[Config]:
    """Train what the block lacks, one run after another; returns the runs that are still missing.

    Published records (`data/results`) are never trained into: there the holes are returned as they are.
    """
    if Path(results_dir).resolve() != runs.records_dir().resolve():
        for config in missing_runs(name, results_dir, block):
            _train_recorded(config, results_dir, data_dir)
    return missing_runs(name, results_dir, block)


def ensure_data(name: str, data_dir: Path | None = None) -> None:
    """Fetch what the study's tasks lack: data that are already there are left as they are.

    Raises:
        TaskError: a task's data are absent and cannot be fetched; names the remedy.
    """
    from mvl.datasets import download, tasks

    for task in (tasks.find_task(task, data_dir) for task in load_study(name).tasks):
        try:
            tasks.task_dir(task, data_dir)
        except tasks.TaskError:
            print(f"[{name}] fetching {task.name}", file=sys.stderr, flush=True)
            download.fetch(task, data_dir)


def run_study(name: str, results_dir: Path, data_dir: Path | None = None, jobs: int = 2, engine: str = "snakemake", profile: str = "local") -> int:
    """Run what the study lacks; 0 when every run is done, 1 when some failed, 130 or 143 when interrupted.

    A failed run is recorded as failed and does not stop the others.
    """
    missing = missing_runs(name, results_dir)
    for folder in (runs.run_dir(results_dir, config) for config in study_runs(name) if config not in missing):
        for path in folder.glob("checkpoint-*.pt"):
            path.unlink(missing_ok=True)  # the run was killed right after its seal
    if not missing:
        print(f"[{name}] all {len(study_runs(name))} runs are done; nothing to do", file=sys.stderr)
        return 0
    ensure_data(name, data_dir)
    code = _run_inline(name, results_dir, data_dir) if engine == "inline" else _run_snakemake(name, results_dir, data_dir, jobs, profile)
    if code >= 128:
        return code
    for row in study_status(name, results_dir)["runs"]:
        if row["state"] != "done":
            print(f"[{name}] {row['run']}: {row['state']} {row['error'] or ''}", file=sys.stderr)
    return 1 if missing_runs(name, results_dir) else 0


def _train_recorded(config: Config, results_dir: Path, data_dir: Path | None) -> None:
    from mvl.train import train_run

    try:
        train_run(config, results_dir, data_dir)
    except Exception as error:
        if not is_held(runs.run_dir(results_dir, config)):  # else another machine took it meanwhile
            print(f"{runs.run_name(config)} failed: {error}", file=sys.stderr)


def _run_inline(name: str, results_dir: Path, data_dir: Path | None) -> int:
    """One run after another, each tried once. Machines that share the folder may do so together: each takes what no other holds, then waits."""
    tried: set[str] = set()
    while todo := [config for config in missing_runs(name, results_dir) if runs.run_name(config) not in tried]:
        free = [config for config in todo if not is_held(runs.run_dir(results_dir, config))]
        print(progress_line(study_status(name, results_dir), 1), file=sys.stderr, flush=True)
        if not free:
            time.sleep(WAIT_S)
            continue
        _train_recorded(free[0], results_dir, data_dir)
        if not is_held(runs.run_dir(results_dir, free[0])):
            tried.add(runs.run_name(free[0]))
    return 0


def snakemake_command(name: str, results_dir: Path, data_dir: Path | None, jobs: int, profile: str, dry: bool = False) -> list[str]:
    """The Snakemake call that runs a study's graph up to its runs, or only lists them."""
    study = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
    settings = [f"study={study}", f"results_dir={Path(results_dir).resolve()}"]
    many = "--cores" if profile == "local" else "--jobs"
    settings += [f"data_dir={Path(data_dir).resolve()}"] if data_dir else []
    shown = ("--dry-run", "--quiet", "progress", "reason", "host") if dry else ("--quiet", "all")
    return [sys.executable, "-m", "snakemake", "all_runs", "--snakefile", str(ROOT / "Snakefile"), *shown, many, str(jobs),
            "--directory", str(Path(results_dir).resolve() / Path(name).stem), "--profile", str(ROOT / "workflow" / "profiles" / profile),
            "--config", *settings]


def check_profile(profile: str) -> None:
    """Nothing when the profile is there and its executor installed.

    Raises:
        ConfigError: it is not; the message says which there are, or what to install.
    """
    path = ROOT / "workflow" / "profiles" / profile / "config.yaml"
    if not path.is_file():
        there = sorted(other.parent.name for other in path.parents[1].glob("*/config.yaml"))
        raise ConfigError(f"there is no profile {profile!r} in {path.parents[1]}: it is one of {', '.join(there)}")
    executor = read_yaml(path).get("executor", "local")
    plugin = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and importlib.util.find_spec(plugin.replace("-", "_")) is None:
        raise ConfigError(f"profile {profile!r} needs {plugin}; install it as the head of {path} says")


def dry_run(name: str, results_dir: Path, data_dir: Path | None = None, jobs: int = 2, profile: str = "local") -> int:
    """Print the runs that `run_study` would start and what each asks for; nothing is trained. 0 when the graph can be read."""
    return _run_snakemake(name, results_dir, data_dir, jobs, profile, dry=True)


def _run_snakemake(name: str, results_dir: Path, data_dir: Path | None, jobs: int, profile: str, dry: bool = False) -> int:
    check_profile(profile)
    log = Path(results_dir) / Path(name).stem / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if profile != "local":
        from mvl.plan import write_needs

        write_needs(name, log.parent / "needs.json")
    found = (ROOT / "workflow" / "profiles" / profile, Path(sys.executable).parent, os.environ.get("PATH", ""))
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, found))}
    command = snakemake_command(name, results_dir, data_dir, jobs, profile, dry)
    if dry:
        return subprocess.call(command, env=environment)
    with open(log, "ab") as out:
        engine = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
        code = _watch(engine, lambda: progress_line(study_status(name, results_dir), jobs))
    if code and code < 128 and missing_runs(name, results_dir):
        print(f"[{name}] Snakemake ended with {code}; its log is {log}", file=sys.stderr)
    return code


def _watch(engine: subprocess.Popen[bytes], line: Callable[[], str]) -> int:
    """Wait for the engine, printing the line when it changes; SIGINT and SIGTERM go to it and its jobs, and are returned as 128 + signal."""
    caught: list[int] = []
    old = {s: signal.signal(s, lambda number, frame: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    last, sent, shown = "", 0, 0.0
    while engine.poll() is None:
        if len(caught) > sent:
            os.killpg(engine.pid, caught[sent])
            sent = len(caught)
        if time.monotonic() - shown >= 5:
            shown, text = time.monotonic(), line()
            if text != last:
                print(last := text, file=sys.stderr, flush=True)
        time.sleep(0.2)
    for number, handler in old.items():
        signal.signal(number, handler)
    return 128 + caught[0] if caught else engine.returncode
