"""Train one run: one visible loop, bitwise resumable, on a CPU, one GPU or several under torchrun
(Accelerate)."""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from mvl.core import files, seeds
from mvl.core.config import Config
from mvl.core.progress import Interrupted, Progress, signals
from mvl.datasets.device_store import DeviceStore, Feed, fits
from mvl.datasets.loaders import CaseStore, steps_per_epoch
from mvl.datasets.task import Task
from mvl.models.build import build_system, frozen_sha256, own_state
from mvl.training import checkpoints, failures, precision, step_graph, tensorboard
from mvl.training.devices import start_accelerator
from mvl.training.failures import Diverged
from mvl.training.objective import (
    build_loss,
    build_optimizer,
    foreground_dice,
    is_better,
    learning_rate,
    num_classes,
    set_rate,
)
from mvl.training.readings import Reading, values_of
from mvl.training.trained import Predictor, load_own_state

READ_EVERY = 50
"""Steps on a GPU between two looks at their losses: each look waits until the device has come so
far."""


class Trainer:
    """The parts of a run that the loop needs: network, optimiser, loss, cases, and where it is."""

    def __init__(
        self,
        config: Config,
        task: Task,
        train: CaseStore,
        val: CaseStore,
        folder: Path,
        command: str,
    ) -> None:
        self.config, self.train, self.val, self.folder, self.command = (
            config,
            train,
            val,
            folder,
            command,
        )
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
        self.graph: step_graph.StepGraph | None = None
        if config.train.cuda_graph:
            self.graph = step_graph.graph_of(
                self.whole_step, config, self.device, self.accelerator.num_processes
            )

    def update(self, batch: dict[str, Any], weight: float = 1.0) -> None:
        """One optimiser step on this process's share of a batch, whose gradient counts `weight`
        times.

        On a CPU its loss is read at once; on a GPU nothing here waits for the device, see
        `read_losses`.

        Raises:
            Diverged: loss or gradient norm is not finite; names step and cases.
        """
        image, label = (batch[key].to(self.device, non_blocking=True) for key in ("image", "label"))
        if not batch["cases"]:  # a short last batch left this process none: take part with weight 0
            image, label = (
                image.new_zeros(1, *image.shape[1:]),
                label.new_zeros(1, *label.shape[1:]),
            )
        if self.graph is not None:
            loss, norm = self.graph(image, label)
            self.note(batch, [loss], norm)
            return
        losses, norm = self.gradient(image, label, weight)
        self.note(batch, losses, norm)
        self.scaler.step(self.optimizer)  # in fp16 it leaves out a step whose gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(
        self, image: Tensor, label: Tensor, weight: float = 1.0
    ) -> tuple[list[Tensor], Tensor]:
        """Give each parameter its clipped gradient; returns the loss of each part of the batch, and
        the norm before clipping."""
        micro = max(1, math.ceil(len(image) / self.config.train.accumulate))
        parts, losses = list(zip(image.split(micro), label.split(micro), strict=True)), []
        for number, (x, y) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with precision.autocast(self.config.train.precision, self.device):
                    logits = self.model(x)
                # in float32, whatever the network computes in
                loss = self.loss(logits.float(), y.float()) * (len(x) / len(image))
                self.scaler.scale(loss * weight).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        return losses, self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.train.grad_clip or math.inf
        )

    def whole_step(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """A step that never looks at the device, so that it can be recorded; returns loss and
        gradient norm.

        Gradients are let go before it, not after: a recorded backward pass then writes them anew in
        place of adding to the last ones.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, norm = self.gradient(image, label)
        self.optimizer.step()
        return losses[0], norm

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
        p, unread, self.unread = self.progress, self.unread, []
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

    def train_epoch(self, caught: list[int], bar: Any) -> None:
        """The steps of the current epoch that are not done yet."""
        p, config, rank, world = (
            self.progress,
            self.config,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        self.model.train()
        with failures.cases_named(config, self.train.case_ids, p):
            for batch in self.feed.epoch(config, p.epoch, p.step):
                done = p.epoch * self.steps + p.step
                torch.manual_seed(seeds.draw_seed(config.seed, "dropout", done, rank))
                set_rate(
                    self.optimizer,
                    learning_rate(config, done, config.train.train_epochs * self.steps),
                )
                cases = min(
                    config.train.batch_size, len(self.train) - p.step * config.train.batch_size
                )
                self.update(batch, len(batch["cases"]) * world / cases)
                p.step += 1
                bar.update()
                if caught:
                    self.stop(caught[0])

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and mean foreground Dice of the validation cases, on the resized grid, spread
        over the processes."""
        self.model.eval()
        predictor, rows = Predictor(self.validated(), self.config, self.device), []
        mine = range(self.accelerator.process_index, len(self.val), self.accelerator.num_processes)
        for start in range(0, len(mine), step := predictor.cases_at_once()):
            indices = mine[start : start + step]
            image, label = self.watched_cases(indices)
            logits = predictor(image)
            losses = [
                self.loss(logits[k : k + 1], label[k : k + 1].float()) for k in range(len(indices))
            ]
            rows.append((indices, torch.stack(losses), foreground_dice(logits, label)))
        read = [
            row
            for indices, losses, dices in rows
            for row in zip(indices, losses.tolist(), dices.tolist(), strict=True)
        ]
        read = sorted(gather_object(read))
        return sum(r[1] for r in read) / len(read), sum(r[2] for r in read) / len(read)

    def watched_cases(self, indices: range) -> tuple[Tensor, Tensor]:
        """Images and labels of some validation cases, on the device; on a GPU they stay there,
        where they fit."""
        if self.watched is None and self.device.type == "cuda" and fits(self.val, self.device):
            self.watched = DeviceStore(self.val, self.device)
        if self.watched is not None:
            return self.watched.take(torch.tensor(indices, device=self.device))
        pairs = [self.val.get(index) for index in indices]
        return torch.stack([image for image, _ in pairs]).to(self.device), torch.stack(
            [label for _, label in pairs]
        ).to(self.device)

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

    def close_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, and add the epoch's row."""
        self.read_losses()
        p, train = self.progress, self.config.train
        if not p.losses:
            raise Diverged(
                f"{self.folder}: every step of epoch {p.epoch} overflowed fp16; lower train.lr, or"
                " set train.precision to bf16 or fp32"
            )
        row = {
            "epoch": p.epoch,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "train_loss": sum(p.losses) / len(p.losses),
        }
        if (p.epoch + 1) % train.val_interval == 0 or p.epoch + 1 == train.train_epochs:
            row["val_loss"], row["val_dice"] = self.validate()
            if not (math.isfinite(row["val_loss"]) and math.isfinite(row["val_dice"])):
                raise Diverged(
                    f"{self.folder}: validation loss {row['val_loss']}, Dice {row['val_dice']}"
                    f" after epoch {p.epoch}; lower train.lr"
                )
            if is_better(row, p.history, train.select):
                p.best_dice, p.best_epoch = row["val_dice"], p.epoch
                self.best = {n: t.detach().clone() for n, t in own_state(self.network).items()}
        p.history.append(row)
        p.epoch, p.step, p.losses = p.epoch + 1, 0, []

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


def fit(trainer: Trainer, progress: bool = True) -> None:
    """Train to the last epoch: from the start, or from where the run's newest checkpoint is."""
    from tqdm import tqdm

    trainer.restore()
    p, epochs = trainer.progress, trainer.config.train.train_epochs
    wall, cpu = p.runtime_s - time.monotonic(), p.cpu_s - time.process_time()
    quiet, saved = None if progress else True, time.monotonic()
    board = tensorboard.opened(
        trainer.folder, p.epoch * trainer.steps, trainer.accelerator.is_main_process
    )
    bars = tqdm(
        total=epochs * trainer.steps,
        initial=p.epoch * trainer.steps + p.step,
        disable=quiet,
        unit="step",
    )
    with signals() as caught, bars as bar, board as tell:
        while p.epoch < epochs:
            trainer.train_epoch(caught, bar)
            losses = p.losses
            trainer.close_epoch()
            tell(p.history[-1], losses)
            p.runtime_s, p.cpu_s = wall + time.monotonic(), cpu + time.process_time()
            bar.set_postfix(
                epoch=f"{p.epoch}/{epochs}",
                val_dice=f"{p.history[-1].get('val_dice', p.best_dice):.3f}",
            )
            if p.epoch == epochs or time.monotonic() - saved >= trainer.config.train.checkpoint_s:
                trainer.save()
                saved = time.monotonic()
            write_state(trainer, "running")
            if caught:
                trainer.stop(caught[0])


def write_state(trainer: Trainer, state: str) -> None:
    """`status.json` of a run on its way: who, how far, how fast."""
    p, config = trainer.progress, trainer.config
    if trainer.accelerator.is_main_process:
        files.write_json(
            trainer.folder / "status.json",
            {
                "state": state,
                "pid": os.getpid(),
                "updated": files.now(),
                "epoch": p.epoch,
                "epochs": config.train.train_epochs,
                "runtime_s": round(p.runtime_s, 1),
                "best_dice": p.best_dice,
            },
        )
