"""Train one run: one visible loop, bitwise resumable, on a CPU, one GPU or several under torchrun (Accelerate)."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from mvl import checkpoints, drift, endings, events, runs
from mvl.config import Config
from mvl.datasets import splits, tasks, trust
from mvl.datasets.loaders import CaseStore, steps_per_epoch, training_loader
from mvl.datasets.noise import label_damage
from mvl.datasets.own import task_facts, task_of_run
from mvl.datasets.released import audited
from mvl.endings import Diverged
from mvl.models import build_system, frozen_sha256, own_state, parameter_counts
from mvl.objective import build_loss, build_optimizer, foreground_dice, is_better, learning_rate, num_classes

HISTORY_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "val_dice"]


class Interrupted(SystemExit):
    """SIGINT or SIGTERM arrived; the run is checkpointed. `code` is 130 or 143, `command` goes on."""

    def __init__(self, signum: int, command: str) -> None:
        super().__init__(128 + signum)
        self.command = command


@dataclass
class Progress:
    """Where a run is: everything that a checkpoint holds beside the tensors."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_dice: float = -1.0
    best_epoch: int = -1
    runtime_s: float = 0.0
    cpu_s: float = 0.0
    frozen_sha256: str = ""


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to while the block runs, in place of ending the process."""
    caught: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Trainer:
    """The parts of a run that the loop needs: network, optimiser, loss, cases, and where it is."""

    def __init__(self, config: Config, task: tasks.Task, train: CaseStore, val: CaseStore, folder: Path, command: str) -> None:
        self.config, self.train, self.val, self.folder, self.command = config, train, val, folder, command
        self.accelerator = start_accelerator(config)
        classes = num_classes(config, task)
        self.network = build_system(config, len(task.channels), classes)
        self.loss = build_loss(classes, config.train.loss)
        self.progress = Progress(frozen_sha256=frozen_sha256(self.network))
        self.best: dict[str, Tensor] = {}
        optimizer = build_optimizer(config, self.network)
        self.model, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        if config.train.compile:
            self.model = torch.compile(self.model)
        self.steps = steps_per_epoch(len(train), config.train.batch_size)

    def update(self, batch: dict[str, Any], weight: float = 1.0) -> float:
        """One optimiser step on this process's share of a batch, whose gradient counts `weight` times; returns the share's mean loss.

        Raises:
            Diverged: loss or gradient norm is not finite; names step and cases.
        """
        image, label = batch["image"].to(self.accelerator.device), batch["label"].to(self.accelerator.device)
        if not batch["cases"]:  # a short last batch left this process none: take part with weight 0
            image, label = image.new_zeros(1, *image.shape[1:]), label.new_zeros(1, *label.shape[1:])
        micro = max(1, math.ceil(len(image) / self.config.train.accumulate))
        parts, total = list(zip(image.split(micro), label.split(micro), strict=True)), 0.0
        for number, (x, y) in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(self.model(x), y.float()) * (len(x) / len(image))
                self.accelerator.backward(loss * weight)
            total += loss.item()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip or math.inf)
        if not (math.isfinite(total) and math.isfinite(float(norm))):
            raise Diverged(f"{self.folder}: loss {total}, gradient norm {float(norm)} at epoch {self.progress.epoch}, step {self.progress.step}, "
                           f"cases {', '.join(batch['cases'])}; lower train.lr or check these cases with `mvl verify`")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def train_epoch(self, caught: list[int], bar: Any) -> None:
        """The steps of the current epoch that are not done yet."""
        p, config, rank, world = self.progress, self.config, self.accelerator.process_index, self.accelerator.num_processes
        self.model.train()
        with endings.cases_named(config, self.train.case_ids, p):
            for batch in training_loader(self.train, config, p.epoch, p.step, rank, world):
                done = p.epoch * self.steps + p.step
                torch.manual_seed(runs.draw_seed(config.seed, "dropout", done, rank))
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(config, done, config.train.train_epochs * self.steps)
                cases = min(config.train.batch_size, len(self.train) - p.step * config.train.batch_size)
                p.losses.append(self.update(batch, len(batch["cases"]) * world / cases))
                p.step += 1
                bar.update()
                if caught:
                    self.stop(caught[0])

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and mean foreground Dice of the validation cases, on the resized grid, spread over the processes."""
        self.model.eval()
        network, rows, device = self.validated(), [], self.accelerator.device
        for index in range(self.accelerator.process_index, len(self.val), self.accelerator.num_processes):
            image, label = (t[None].to(device) for t in self.val.get(index))
            logits = network(image).float()
            rows.append((index, self.loss(logits, label.float()).item(), foreground_dice(logits, label).item()))
        rows = sorted(gather_object(rows))
        return sum(r[1] for r in rows) / len(rows), sum(r[2] for r in rows) / len(rows)

    def validated(self) -> nn.Module:
        """The network to validate with: it has the first process's BatchNorm statistics, which are those that the run keeps.

        Among several processes it is the bare one: a wrapped one exchanges buffers before each forward pass, and a process with one
        case more than the others would wait for ever.
        """
        if self.accelerator.num_processes == 1:
            return self.model
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, 0)
        return self.network

    def close_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, and add the epoch's row."""
        p, train = self.progress, self.config.train
        row = {"epoch": p.epoch, "lr": self.optimizer.param_groups[0]["lr"], "train_loss": sum(p.losses) / len(p.losses)}
        if (p.epoch + 1) % train.val_interval == 0 or p.epoch + 1 == train.train_epochs:
            row["val_loss"], row["val_dice"] = self.validate()
            if not (math.isfinite(row["val_loss"]) and math.isfinite(row["val_dice"])):
                raise Diverged(f"{self.folder}: validation loss {row['val_loss']}, Dice {row['val_dice']} after epoch {p.epoch}; lower train.lr")
            if is_better(row, p.history, train.select):
                p.best_dice, p.best_epoch = row["val_dice"], p.epoch
                self.best = {n: t.detach().clone() for n, t in own_state(self.network).items()}
        p.history.append(row)
        p.epoch, p.step, p.losses = p.epoch + 1, 0, []

    def save(self) -> None:
        """Checkpoint, from the first process."""
        if self.accelerator.is_main_process:
            state = {"model": own_state(self.network), "optimizer": self.optimizer.state_dict(), "best": self.best, "progress": vars(self.progress)}
            checkpoints.save(self.folder, self.progress.epoch * self.steps + self.progress.step, state)

    def restore(self) -> bool:
        """Go on from the newest whole checkpoint; False when there is none.

        Raises:
            RunError: the checkpoint's frozen weights are not this network's.
        """
        state = checkpoints.load(self.folder)
        if state is None:
            return False
        if state["progress"]["frozen_sha256"] != self.progress.frozen_sha256:
            raise runs.RunError(f"{self.folder}: its checkpoint was made with other frozen weights; restore the source, or delete the folder")
        load_own_state(self.network, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.progress = state["best"], Progress(**state["progress"])
        return True

    def stop(self, signum: int) -> None:
        """Checkpoint, then leave with 128 + signal."""
        self.save()
        write_state(self, "interrupted")
        raise Interrupted(signum, self.command)


def start_accelerator(config: Config) -> Accelerator:
    """Accelerate on what there is, with the world size checked: `accelerate launch --cpu` silently starts one process.

    Raises:
        RunError: fewer processes than the launcher promised.
    """
    runs.keep_freed_memory()
    torch.set_num_threads(config.train.num_threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, guards only against reading memory never written
    AcceleratorState._reset_state()  # one process may train runs of several precisions, one after another
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16" if config.train.precision == "bf16" else "no")
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise runs.RunError(f"{wanted} processes were asked for, {accelerator.num_processes} take part; launch with torchrun")
    return accelerator


def load_own_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `own_state` kept; strict both ways.

    Raises:
        RunError: keys differ; lists them.
    """
    wanted = set(own_state(network))
    if wanted != set(state):
        raise runs.RunError(f"weights do not fit the network: missing {sorted(wanted - set(state))}, extra {sorted(set(state) - wanted)}")
    network.load_state_dict(state, strict=False)


def write_state(trainer: Trainer, state: str) -> None:
    """`status.json` of a run on its way: who, how far, how fast."""
    p, config = trainer.progress, trainer.config
    if trainer.accelerator.is_main_process:
        runs.write_json(trainer.folder / "status.json", {
            "state": state, "pid": os.getpid(), "updated": runs.now(), "epoch": p.epoch, "epochs": config.train.train_epochs,
            "runtime_s": round(p.runtime_s, 1), "best_dice": p.best_dice})


def fit(trainer: Trainer, progress: bool = True) -> None:
    """Train to the last epoch: from the start, or from where the run's newest checkpoint is."""
    from tqdm import tqdm

    trainer.restore()
    p, epochs = trainer.progress, trainer.config.train.train_epochs
    wall, cpu = p.runtime_s - time.monotonic(), p.cpu_s - time.process_time()
    quiet = None if progress else True
    board = events.opened(trainer.folder, p.epoch * trainer.steps, trainer.accelerator.is_main_process)
    bars = tqdm(total=epochs * trainer.steps, initial=p.epoch * trainer.steps + p.step, disable=quiet, unit="step")
    with signals() as caught, bars as bar, board as tell:
        while p.epoch < epochs:
            trainer.train_epoch(caught, bar)
            losses = p.losses
            trainer.close_epoch()
            tell(p.history[-1], losses)
            p.runtime_s, p.cpu_s = wall + time.monotonic(), cpu + time.process_time()
            bar.set_postfix(epoch=f"{p.epoch}/{epochs}", val_dice=f"{p.history[-1].get('val_dice', p.best_dice):.3f}")
            trainer.save()
            write_state(trainer, "running")
            if caught:
                trainer.stop(caught[0])


def train_run(config: Config, results_dir: Path, data_dir: Path | None = None, progress: bool = True, allow_drift: bool = False) -> Path:
    """Train or go on with a run, evaluate it on its test cases, seal it; returns its folder. A finished run is left alone.

    Raises:
        Interrupted: SIGINT or SIGTERM, after a checkpoint.
        Diverged: a value is not finite; the run is recorded as diverged.
        RunError: the folder is held by another process, was begun with other settings or elsewhere, memory or a loader process was lost, ...
    """
    folder = runs.run_dir(results_dir, config)
    if runs.is_done(folder, need_weights=True):
        checkpoints.remove(folder)  # a kill between the seal and this line leaves them
        return folder
    with runs.locked(folder) if first_process() else nullcontext():
        runs.sweep(folder)
        try:
            _train_locked(config, folder, results_dir, data_dir, progress, allow_drift)
        except Exception as error:
            endings.close(error, folder, config)
            raise
    return folder


def first_process() -> bool:
    """True in the only process, or in the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _train_locked(config: Config, folder: Path, results_dir: Path, data_dir: Path | None, progress: bool, allow: bool) -> None:
    from mvl.evaluate import CASE_COLUMNS, evaluate_store

    task = tasks.find_task(config.task, data_dir)
    split = splits.run_split(config, task, data_dir)
    runs.write_config(folder, config)
    trust.check_inputs(task, split, folder, data_dir)
    store = lambda cases, damage=None: CaseStore(task, cases, config.data, data_dir, damage)
    noisy = store(split.train, label_damage(config, split.train))
    seen, watched, split = audited(config, split, noisy, store)
    trainer = Trainer(config, task, seen, watched, folder, runs.command(config, results_dir, data_dir))
    runs.write_json(folder / "environment.json", drift.environment(folder, allow))
    write_state(trainer, "running")
    with trust.closed(task, split.test, data_dir):
        fit(trainer, progress)
    finish(trainer, split)
    if trainer.accelerator.is_main_process:
        network = trainer.network.eval()
        runs.write_csv(folder / "cases.csv", evaluate_store(network, store(split.test), config, task), CASE_COLUMNS)
        runs.seal(folder, facts(trainer, split))
        checkpoints.remove(folder)


def finish(trainer: Trainer, split: splits.Split) -> None:
    """Write `history.csv` and the best epoch's weights, which the network now holds.

    Raises:
        RunError: a frozen tensor changed during training.
    """
    if frozen_sha256(trainer.network) != trainer.progress.frozen_sha256:
        raise runs.RunError(f"{trainer.folder}: frozen weights changed during training; the run is not what its system says")
    load_own_state(trainer.network, trainer.best)
    if trainer.accelerator.is_main_process:
        runs.write_csv(trainer.folder / "history.csv", trainer.progress.history, HISTORY_COLUMNS)
        checkpoints.save_weights(trainer.folder / "weights.safetensors", trainer.best)


def facts(trainer: Trainer, split: splits.Split) -> dict[str, Any]:
    """What `status.json` says of a finished run beside its files."""
    p = trainer.progress
    return {
        "runtime_s": round(p.runtime_s, 1), "runtime_per_epoch_s": round(p.runtime_s / trainer.config.train.train_epochs, 3),
        "cpu_s": round(p.cpu_s, 1),
        "peak_memory_mb": round(runs.peak_memory_mb()), "best_epoch": p.best_epoch, "best_dice": p.best_dice,
        "frozen_sha256_before": p.frozen_sha256, "frozen_sha256_after": frozen_sha256(trainer.network),
        "parameters": parameter_counts(trainer.network), "split_sha256": split.sha256,
        "task": task_facts(trainer.train.task), "n": {"train": len(split.train), "val": len(split.val), "test": len(split.test)}}


def load_run(run_dir: Path) -> nn.Module:
    """A finished run's network with its best weights, ready to predict.

    Raises:
        RunError: weights are missing, changed, or do not fit.
    """
    config = runs.read_config(run_dir)
    task = task_of_run(config, runs.read_status(run_dir))
    network = build_system(config, len(task.channels), num_classes(config, task))
    load_own_state(network, checkpoints.load_weights(run_dir))
    return network.eval()
