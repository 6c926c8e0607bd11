"""What a run has on its way: network, optimiser, cases and progress, kept whole in checkpoints.

The training loop (`loop.py`) works on it; nothing here decides how a step is made.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvl.core import files
from mvl.core.config import Config
from mvl.core.progress import Interrupted, Progress
from mvl.datasets.case_store import CaseStore
from mvl.datasets.device_store import Feed
from mvl.datasets.loaders import steps_per_epoch
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.training import checkpoints, precision
from mvl.training.devices import start_accelerator
from mvl.training.objective import (
    build_loss,
    build_optimizer,
    num_classes,
)
from mvl.training.readings import Reading, take_over
from mvl.training.trained import load_own_state
from mvl.training.validation import Validation

READ_EVERY = 50
"""Steps on a GPU between two looks at their losses: each look waits until the device has come so
far."""


class TrainingState:
    """The parts of a run that the loop works on, and how they are kept and brought back.

    A checkpoint holds all of it, so that a run that was killed ends with the same bits.
    """

    def __init__(
        self,
        config: Config,
        train_cases: CaseStore,
        watched_cases: CaseStore,
        folder: Path,
        command: str,
    ) -> None:
        self.config = config
        self.train_cases = train_cases
        self.watched_cases = watched_cases
        self.folder = folder
        self.command = command
        self.accelerator = start_accelerator(config)
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes

        task = train_cases.task
        classes = num_classes(config, task)
        self.network = build_system(config, len(task.channels), classes).to(self.device)
        self.loss = build_loss(classes, config.train.loss)
        self.optimizer = build_optimizer(config, self.network)
        self.scaler = precision.gradient_scaler(config.train.precision, self.device)
        self.feed = Feed(train_cases, self.device, self.rank, self.world_size)
        self.validation = Validation(watched_cases, config, self.loss, self.accelerator)
        self.steps_per_epoch = steps_per_epoch(len(train_cases), config.train.batch_size)

        self.progress = Progress(frozen_sha256=frozen_sha256(self.network))
        self.start_clocks()
        self.best_weights: dict[str, Tensor] = {}
        self.unread: list[Reading] = []

        # `model` is `network` as a step calls it: wrapped for several processes, or compiled.
        self.model = self.accelerator.prepare(self.network)
        if config.train.compile:
            self.model = torch.compile(self.model)

    def note(self, batch: dict[str, Any], losses: list[Tensor], norm: Tensor) -> None:
        """Keep a step's numbers until they are read: at once on a CPU, now and then on a GPU."""
        self.unread.append(
            Reading(self.progress.epoch, self.progress.step, tuple(batch["cases"]), losses, norm)
        )
        if self.device.type == "cpu" or len(self.unread) >= READ_EVERY:
            self.read_losses()

    def read_losses(self) -> None:
        """Take over the losses of the steps since the last look; every checkpoint and every epoch's
        end looks first.

        Raises:
            Diverged: one of them, or its gradient norm, is not finite, or fp16 overflowed too often
                in a row.
        """
        unread = self.unread
        self.unread = []  # first, so that no reading is taken over twice
        take_over(unread, self.progress, self.config.train.precision, self.scaler, self.folder)

    def save(self) -> None:
        """Checkpoint, from the first process.

        Raises:
            Diverged: a step since the last look was not finite; the checkpoint before stays.
        """
        self.read_losses()
        self.tick()
        if self.accelerator.is_main_process:
            state = {
                "model": own_state(self.network),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best_weights,
                "progress": vars(self.progress),
                "scaler": self.scaler.state_dict(),
            }
            steps_done = self.progress.epoch * self.steps_per_epoch + self.progress.step
            checkpoints.save(self.folder, steps_done, state)

    def start_clocks(self) -> None:
        """Let the run's two clocks go on from what they showed when it was stopped."""
        self.wall = self.progress.runtime_s - time.monotonic()
        self.cpu = self.progress.cpu_s - time.process_time()

    def tick(self) -> None:
        """Note how long the run has taken."""
        self.progress.runtime_s = self.wall + time.monotonic()
        self.progress.cpu_s = self.cpu + time.process_time()

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; False when there is none.

        Raises:
            RunError: the checkpoint's frozen weights are not this network's.
        """
        state = checkpoints.load(self.folder)
        if state is None:
            return False
        if state["progress"]["frozen_sha256"] != self.progress.frozen_sha256:
            raise files.RunError(
                f"{self.folder}: its checkpoint was made with other frozen weights; restore the"
                " source, or delete the folder"
            )
        load_own_state(self.network, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # read from the checkpoint onto the CPU
                group["lr"] = group["lr"].to(self.device)
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.best_weights = state["best"]
        self.progress = Progress(**state["progress"])
        return True

    def stop(self, signum: int) -> None:
        """Checkpoint, then leave with 128 + signal."""
        self.save()
        write_state(self, "interrupted")
        raise Interrupted(signum, self.command)


def write_state(trainer: TrainingState, state: str) -> None:
    """`status.json` of a run on its way: who, how far, how fast."""
    p = trainer.progress
    if trainer.accelerator.is_main_process:
        files.write_json(
            trainer.folder / "status.json",
            {
                "state": state,
                "pid": os.getpid(),
                "updated": files.now(),
                "epoch": p.epoch,
                "epochs": trainer.config.train.train_epochs,
                "runtime_s": round(p.runtime_s, 1),
                "best_dice": p.best_dice,
            },
        )
