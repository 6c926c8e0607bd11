"""Starting the runs that a study lacks: by Snakemake, one after another in this process, or in
several such processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mvl.core import run_folder
from mvl.core.config import ROOT, Config, ConfigError, read_yaml
from mvl.core.progress import signals
from mvl.study import gpu_slots
from mvl.study.grid import load_study, study_runs
from mvl.study.inline import GPU_LOST, Launch, _train_recorded, run_inline
from mvl.study.status import missing_runs, progress_line, study_status

PROFILES = ROOT / "workflow" / "profiles"
"Folders of Snakemake's settings for a machine or a cluster."
LAST_LINES = 8
"Lines of Snakemake's log that are shown when it fails."


def ensure_runs(
    name: str,
    runs: Sequence[Config],
    results_dir: Path,
    data_dir: Path | None = None,
    allow_drift: bool = False,
) -> list[Config]:
    """Train those of the study's runs that are not done, one after another; returns the runs that
    are still missing.

    Published records (`data/results`) are never trained into: there the holes are returned as they
    are.
    """
    missing = missing_runs(name, results_dir, runs)
    if not missing or run_folder.is_records(results_dir):
        return missing
    with gpu_slots.one_gpu():
        for place, config in enumerate(missing, 1):
            # a notebook is no terminal and shows no bar; a line for each run says that it goes on
            print(
                f"[{name}] run {place} of {len(missing)}: {run_folder.run_name(config)}",
                file=sys.stderr,
                flush=True,
            )
            if not _train_recorded(name, config, results_dir, data_dir, allow_drift):
                break
    return missing_runs(name, results_dir, runs)


def ensure_data(name: str, data_dir: Path | None = None) -> None:
    """Fetch what the study's tasks lack: data that are already there are left as they are.

    Raises:
        TaskError: a task's data are absent and cannot be fetched; names the remedy.
    """
    from mvl.datasets.download import fetch
    from mvl.datasets.task import TaskError
    from mvl.datasets.task_data import open_task

    for data in (open_task(task, data_dir) for task in load_study(name).tasks):
        try:
            _ = data.folder  # raises where it is not there
        except TaskError:
            print(f"[{name}] fetching {data.task.name}", file=sys.stderr, flush=True)
            fetch(data)


WriteNeeds = Callable[[str, Path, str, Path | None], None]
"""Writes what each run of a study asks a cluster for: study, file, device
(`mvl.bench.needs.write_needs`)."""


def run_study(
    name: str,
    results_dir: Path,
    data_dir: Path | None = None,
    launch: Launch = Launch(),
    write_needs: WriteNeeds | None = None,
) -> int:
    """Run what the study lacks; 0 when every run is done, 1 when some failed, 75 when the GPU was
    lost, 130 or 143 when interrupted.

    A failed run is recorded as failed and does not stop the others. After a lost GPU the same
    command, started anew, goes on with the rest.
    """
    missing = missing_runs(name, results_dir)
    for folder in (
        run_folder.run_dir(results_dir, config)
        for config in study_runs(name)
        if config not in missing
    ):
        for path in folder.glob("checkpoint-*.pt"):
            path.unlink(missing_ok=True)  # the run was killed right after its seal
    if not missing:
        print(f"[{name}] all {len(study_runs(name))} runs are done; nothing to do", file=sys.stderr)
        return 0
    ensure_data(name, data_dir)
    code = _start_runs(name, results_dir, data_dir, launch, write_needs)
    if code >= 128 or code == GPU_LOST:
        return code
    for row in study_status(name, results_dir)["runs"]:
        if row["state"] != "done":
            print(f"[{name}] {row['run']}: {row['state']} {row['error'] or ''}", file=sys.stderr)
    return 1 if missing_runs(name, results_dir) else 0


def _start_runs(
    name: str,
    results_dir: Path,
    data_dir: Path | None,
    launch: Launch,
    write_needs: WriteNeeds | None,
) -> int:
    """Start the runs as the word of `--engine` says; returns the engine's exit code."""
    from mvl.study import workers

    if launch.engine == "inline":
        return run_inline(name, results_dir, data_dir, launch)
    if launch.engine == "workers":
        return workers.run_workers(name, results_dir, data_dir, launch)
    return _run_snakemake(name, results_dir, data_dir, launch, write_needs)


