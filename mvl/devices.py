"""The device that runs use, and its start."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mvl import precision, runs
from mvl.config import Config


def device_of_runs() -> torch.device:
    """The device that runs train and predict on: the accelerator that torch finds, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def start_accelerator(config: Config) -> Accelerator:
    """Accelerate on what there is, with the world size checked: `accelerate launch --cpu` silently starts one process.

    Raises:
        RunError: fewer processes than the launcher promised, or a precision that the device does not have.
    """
    runs.keep_freed_memory()
    torch.set_num_threads(config.train.num_threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, guards only against reading memory never written
    AcceleratorState._reset_state()  # one process may train several runs, one after another
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="no")  # autocast is ours: see precision.py
    precision.check_precision(config.train.precision, accelerator.device)
    precision.set_flags(config.train.precision)
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise runs.RunError(f"{wanted} processes were asked for, {accelerator.num_processes} take part; launch with torchrun")
    return accelerator
