"""Training: repeats and resumes bitwise, stops at the first non-finite value, and what it minimises
has a gradient."""

from __future__ import annotations

import math
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.core import files, progress, run_folder
from mvl.core.config import ROOT, Config, load_config
from mvl.datasets.task_data import TaskData
from mvl.study.status import state_of
from mvl.training import checkpoints, devices, failures, loop, run

STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}
train: {train_epochs: 4, batch_size: 4, checkpoint_s: 0.0}
"""
BYTES = ("weights.safetensors", "history.csv", "cases.csv")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a study of one tiny ViT; a study may be named by its file."""
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture
def config(study: str) -> Config:
    """The tiny run on 30 % of a fold's phantoms."""
    return load_config(study, "phantoms", "vit_baseline", fraction=0.3)


@pytest.fixture(scope="module")
def whole(study: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny run, trained without disturbance."""
    config = load_config(study, "phantoms", "vit_baseline", fraction=0.3)
    return run.train_run(config, tmp_path_factory.mktemp("whole"), progress=False)


def same_bytes(a: Path, b: Path) -> bool:
    """True when every result file of two runs has the same bytes."""
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in BYTES)


def test_a_finished_run_is_whole(whole: Path) -> None:
    status = run_folder.read_status(whole)
    assert run_folder.is_done(whole, need_weights=True)
    assert {*run_folder.RECORD_FILES, "weights.safetensors", "status.json"} <= {
        p.name for p in whole.iterdir()
    }
    assert status["frozen_sha256_before"] == status[
        "frozen_sha256_after"
    ] and not checkpoints.found(whole)
    assert len((whole / "history.csv").read_text().splitlines()) == 5


def test_a_finished_run_is_left_alone(config: Config, whole: Path) -> None:
    before = (whole / "status.json").stat().st_mtime_ns
    results = whole.parents[4]
    checkpoints.save(whole, 3, {"step": 3})
    assert run.train_run(config, results, progress=False) == whole
    assert (whole / "status.json").stat().st_mtime_ns == before
    assert not checkpoints.found(whole), "left by a kill between the seal and their removal"


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(
    config: Config, whole: Path
) -> None:
    slower = replace(config, train=replace(config.train, lr=config.train.lr / 2))
    with pytest.raises(files.RunError, match=r"finished with other settings \(train.lr: .* -> "):
        run.train_run(slower, whole.parents[4], progress=False)
    assert state_of(whole, config) == "done" and state_of(whole, slower) == "stale"


def test_loaded_run_predicts_what_was_recorded(whole: Path, config: Config) -> None:
    from mvl.training.evaluate import evaluate_run

    before = (whole / "cases.csv").read_bytes()
    evaluate_run(whole)
    assert (whole / "cases.csv").read_bytes() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_count_changes_nothing(
    config: Config, whole: Path, tmp_path: Path, workers: int
) -> None:
    other = run.train_run(
        replace(config, data=replace(config.data, num_workers=workers)), tmp_path, progress=False
    )
    assert same_bytes(whole, other)


@pytest.mark.parametrize("stop_at", [1, 3, 7])
def test_stopped_at_any_step_it_ends_the_same(
    config: Config, whole: Path, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, count = loop.Trainer.update, iter(range(10**6))

    def update_then_signal(
        self: loop.Trainer, batch: dict[str, object], weight: float = 1.0
    ) -> float:
        loss = update(self, batch, weight)
        if next(count) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(loop.Trainer, "update", update_then_signal)
    with pytest.raises(progress.Interrupted) as caught:
        run.train_run(config, tmp_path, progress=False)
    assert caught.value.code == 143 and "mvl train --study tiny" in caught.value.command
    assert run_folder.read_status(run_folder.run_dir(tmp_path, config))["state"] == "interrupted"
    assert same_bytes(whole, run.train_run(config, tmp_path, progress=False))


def test_killed_three_times_it_ends_the_same(study: str, tmp_path: Path) -> None:
    """SIGKILL just after a checkpoint or at it, three times, in a process of its own; then left to
    end."""
    words = [
        sys.executable,
        "-m",
        "mvl",
        "train",
        "--study",
        study,
        "--task",
        "phantoms",
        "--system",
        "vit_baseline",
        "--fraction",
        "0.3",
        "--fold",
        "0",
        "--seed",
        "0",
        "--results-dir",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(folder):
        return subprocess.Popen(
            [*words, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    calm, kills = start(tmp_path / "calm"), 0

    def found():
        return sorted(p.name for p in (tmp_path / "killed").rglob("checkpoint-*.pt"))

    for delay in (0.0, 0.02, 0.05):
        process, before = start(tmp_path / "killed"), found()
        while process.poll() is None and found() == before:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    folders = [
        Path(process.communicate(timeout=120)[0].splitlines()[-1])
        for process in (calm, start(tmp_path / "killed"))
    ]
    assert kills >= 2 and same_bytes(*folders)


def test_changed_settings_are_refused_with_the_difference(config: Config, tmp_path: Path) -> None:
    folder = run_folder.run_dir(tmp_path, config)
    run_folder.write_config(folder, replace(config, train=replace(config.train, lr=0.5)))
    with pytest.raises(files.RunError, match=r"train.lr: 0.5 -> 0.002"):
        run.train_run(config, tmp_path, progress=False)


def test_a_second_start_is_refused(config: Config, tmp_path: Path) -> None:
    with (
        files.locked(run_folder.run_dir(tmp_path, config)),
        pytest.raises(files.RunError, match="held by pid"),
    ):
        run.train_run(config, tmp_path, progress=False)


def test_first_non_finite_value_stops_the_run_naming_step_and_cases(
    config: Config, tmp_path: Path
) -> None:
    broken = replace(
        config,
        train=replace(
            config.train,
            lr=1.0,
            grad_clip=0.0,
            optimizer="adam",
            schedule="constant",
            train_epochs=40,
        ),
    )
    original = loop.learning_rate
    loop.learning_rate = lambda config, step, steps: 1e30
    try:
        with pytest.raises(failures.Diverged, match=r"epoch \d+, step \d+, cases \w+"):
            run.train_run(broken, tmp_path, progress=False)
    finally:
        loop.learning_rate = original
    status = run_folder.read_status(run_folder.run_dir(tmp_path, broken))
    assert status["state"] == "diverged" and "cases" in status["error"]


def test_moved_frozen_weights_fail_the_run(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", "after", "after", "after"])
    for module in ("state", "run"):
        monkeypatch.setattr(f"mvl.training.{module}.frozen_sha256", lambda _: next(digests))
    with pytest.raises(files.RunError, match="frozen weights changed"):
        run.train_run(config, tmp_path, progress=False)
    assert run_folder.read_status(run_folder.run_dir(tmp_path, config))["state"] == "failed"


def test_accumulation_gives_the_same_gradient(config: Config, tmp_path: Path) -> None:
    from mvl.datasets import registry, splits
    from mvl.datasets.loaders import CaseStore, training_loader

    task = registry.find_task("phantoms")
    store = CaseStore(
        TaskData(task), splits.load_split(TaskData(task), 0, 0.1).train[:4], config.data
    )
    batch, gradients = None, []
    for accumulate in (1, 2):
        changed = replace(
            config,
            train=replace(config.train, accumulate=accumulate, grad_clip=0.0),
            model=replace(config.model, dropout_rate=0.0),
        )
        trainer = loop.Trainer(changed, store, store, tmp_path, "")
        batch = batch or next(iter(training_loader(store, config, 0, 0, 0, 1)))
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda set_to_none: None
        trainer.update(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_two_processes_take_the_step_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gloo under torchrun: same gradient as one process; three validation cases end, with the first
    process's BatchNorm statistics."""
    script = tmp_path / "step.py"
    script.write_text(STEP)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "29613",
        str(script),
        str(tmp_path / "two"),
    ]
    pair = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one")])
    runpy.run_path(str(script))
    errors = pair.communicate(timeout=200)[1]
    assert pair.returncode == 0, errors[-2000:]
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    assert torch.allclose(one, two, atol=1e-6) and one.abs().sum() > 0