def snakemake_command(
    name: str,
    results_dir: Path,
    data_dir: Path | None,
    launch: Launch = Launch(),
    dry: bool = False,
) -> list[str]:
    """The Snakemake call that runs a study's graph up to its runs, or only lists them.

    On this machine `jobs` runs go at a time whatever their number of threads, and no more than the
    cards have slots.
    """
    study = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
    texts = {"study": study, "results_dir": str(Path(results_dir).resolve())}
    texts |= {"data_dir": str(Path(data_dir).resolve())} if data_dir else {}
    if braces := sorted(text for text in texts.values() if set("{}") & set(text)):
        raise ConfigError(
            f"{braces[0]}: Snakemake takes braces for its wildcards; use a path without them, or"
            " `--engine inline`"
        )
    # Snakemake reads a value as YAML, to which " #" begins a comment: JSON's texts are YAML's, and
    # a blank on either side keeps their quotes, which are taken off elsewhere.
    settings = [f"{key}= {json.dumps(text)} " for key, text in texts.items()]
    settings += ["allow_drift=1"] if launch.allow_drift else []
    limits = ["--jobs", str(launch.jobs)]
    if launch.profile == "local":
        threads = max(config.train.num_threads for config in study_runs(name))
        gpus = len(gpu_slots.visible_gpus()) * launch.runs_per_gpu
        settings += [f"gpu={min(gpus, 1)}", f"runs_per_gpu={launch.runs_per_gpu}"]
        limits = [
            # Every use of a shared disk but the cache of sources, which would lie in the home
            # folder: that of a service or of a container may be read-only.
            "--shared-fs-usage",
            *("input-output", "persistence", "software-deployment", "sources"),
            "storage-local-copies",
            "--cores",
            str(launch.jobs * threads),
            "--resources",
            f"at_once={launch.jobs}",
            *([f"gpu={gpus}"] if gpus else []),
        ]
    # Never `--quiet all`, which keeps the reason of a failure out of the log too.
    shown = ["--quiet", "host", "progress", "reason", *([] if dry else ["rules"])]
    shown += ["--dry-run"] if dry else []
    return [
        sys.executable,
        "-m",
        "snakemake",
        "all_runs",
        "--snakefile",
        str(ROOT / "Snakefile"),
        *shown,
        *limits,
        "--directory",
        str(Path(results_dir).resolve() / Path(name).stem),
        "--profile",
        str(PROFILES / launch.profile),
        "--config",
        *settings,
    ]


def device_of(launch: Launch) -> str:
    """The device that a cluster's runs are planned for: the launch's own, else `device=...` in the
    profile's `config`, else cpu."""
    settings = read_yaml(PROFILES / launch.profile / "config.yaml").get("config") or []
    named_there = [
        str(line).partition("=")[2] for line in settings if str(line).startswith("device=")
    ]
    return launch.device or (named_there[0] if named_there else "cpu")


def check_profile(profile: str) -> None:
    """Nothing when the profile is there and its executor installed.

    Raises:
        ConfigError: it is not; the message says which there are, or what to install.
    """
    path = PROFILES / profile / "config.yaml"
    if not path.is_file():
        there = sorted(other.parent.name for other in path.parents[1].glob("*/config.yaml"))
        raise ConfigError(
            f"there is no profile {profile!r} in {path.parents[1]}: it is one of {', '.join(there)}"
        )
    executor = read_yaml(path).get("executor", "local")
    plugin = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and importlib.util.find_spec(plugin.replace("-", "_")) is None:
        raise ConfigError(
            f"profile {profile!r} needs {plugin}; install it as the head of {path} says"
        )


def dry_run(
    name: str,
    results_dir: Path,
    data_dir: Path | None = None,
    launch: Launch = Launch(),
    write_needs: WriteNeeds | None = None,
) -> int:
    """Print the runs that `run_study` would start and what each asks for; nothing is trained. 0
    when the graph can be read."""
    return _run_snakemake(name, results_dir, data_dir, launch, write_needs, dry=True)


def _run_snakemake(
    name: str,
    results_dir: Path,
    data_dir: Path | None,
    launch: Launch,
    write_needs: WriteNeeds | None,
    dry: bool = False,
) -> int:
    check_profile(launch.profile)
    log = Path(results_dir) / Path(name).stem / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if launch.profile != "local":
        assert write_needs is not None, "a cluster has to be told what each run asks for"
        write_needs(name, log.parent / "needs.json", device_of(launch), data_dir)
    found = (PROFILES / launch.profile, Path(sys.executable).parent, os.environ.get("PATH", ""))
    environment = {**os.environ, "PATH": os.pathsep.join(map(str, found))}
    command = snakemake_command(name, results_dir, data_dir, launch, dry)
    if dry:
        return subprocess.call(command, env=environment)
    with open(log, "ab") as out:
        engine = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        code = _watch(engine, lambda: progress_line(study_status(name, results_dir), launch.jobs))
    if code and code < 128 and missing_runs(name, results_dir):
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        print(f"[{name}] Snakemake ended with {code}; its log is {log}:\n{last}", file=sys.stderr)
    return code


def _watch(engine: subprocess.Popen[bytes], line: Callable[[], str]) -> int:
    """Wait for the engine, printing the line when it changes; SIGINT and SIGTERM go to it and its
    jobs, and are returned as 128 + signal."""
    last, sent, shown = "", 0, 0.0
    with signals() as caught:
        try:
            while engine.poll() is None:
                if len(caught) > sent:
                    os.killpg(engine.pid, caught[sent])
                    sent = len(caught)
                if time.monotonic() - shown >= 5:
                    shown, text = time.monotonic(), line()
                    if text != last:
                        print(last := text, file=sys.stderr, flush=True)
                time.sleep(0.2)
        except BaseException:
            os.killpg(engine.pid, signal.SIGTERM)  # else it would go on with nobody watching
            raise
    return 128 + caught[0] if caught else engine.returncode
