"""The device that runs use: how it is started, made to repeat itself, and recorded."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mvl.core import files, machine
from mvl.core.config import ROOT, Config
from mvl.training import precision

RECORD = ROOT / "data" / "determinism.json"
"Per system the operators that are not deterministic on a GPU, written by this module."

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""cuBLAS repeats its sums only with workspaces of a fixed size, which it reads from here when CUDA
starts."""


def device_of_runs() -> torch.device:
    """The device that runs train and predict on: the accelerator that torch finds, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def start_accelerator(config: Config) -> Accelerator:
    """Accelerate on what there is, with the world size checked: `accelerate launch --cpu` silently
    starts one process.

    Raises:
        RunError: fewer processes than the launcher promised, or a precision that the device does
            not have.
    """
    machine.keep_freed_memory()
    torch.set_num_threads(config.train.num_threads)
    repeat_exactly(config.system)
    AcceleratorState._reset_state()  # one process may train several runs, one after another
    # autocast is ours: see precision.py
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")
    precision.check_precision(config.train.precision, accelerator.device)
    precision.set_flags(config.train.precision)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise files.RunError(
            f"{wanted} processes were asked for, {accelerator.num_processes} take part; launch with"
            " torchrun"
        )
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    return accelerator


def repeat_exactly(system: str) -> None:
    """Make every operator give the same bits each time.

    An operator that cannot raises where the system is known to need none (`strict`), and warns
    where it is not known.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not is_strict(system, device_of_runs()))
    # It costs time, and guards only against reading memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def is_strict(system: str, device: torch.device, record: Path = RECORD) -> bool:
    """Whether every operator of a system's training has a deterministic form on the device: on a
    CPU all have."""
    if device.type != "cuda":
        return device.type == "cpu"
    return record.is_file() and read_record(record).get(system) == []


def determinism() -> str:
    """What is recorded of the mode in force: `strict`, or `warn` where a repeat may have other
    bits."""
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "strict"


def gpu_facts() -> dict[str, Any]:
    """The card and the libraries that a run's bits depend on there; empty where no CUDA GPU is
    used."""
    if device_of_runs().type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {
        "card": torch.cuda.get_device_name(),
        "capability": f"{major}.{minor}",
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def driver() -> str | None:
    """The version of the NVIDIA driver, as its own tool says it; None where that is absent."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.split()[0] if said.split() else None


def gpu_peak_mb() -> int | None:
    """The most memory that this run's tensors have taken on the GPU so far, MB; None without a CUDA
    GPU."""
    if not torch.cuda.is_available():
        return None
    try:
        return round(torch.cuda.max_memory_allocated() / 1e6)
    except RuntimeError as error:  # after some errors a GPU answers nothing more
        warnings.warn(f"the GPU's peak memory cannot be read: {error}", stacklevel=2)
        return None


def read_record(path: Path = RECORD) -> dict[str, list[str]]:
    """The record: system -> operators."""
    return dict(json.loads(path.read_text()))
