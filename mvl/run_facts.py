"""What `status.json` says of a run: on its way, and at its end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mvl import devices, precision, runs
from mvl.datasets.own import task_facts
from mvl.datasets.splits import Split
from mvl.models import frozen_sha256, parameter_counts
from mvl.progress import largest_loss_rise

if TYPE_CHECKING:
    from mvl.train import Trainer


def write_state(trainer: Trainer, state: str) -> None:
    """`status.json` of a run on its way: who, how far, how fast."""
    p, config = trainer.progress, trainer.config
    if trainer.accelerator.is_main_process:
        runs.write_json(trainer.folder / "status.json", {
            "state": state, "pid": os.getpid(), "updated": runs.now(), "epoch": p.epoch, "epochs": config.train.train_epochs,
            "runtime_s": round(p.runtime_s, 1), "best_dice": p.best_dice})


def facts(trainer: Trainer, split: Split) -> dict[str, Any]:
    """What `status.json` says of a finished run beside its files."""
    p = trainer.progress
    rise, risen = largest_loss_rise(p.history)
    return {
        "runtime_s": round(p.runtime_s, 1), "runtime_per_epoch_s": round(p.runtime_s / trainer.config.train.train_epochs, 3),
        "cpu_s": round(p.cpu_s, 1), "numbers": precision.facts_of(trainer.config.train.precision), "skipped_steps": p.skipped,
        "largest_loss_rise": rise, "largest_loss_rise_epoch": risen,
        "deterministic": devices.determinism(), "peak_memory_mb": round(runs.peak_memory_mb()), "gpu_peak_memory_mb": devices.gpu_peak_mb(),
        "best_epoch": p.best_epoch, "best_dice": p.best_dice,
        "frozen_sha256_before": p.frozen_sha256, "frozen_sha256_after": frozen_sha256(trainer.network),
        "parameters": parameter_counts(trainer.network), "split_sha256": split.sha256,
        "task": task_facts(trainer.train.task), "n": {"train": len(split.train), "val": len(split.val), "test": len(split.test)}}
