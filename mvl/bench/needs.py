"""What each run of a study asks a cluster for, by the plan of its device."""

from __future__ import annotations

import math
from pathlib import Path

from mvl.bench import plan
from mvl.bench.gpus import Device
from mvl.core import files, run_folder
from mvl.core.config import Config
from mvl.study import grid

CUDA_HOST_MB = 2500
"Assumed for CUDA's libraries in the process that uses a card."


def write_needs(study: str, path: Path, device: str = "cpu", data_dir: Path | None = None) -> None:
    """What each run asks a cluster for, read by the Snakefile: memory with a quarter and the
    scheduler's processes on top, three times the minutes, and a card where the device is one.

    At least an hour and at most a day: a run that is stopped by its limit is sent again and goes on
    from its checkpoint.

    Raises:
        ConfigError: no such study or device.
    """
    on = plan.find_device(device)
    runs = grid.study_runs(study)
    needs = {run_folder.run_name(config): need_of(config, on, data_dir) for config in runs}
    files.write_json(path, needs)


def need_of(config: Config, on: Device, data_dir: Path | None = None) -> dict[str, int]:
    """Memory of the process (mem_mb), minutes and cards (gpu) that one run asks for."""
    host = (
        plan.memory_mb(config, on, data_dir)
        if on.name == "cpu"
        else plan.BASE_MB + CUDA_HOST_MB + plan.LAYER_MB + plan.host_mb(config, data_dir)
    )
    minutes = min(1440, max(60, plan.seconds(config, on, data_dir) / 20))
    return {
        "mem_mb": math.ceil(1.25 * host + 700),
        "minutes": math.ceil(minutes),
        "gpu": int(on.name != "cpu"),
    }
