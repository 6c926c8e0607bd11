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
from torch import Tensor

from mvl.core import seeds
from mvl.core.config import Config
from mvl.core.progress import signals
from mvl.datasets.case_store import CaseStore
from mvl.models.build import own_state
from mvl.training import failures, gradient_agreement, precision, step_graph, tensorboard
from mvl.training.failures import Diverged
from mvl.training.objective import (
    is_better,
    learning_rate,
    set_rate,
)
from mvl.training.state import TrainingState, write_state


class Trainer(TrainingState):
    """Trains a network for one epoch at a time, and validates it."""

    def __init__(
        self,
        config: Config,
        train_cases: CaseStore,
        watched_cases: CaseStore,
        folder: Path,
        command: str,
    ) -> None:
        super().__init__(config, train_cases, watched_cases, folder, command)
        self.graph: step_graph.StepGraph | None = None
        if config.train.cuda_graph:
            self.graph = step_graph.graph_of(self.whole_step, config, self.device, self.world_size)

    def train_epoch(self, caught: list[int], bar: Any) -> None:
        """Take the steps of the current epoch that are not done yet.

        caught: signals that came meanwhile; the first one stops the run after its step.
        """
        p = self.progress
        config = self.config
        batch_size = config.train.batch_size
        total_steps = config.train.train_epochs * self.steps_per_epoch
        self.model.train()
        with failures.cases_named(config, self.train_cases, p):
            for batch in self.feed.epoch(config, p.epoch, p.step):
                steps_done = p.epoch * self.steps_per_epoch + p.step
                # Dropout and rate are functions of the step alone: a run that goes on draws what
                # one that was never stopped would have drawn.
                torch.manual_seed(seeds.draw_seed(config.seed, "dropout", steps_done, self.rank))
                set_rate(self.optimizer, learning_rate(config, steps_done, total_steps))
                # Processes average their gradients; with this weight the average is the mean over
                # the cases of the whole batch, however unevenly they are dealt.
                cases = min(batch_size, len(self.train_cases) - p.step * batch_size)
                self.update(batch, len(batch["cases"]) * self.world_size / cases)
                p.step += 1
                bar.update()
                if caught:
                    self.stop(caught[0])

    def update(self, batch: dict[str, Any], weight: float = 1.0) -> None:
        """Make one optimiser step on this process's share of a batch.

        batch: image (B, C, *S), label (B, K, *S), and the cases' names.
        weight: how much its gradient counts.

        On a CPU its loss is read at once; on a GPU nothing here waits for the device, see
        `read_losses`.

        Raises:
            Diverged: loss or gradient norm is not finite; names step and cases.
        """
        image = batch["image"].to(self.device, non_blocking=True)
        label = batch["label"].to(self.device, non_blocking=True)
        if not batch["cases"]:
            # A short last batch left this process no case. It takes part all the same, with weight
            # 0: the others wait for its gradient.
            image = image.new_zeros(1, *image.shape[1:])
            label = label.new_zeros(1, *label.shape[1:])
        if self.graph is not None:
            loss, norm = self.graph(image, label)
            self.note(batch, [loss], norm)
            return
        losses, norm = self.gradient(image, label, weight)
        self.note(batch, losses, norm)  # on a CPU this stops the run before a bad step is taken
        self.scaler.step(self.optimizer)  # in fp16 it leaves out a step whose gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(
        self, image: Tensor, label: Tensor, weight: float = 1.0
    ) -> tuple[list[Tensor], Tensor]:
        """Give each parameter its clipped gradient; returns the loss of each part of the batch, and
        the norm before clipping."""
        part_size = max(1, math.ceil(len(image) / self.config.train.accumulate))
        parts = list(zip(image.split(part_size), label.split(part_size), strict=True))
        losses = []
        for number, (x, y) in enumerate(parts):
            last = number == len(parts) - 1
            # Gradients of the parts add up; processes exchange them once, with the last part.
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                # Autocast covers the network alone: the loss sums over all voxels, which needs
                # float32 whatever the network computes in.
                with precision.autocast(self.config.train.precision, self.device):
                    logits = self.model(x)
                # The loss is a mean over cases: each part counts as much as it has cases.
                loss = self.loss(logits.float(), y.float()) * (len(x) / len(image))
                # fp16 holds no small gradients: the loss is scaled up, and they come down below.
                self.scaler.scale(loss * weight).backward()
            losses.append(loss.detach())
        # Clip the true gradient, not the scaled one. The norm of all parameters together is
        # limited, so that the direction of the step stays; inf only measures it.
        self.scaler.unscale_(self.optimizer)
        largest_norm = self.config.train.grad_clip or math.inf
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), largest_norm)
        return losses, norm

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

    def validate(self) -> tuple[float, float]:
        """Return mean loss and mean foreground Dice of the watched cases, on the resized grid."""
        if self.world_size == 1:
            return self.validation.mean_loss_and_dice(self.model)
        # Every process gets the first one's BatchNorm statistics, which are those that the run
        # keeps. The bare network predicts: a wrapped one exchanges buffers before each forward
        # pass, and a process with one case more than the others would wait for ever.
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, 0)
        return self.validation.mean_loss_and_dice(self.network)

    def close_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, and add the epoch's row."""
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
        if (p.epoch + 1) % train.val_interval == 0 or p.epoch + 1 == train.train_epochs:
            row["val_loss"], row["val_dice"] = self.validate()
            if not (math.isfinite(row["val_loss"]) and math.isfinite(row["val_dice"])):
                raise Diverged(
                    f"{self.folder}: validation loss {row['val_loss']}, Dice {row['val_dice']}"
                    f" after epoch {p.epoch}; lower train.lr"
                )
            if is_better(row, p.history, train.select):
                p.best_dice = row["val_dice"]
                p.best_epoch = p.epoch
                # copies: the optimiser's next step writes into the tensors themselves
                self.best_weights = {
                    name: tensor.detach().clone()
                    for name, tensor in own_state(self.network).items()
                }
        p.history.append(row)
        p.epoch += 1
        if p.epoch in train.gradient_epochs:
            cosine = gradient_agreement.gradient_cosine(
                self.network, self.train_cases, self.loss, train.precision
            )
            p.gradients.append({"epochs_done": p.epoch, "mean_cosine": cosine})
        p.step = 0
        p.losses = []


def fit(trainer: Trainer, progress: bool = True) -> None:
    """Train to the last epoch: from the start, or from where the run's newest checkpoint is."""
    from tqdm import tqdm

    trainer.restore()
    p = trainer.progress
    epochs = trainer.config.train.train_epochs
    trainer.start_clocks()
    saved = time.monotonic()
    board = tensorboard.opened(
        trainer.folder, p.epoch * trainer.steps_per_epoch, trainer.accelerator.is_main_process
    )
    bars = tqdm(
        total=epochs * trainer.steps_per_epoch,
        initial=p.epoch * trainer.steps_per_epoch + p.step,
        disable=None if progress else True,
        unit="step",
    )
    with signals() as caught, bars as bar, board as tell:
        while p.epoch < epochs:
            trainer.train_epoch(caught, bar)
            losses = p.losses
            trainer.close_epoch()
            # Event files come before the checkpoint: what is told twice, a reader drops.
            tell(p.history[-1], losses)
            trainer.tick()
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