STEP = """
import sys
from pathlib import Path
import torch
from mvl.core.config import Config, build
from mvl.datasets.loaders import CaseStore, training_loader
from mvl.datasets.splits import load_split
from mvl.datasets.task_data import open_task
from mvl.training.loop import Trainer
config = build(Config, {"data": {"img_size": [16, 16, 16]}, "train": {"grad_clip": 0.0},
                        "model": {"encoder_layers": 1, "decoder_layers": 1,
                                  "dropout_rate": 0.0}}, "test")
data = open_task("phantoms")
store = CaseStore(data, load_split(data, 0, 0.1).train[:3], config.data)
trainer = Trainer(config, store, store, Path(sys.argv[1]), "")
trainer.optimizer.step = lambda: None
trainer.optimizer.zero_grad = lambda set_to_none: None
rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
for batch in training_loader(store, config, 0, 0, rank, world):
    trainer.update(batch, len(batch["cases"]) * world / 3)
trainer.validate()
cnn = build(Config, {"data": {"img_size": [16, 16, 16]},
                     "model": {"architecture": "cnn", "channels": [4, 8], "depths": [1, 1],
                               "kernel_sizes": [3, 3]}}, "test")
normed = Trainer(cnn, store, store, Path(sys.argv[1]), "")
for batch in training_loader(store, cnn, 0, 0, rank, world):
    normed.update(batch, len(batch["cases"]) * world / 3)
loss = normed.validate()[0]
with torch.no_grad():
    cases = [store.get(i) for i in range(3)]
    alone = sum(normed.loss(normed.network(x[None]), y[None].float()).item() for x, y in cases) / 3
kept = [torch.zeros(1) for _ in range(world)]
if world == 2:
    torch.distributed.all_gather(kept, torch.tensor([alone]))
    assert kept[0] == kept[1], "BatchNorm statistics differ between processes"
assert abs(loss - alone) < 1e-6, (loss, alone)
if rank == 0:
    torch.save(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]), sys.argv[1])
"""


def test_promised_processes_must_take_part(monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises((files.RunError, ValueError, RuntimeError)):
        devices.start_accelerator(config)


def test_validation_loss_is_finite_in_the_history(whole: Path) -> None:
    rows = (whole / "history.csv").read_text().splitlines()[1:]
    assert all(math.isfinite(float(value)) for row in rows for value in row.split(","))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"accumulate": 2},
        {"optimizer": "adam", "schedule": "constant", "val_interval": 3},
    ],
)
def test_training_switches_reach_the_end(
    config: Config, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = run.train_run(
        replace(config, train=replace(config.train, **changes)), tmp_path, progress=False
    )
    rows = (folder / "history.csv").read_text().splitlines()
    assert run_folder.is_done(folder, need_weights=True) and len(rows) == 5
    assert rows[1].endswith(",,") is ("val_interval" in changes)
