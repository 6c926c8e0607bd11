"""`status.json` says of a run what was measured of that run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mvl.core import files, run_folder
from mvl.core.config import Config, build, load_config
from mvl.core.progress import Interrupted
from mvl.datasets import registry, splits
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task_data import TaskData
from mvl.training import devices, run, state
from mvl.training.loop import Trainer

TINY = {
    "data": {"img_size": [16, 16, 16]},
    "train": {"train_epochs": 2, "batch_size": 2},
    "model": {
        "patch_size": [8, 8, 8],
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_size": 32,
        "mlp_dim": 64,
    },
}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    config, task = build(Config, TINY, "test"), registry.find_task("phantoms")
    store = CaseStore(
        TaskData(task), splits.load_split(TaskData(task), 0, 0.1).train[:2], config.data
    )
    return Trainer(config, store, store, tmp_path, "")


def test_a_run_on_its_way_says_how_far_it_is(trainer: Trainer) -> None:
    trainer.progress.epoch, trainer.progress.best_dice = 1, 0.25
    state.write_state(trainer, "running")
    status = run_folder.read_status(trainer.folder)
    assert (status["state"], status["epoch"], status["epochs"], status["best_dice"]) == (
        "running",
        1,
        2,
        0.25,
    )


def test_a_finished_run_says_how_it_computed(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = trainer.progress
    p.history = [{"train_loss": 0.5}, {"train_loss": 0.75}]
    p.runtime_s, p.skipped = 6.0, 3
    split = splits.load_split(TaskData(trainer.train_cases.task), 0, 0.1)
    said = run.facts(trainer, split)
    assert (
        said["deterministic"] == "strict"
        and said["gpu_peak_memory_mb"] is None
        and said["peak_memory_mb"] > 100
    )
    assert (said["largest_loss_rise"], said["largest_loss_rise_epoch"], said["skipped_steps"]) == (
        0.25,
        1,
        3,
    )
    assert said["runtime_per_epoch_s"] == 3.0 and said["numbers"]["precision"] == "fp32"
    assert said["frozen_sha256_before"] == said["frozen_sha256_after"]
    monkeypatch.setattr(devices, "gpu_peak_mb", lambda: 812)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        said = run.facts(trainer, split)
    finally:
        torch.use_deterministic_algorithms(True)
    assert said["deterministic"] == "warn" and said["gpu_peak_memory_mb"] == 812
    json.dumps(said)


def test_nothing_is_trained_into_the_published_records() -> None:
    config = load_config("quick", "phantoms", "vit_baseline")
    with pytest.raises(files.RunError, match="published records, which nothing is trained into"):
        run.train_run(config, run_folder.records_dir())


@pytest.mark.parametrize(("rank", "kept"), [("0", False), ("1", True)])
def test_the_first_process_alone_sweeps(
    rank: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("quick", "phantoms", "vit_baseline")
    folder = run_folder.run_dir(tmp_path, config)
    folder.mkdir(parents=True)
    being_written = folder / ".config.yaml.1-0.tmp"
    being_written.touch()
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(run, "prepare", stopped)
    with pytest.raises(files.RunError, match="stopped here"):
        run.train_run(config, tmp_path)
    assert being_written.exists() == kept


def stopped(*_: object) -> None:
    raise files.RunError("stopped here")


def test_a_run_that_is_stopped_within_an_epoch_keeps_the_time_that_it_took(
    trainer: Trainer,
) -> None:
    trainer.start_clocks()
    trainer.wall += 100
    trainer.cpu += 90
    with pytest.raises(Interrupted):
        trainer.stop(15)
    assert trainer.progress.runtime_s >= 100 and trainer.progress.cpu_s >= 90
    assert run_folder.read_status(trainer.folder)["runtime_s"] >= 100
