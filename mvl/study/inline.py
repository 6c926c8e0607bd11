"""Runs trained one after another in this process, each tried once."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mvl.core import run_folder
from mvl.core.config import Config
from mvl.study import gpu_slots
from mvl.study.status import FAILED, is_held, missing_runs, progress_line, study_status

WAIT_S = 5.0
"Seconds between two looks at runs that other processes hold."
GPU_LOST = 75
"Exit code of a process whose GPU no longer answers; a new one goes on with the study."


@dataclass(frozen=True)
class Launch:
    """How the runs of a study are started."""

    jobs: int = 2
    "Runs at a time."
    engine: str = "snakemake"
    """snakemake; inline: one after another in this process; workers: so in each of `jobs`
    processes, without Snakemake."""
    profile: str = "local"
    "Folder of workflow/profiles."
    runs_per_gpu: int = 1
    "Runs that share a card of this machine."
    device: str = ""
    """What runs on a cluster are planned for and ask for (see `mvl plan`); empty: what the
    profile's `config` says, else cpu."""
    allow_drift: bool = False
    "Let runs go on that another machine or other packages began; they are marked."


def _train_recorded(
    name: str,
    config: Config,
    results_dir: Path,
    data_dir: Path | None,
    allow_drift: bool = False,
) -> bool:
    """Train one run of the study `name`, whose failure is said and not raised; False when the GPU
    answers this process no more, so that it must end."""
    from mvl.training.failures import DeviceLost
    from mvl.training.run import train_run

    lost = False
    try:
        train_run(config, results_dir, data_dir, allow_drift=allow_drift, study=name)
    except Exception as error:
        lost = isinstance(error, DeviceLost)
        # else another machine took it meanwhile
        if not is_held(run_folder.run_dir(results_dir, config)):
            print(f"{run_folder.run_name(config)} failed: {error}", file=sys.stderr)
    if lost or gpu_slots.gpu_is_lost():
        print(
            "the GPU of this process no longer answers; the same command goes on with the rest",
            file=sys.stderr,
        )
        return False
    return True


def run_inline(
    name: str,
    results_dir: Path,
    data_dir: Path | None = None,
    launch: Launch = Launch(),
    since: str = "",
) -> int:
    """Run one after another, on the first free card, each tried once.

    Machines that share the folder, or several such processes, may do so together: each takes what
    no other holds, then waits. What failed at `since` (ISO time) or later counts as tried. Returns
    0, or `GPU_LOST` when the card no longer answers.
    """
    tried = {
        run_folder.run_name(config)
        for config in missing_runs(name, results_dir)
        if since and _failed_since(config, results_dir, since)
    }
    with gpu_slots.one_gpu(launch.runs_per_gpu):
        while todo := [
            config
            for config in missing_runs(name, results_dir)
            if run_folder.run_name(config) not in tried
        ]:
            free = [
                config for config in todo if not is_held(run_folder.run_dir(results_dir, config))
            ]
            print(progress_line(study_status(name, results_dir), 1), file=sys.stderr, flush=True)
            if not free:
                time.sleep(WAIT_S)
                continue
            # in another of the processes that work together
            if since and _failed_since(free[0], results_dir, since):
                tried.add(run_folder.run_name(free[0]))
                continue
            if not _train_recorded(name, free[0], results_dir, data_dir, launch.allow_drift):
                return GPU_LOST
            if not is_held(run_folder.run_dir(results_dir, free[0])):
                tried.add(run_folder.run_name(free[0]))
    return 0


def _failed_since(config: Config, results_dir: Path, since: str) -> bool:
    status = run_folder.read_status(run_folder.run_dir(results_dir, config))
    return status["state"] in FAILED and str(status.get("updated", "")) >= since
