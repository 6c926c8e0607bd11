"""The training loop: one epoch after another, one visible update step.

It runs on a CPU, on one GPU, or on several under torchrun (Accelerate), and can be stopped and
resumed at any step without a changed bit. What it works on, and how that is kept in checkpoints,
is in `state.py`; how a run begins and is sealed, in `run.py`.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from mvl.core import seeds
from mvl.core.config import Config
from mvl.core.progress import signals
from mvl.datasets.loaders import CaseStore
from mvl.datasets.task import Task
from mvl.models.build import own_state
from mvl.training import failures, precision, step_graph, tensorboard
from mvl.training.failures import Diverged
from mvl.training.objective import foreground_dice, is_better, learning_rate, set_rate
from mvl.training.state import TrainingState, write_state
from mvl.training.trained import Predictor


class Trainer(TrainingState):
    """Trains a network for one epoch at a time, and validates it."""

    def __init__(
        self,
        config: Config,
        task: Task,
        train: CaseStore,
        val: CaseStore,
        folder: Path,
        command: str,
    ) -> None:
        super().__init__(config, task, train, val, folder, command)
        self.graph: step_graph.StepGraph | None = None
        if config.train.cuda_graph:
            self.graph = step_graph.graph_of(
                self.whole_step, config, self.device, self.accelerator.num_processes
            )

    def train_epoch(self, caught: list[int], bar: Any) -> None:
        """Take the steps of the current epoch that are not done yet.

        caught: signals that came meanwhile; the first one stops the run after its step.
        """
        p = self.progress
        config = self.config
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        all_steps = config.train.train_epochs * self.steps

        self.model.train()
        with failures.cases_named(config, self.train.case_ids, p):
            for batch in self.feed.epoch(config, p.epoch, p.step):
                done = p.epoch * self.steps + p.step

                # Dropout draws from the step's own seed: a resumed run drops the same units.
                torch.manual_seed(seeds.draw_seed(config.seed, "dropout", done, rank))
                set_rate(self.optimizer, learning_rate(config, done, all_steps))

                # Processes hold unequal parts of a short last batch. The weight makes the mean of
                # their gradients the gradient of the mean over all its cases.
                left = len(self.train) - p.step * config.train.batch_size
                cases = min(config.train.batch_size, left)
                self.update(batch, len(batch["cases"]) * world / cases)

                p.step += 1
                bar.update()
                if caught:
                    self.stop(caught[0])

    def update(self, batch: dict[str, Any], weight: float = 1.0) -> None:
        """Make one optimiser step on this process's share of a batch.

        batch: image (B, C, *S), label (B, K, *S) and the cases' names.
        weight: how much its gradient counts.

        On a CPU its loss is read at once; on a GPU nothing here waits for the device, see
        `read_losses`.

        Raises:
            Diverged: loss or gradient norm is not finite; names step and cases.
        """
        image = batch["image"].to(self.device, non_blocking=True)
        label = batch["label"].to(self.device, non_blocking=True)
        if not batch["cases"]:
            # A short last batch left this process none. It takes part with weight 0, because the
            # others wait for its gradient.
            image = image.new_zeros(1, *image.shape[1:])
            label = label.new_zeros(1, *label.shape[1:])

        if self.graph is not None:
            loss, norm = self.graph(image, label)
            self.note(batch, [loss], norm)
            return

        losses, norm = self.gradient(image, label, weight)
        self.note(batch, losses, norm)  # raises before a bad gradient reaches the weights
        self.scaler.step(self.optimizer)  # in fp16 it leaves out a step whose gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(
        self, image: Tensor, label: Tensor, weight: float = 1.0
    ) -> tuple[list[Tensor], Tensor]:
        """Give each parameter its clipped gradient.

        Returns the loss of each part of the batch (parts are made where memory is short), and the
        gradient's norm before clipping.
        """
        size = max(1, math.ceil(len(image) / self.config.train.accumulate))
        parts = list(zip(image.split(size), label.split(size), strict=True))
        losses = []
        for number, (x, y) in enumerate(parts):
            # Gradients travel between processes once, with the last part.
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with precision.autocast(self.config.train.precision, self.device):
                    logits = self.model(x)

                # The loss is taken in float32, whatever the network computes in.
                loss = self.loss(logits.float(), y.float()) * (len(x) / len(image))
                self.scaler.scale(loss * weight).backward()
            losses.append(loss.detach())

        # Clipping sees gradients in their own scale; no limit still measures their norm.
        self.scaler.unscale_(self.optimizer)
        limit = self.config.train.grad_clip or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return losses, norm

    def whole_step(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Make a step that never looks at the device, so that it can be recorded; returns loss and
        gradient norm.

        Gradients are let go before it, not after: a recorded backward pass then writes them anew in
        place of adding to the last ones.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, norm = self.gradient(image, label)
        self.optimizer.step()
        return losses[0], norm

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Return mean loss and mean foreground Dice of the validation cases, on the resized grid.

        Each process takes its share of the cases; all of them get the means over all cases.
        """
        self.model.eval()
        predictor = Predictor(self.validated(), self.config, self.device)
        at_once = predictor.cases_at_once()
        mine = range(self.accelerator.process_index, len(self.val), self.accelerator.num_processes)

        rows = []
        for start in range(0, len(mine), at_once):
            indices = mine[start : start + at_once]
            image, label = self.watched_cases(indices)
            logits = predictor(image)
            losses = [
                self.loss(logits[k : k + 1], label[k : k + 1].float()) for k in range(len(indices))
            ]
            rows.append((indices, torch.stack(losses), foreground_dice(logits, label)))

        # The device is read after the last batch; sorted by case, the sum has one order of terms.
        read: list[tuple[int, float, float]] = []
        for indices, losses_of, dices in rows:
            read += zip(indices, losses_of.tolist(), dices.tolist(), strict=True)
        read = sorted(gather_object(read))
        mean_loss = sum(loss for _, loss, _ in read) / len(read)
        mean_dice = sum(dice for _, _, dice in read) / len(read)
        return mean_loss, mean_dice

    def close_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, and add the epoch's row.

        Raises:
            Diverged: a value is not finite, or every step overflowed.
        """
        self.read_losses()
        p = self.progress
        train = self.config.train
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
        last = p.epoch + 1 == train.train_epochs
        if last or (p.epoch + 1) % train.val_interval == 0:
            row["val_loss"], row["val_dice"] = self.validate()
            if not (math.isfinite(row["val_loss"]) and math.isfinite(row["val_dice"])):
                raise Diverged(
                    f"{self.folder}: validation loss {row['val_loss']}, Dice {row['val_dice']}"
                    f" after epoch {p.epoch}; lower train.lr"
                )
            if is_better(row, p.history, train.select):
                p.best_dice = row["val_dice"]
                p.best_epoch = p.epoch
                self.best = {n: t.detach().clone() for n, t in own_state(self.network).items()}
        p.history.append(row)
        p.epoch += 1
        p.step = 0
        p.losses = []


def fit(trainer: Trainer, progress: bool = True) -> None:
    """Train to the last epoch: from the start, or from where the run's newest checkpoint is.

    progress: show a bar.
    """
    from tqdm import tqdm

    trainer.restore()
    p = trainer.progress
    epochs = trainer.config.train.train_epochs
    first = p.epoch * trainer.steps

    # A resumed run goes on counting its time where it stopped.
    wall = p.runtime_s - time.monotonic()
    cpu = p.cpu_s - time.process_time()
    saved = time.monotonic()

    bars = tqdm(
        total=epochs * trainer.steps,
        initial=first + p.step,
        disable=None if progress else True,
        unit="step",
    )
    board = tensorboard.opened(trainer.folder, first, trainer.accelerator.is_main_process)
    with signals() as caught, bars as bar, board as tell:
        while p.epoch < epochs:
            trainer.train_epoch(caught, bar)
            losses = p.losses
            trainer.close_epoch()
            row = p.history[-1]
            tell(row, losses)

            p.runtime_s = wall + time.monotonic()
            p.cpu_s = cpu + time.process_time()
            dice = row.get("val_dice", p.best_dice)
            bar.set_postfix(epoch=f"{p.epoch}/{epochs}", val_dice=f"{dice:.3f}")

            if p.epoch == epochs or time.monotonic() - saved >= trainer.config.train.checkpoint_s:
                trainer.save()
                saved = time.monotonic()
            write_state(trainer, "running")
            if caught:
                trainer.stop(caught[0])
