"""What a run has on its way: network, optimiser, cases and progress, kept whole in checkpoints.

The training loop (`loop.py`) builds on it; nothing here decides how a step is made.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvl.core import files
from mvl.core.config import Config
from mvl.core.progress import Interrupted, Progress
from mvl.datasets.device_store import DeviceStore, Feed, fits
from mvl.datasets.loaders import CaseStore, steps_per_epoch
from mvl.datasets.task import Task
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.training import checkpoints, precision
from mvl.training.devices import start_accelerator
from mvl.training.failures import Diverged
from mvl.training.objective import build_loss, build_optimizer, num_classes
from mvl.training.readings import Reading, values_of
from mvl.training.trained import load_own_state

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
        task: Task,
        train: CaseStore,
        val: CaseStore,
        folder: Path,
        command: str,
    ) -> None:
        self.config = config
        self.train = train
        self.val = val
        self.folder = folder
        self.command = command
        self.accelerator = start_accelerator(config)
        self.device = self.accelerator.device
        classes = num_classes(config, task)
        self.network = build_system(config, len(task.channels), classes).to(self.device)
        self.loss = build_loss(classes, config.train.loss)
        self.progress = Progress(frozen_sha256=frozen_sha256(self.network))
        self.best: dict[str, Tensor] = {}
        self.unread: list[Reading] = []
        self.optimizer = build_optimizer(config, self.network)
        self.scaler = precision.gradient_scaler(config.train.precision, self.device)
        self.feed = Feed(
            train, self.device, self.accelerator.process_index, self.accelerator.num_processes
        )
        self.watched: DeviceStore | None = None
        self.model = self.accelerator.prepare(self.network)
        if config.train.compile:
            self.model = torch.compile(self.model)
        self.steps = steps_per_epoch(len(train), config.train.batch_size)

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
        p = self.progress
        unread = self.unread
        self.unread = []
        for reading, (loss, norm) in zip(unread, values_of(unread)):
            finite = math.isfinite(loss) and math.isfinite(norm)
            p.skipped_in_a_row = 0 if finite else p.skipped_in_a_row + 1
            if not finite and (
                self.config.train.precision != "fp16" or p.skipped_in_a_row >= precision.MAX_SKIPS
            ):
                raise Diverged(
                    f"{self.folder}: loss {loss}, gradient norm {norm} at {reading.place()}; "
                    "lower train.lr or check these cases with `mvl verify`"
                )
            p.skipped += not finite
            if math.isfinite(loss):
                p.losses.append(loss)
        if p.skipped_in_a_row and self.scaler.get_scale() < precision.LEAST_SCALE:
            raise Diverged(
                f"{self.folder}: gradients overflow fp16 even unscaled, at {unread[-1].place()};"
                " lower train.lr, or set train.precision to bf16 or fp32"
            )

    def watched_cases(self, indices: range) -> tuple[Tensor, Tensor]:
        """Images and labels of some validation cases, on the device; on a GPU they stay there,
        where they fit."""
        if self.watched is None and self.device.type == "cuda" and fits(self.val, self.device):
            self.watched = DeviceStore(self.val, self.device)
        if self.watched is not None:
            return self.watched.take(torch.tensor(indices, device=self.device))
        pairs = [self.val.get(index) for index in indices]
        images = torch.stack([image for image, _ in pairs])
        labels = torch.stack([label for _, label in pairs])
        return images.to(self.device), labels.to(self.device)

    def validated(self) -> nn.Module:
        """The network to validate with: it has the first process's BatchNorm statistics, which are
        those that the run keeps.

        Among several processes it is the bare one: a wrapped one exchanges buffers before each
        forward pass, and a process with one case more than the others would wait for ever.
        """
        if self.accelerator.num_processes == 1:
            return self.model
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, 0)
        return self.network

    def save(self) -> None:
        """Checkpoint, from the first process.

        Raises:
            Diverged: a step since the last look was not finite; the checkpoint before stays.
        """
        self.read_losses()
        if self.accelerator.is_main_process:
            state = {
                "model": own_state(self.network),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
                "progress": vars(self.progress),
                "scaler": self.scaler.state_dict(),
            }
            checkpoints.save(
                self.folder, self.progress.epoch * self.steps + self.progress.step, state
            )

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
        self.best, self.progress = state["best"], Progress(**state["progress"])
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
