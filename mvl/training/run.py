"""A run from its first byte to its seal: inputs settled, trained, evaluated, recorded."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.core import files, machine, run_folder
from mvl.core.columns import CASE_COLUMNS, HISTORY_COLUMNS
from mvl.core.command_lines import keep_given, train_command
from mvl.core.config import Config
from mvl.core.progress import largest_loss_rise
from mvl.datasets import preflight, splits
from mvl.datasets.case_store import CaseStore, Damage
from mvl.datasets.label_noise import label_damage
from mvl.datasets.registry import task_facts
from mvl.datasets.released_faults import audited
from mvl.datasets.splits import Split
from mvl.datasets.task_data import open_task
from mvl.models.build import frozen_sha256, parameter_counts
from mvl.training import (
    checkpoints,
    devices,
    failures,
    gradient_agreement,
    precision,
    resume_check,
)
from mvl.training.evaluate import evaluate_store
from mvl.training.loop import Trainer, fit
from mvl.training.state import write_state
from mvl.training.trained import Predictor, load_own_state
from mvl.training.usage import write_usage


def facts(trainer: Trainer, split: Split) -> dict[str, Any]:
    """What `status.json` says of a finished run beside its files."""
    p = trainer.progress
    rise, risen = largest_loss_rise(p.history)
    return {
        "runtime_s": round(p.runtime_s, 1),
        "runtime_per_epoch_s": round(p.runtime_s / trainer.config.train.train_epochs, 3),
        "cpu_s": round(p.cpu_s, 1),
        "numbers": precision.facts_of(trainer.config.train.precision),
        "skipped_steps": p.skipped,
        "largest_loss_rise": rise,
        "largest_loss_rise_epoch": risen,
        "deterministic": devices.determinism(),
        "peak_memory_mb": round(machine.peak_memory_mb()),
        "gpu_peak_memory_mb": devices.gpu_peak_mb(),
        "best_epoch": p.best_epoch,
        "best_dice": p.best_dice,
        "frozen_sha256_before": p.frozen_sha256,
        "frozen_sha256_after": frozen_sha256(trainer.network),
        "parameters": parameter_counts(trainer.network),
        "split_sha256": split.sha256,
        "task": task_facts(trainer.train_cases.task),
        "n": {"train": len(split.train), "val": len(split.val), "test": len(split.test)},
    }


def train_run(
    config: Config,
    results_dir: Path,
    data_dir: Path | None = None,
    progress: bool = True,
    allow_drift: bool = False,
    study: str = "",
) -> Path:
    """Train or go on with a run, evaluate it on its test cases, seal it; returns its folder. A
    finished run is left alone. `study` is the study as it was given, which may be a path.

    Raises:
        Interrupted: SIGINT or SIGTERM, after a checkpoint.
        Diverged: a value is not finite; the run is recorded as diverged.
        RunError: the folder is among the published records, is held by another process, was begun
            with other settings or elsewhere, memory or a loader process was lost, ...
    """
    folder = run_folder.run_dir(results_dir, config)
    if run_folder.is_records(results_dir):
        raise files.RunError(
            f"{results_dir} holds the published records, which nothing is trained into; choose"
            " another --results-dir"
        )
    if run_folder.is_done(folder, need_weights=True):
        if changed := run_folder.changed_settings(folder, config):
            raise files.RunError(
                f"{folder}: was finished with other settings ({'; '.join(changed[:3])}); move the"
                " folder away to train anew, or give the study another name"
            )
        checkpoints.remove(folder)  # a kill between the seal and this line leaves them
        return folder
    with files.locked(folder) if first_process() else nullcontext():
        if first_process():  # the lock holder alone: the others would sweep what it is writing
            files.sweep(folder)
        try:
            prepared = prepare(config, folder, data_dir)
            keep_given(folder, study or config.study, data_dir)
            again = train_command(config, Path(results_dir), data_dir, study)
            train_and_seal(prepared, folder, again, progress, allow_drift)
        except Exception as error:
            failures.close(error, folder, config)
            raise
    return folder


def first_process() -> bool:
    """True in the only process, or in the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Prepared:
    """What a run needs, settled once at its start: nothing below looks its task up again."""

    config: Config
    split: Split
    train_cases: CaseStore
    watched_cases: CaseStore
    test_cases: CaseStore
    "Closed while the network is trained: its weights must be chosen without them."


def prepare(config: Config, folder: Path, data_dir: Path | None) -> Prepared:
    """Find the task, deal its split, check every input, and open the run's cases.

    Raises:
        TaskError: data are absent or are not what was checked.
        RunError: the folder was begun with other settings or another split.
    """
    data = open_task(config.task, data_dir)
    split = splits.run_split(config, data)
    run_folder.write_config(folder, config)
    preflight.check_inputs(data, split, folder, config.data.split)

    def store(cases: tuple[str, ...], damage: Damage | None = None) -> CaseStore:
        return CaseStore(data, cases, config.data, damage)

    train_cases = store(split.train, label_damage(config, split.train))
    train_cases, watched_cases, split = audited(config, split, train_cases, store)
    return Prepared(config, split, train_cases, watched_cases, store(split.test))


def train_and_seal(
    prepared: Prepared, folder: Path, command: str, progress: bool, allow_drift: bool
) -> None:
    """Train on what was prepared, score the test cases, and seal the folder, whose lock is held.

    `command` goes on with the run, should it be interrupted.
    """
    config = prepared.config
    trainer = Trainer(config, prepared.train_cases, prepared.watched_cases, folder, command)
    environment = resume_check.environment(folder, allow_drift)
    environment["numbers"] = precision.facts_of(config.train.precision)
    files.write_json(folder / "environment.json", environment)
    write_state(trainer, "running")
    with preflight.closed(prepared.test_cases.cases):
        fit(trainer, progress)
    finish(trainer)
    if trainer.accelerator.is_main_process:
        predictor = Predictor(trainer.network, config)
        rows = evaluate_store(predictor, prepared.test_cases)
        files.write_csv(folder / "cases.csv", rows, CASE_COLUMNS)
        gradient_agreement.write_gradients(folder, trainer.progress.gradients, config)
        write_usage(folder, predictor, prepared.test_cases)
        run_folder.seal(folder, facts(trainer, prepared.split))
        checkpoints.remove(folder)  # only after the seal: until then a kill still needs them


def finish(trainer: Trainer) -> None:
    """Write `history.csv` and the best epoch's weights, which the network now holds.

    Raises:
        RunError: a frozen tensor changed during training.
    """
    # A frozen tensor that moved would make the arm another one than its name says.
    if frozen_sha256(trainer.network) != trainer.progress.frozen_sha256:
        raise files.RunError(
            f"{trainer.folder}: frozen weights changed during training; the run is not what its"
            " system says"
        )
    load_own_state(trainer.network, trainer.best_weights)
    if trainer.accelerator.is_main_process:
        files.write_csv(trainer.folder / "history.csv", trainer.progress.history, HISTORY_COLUMNS)
        checkpoints.save_weights(trainer.folder / "weights.safetensors", trainer.best_weights)
