"""A recorded step takes full batches, short ones go the plain way, and what cannot be recorded goes
on with a line that says so.

A CPU records nothing: stand-ins take the place of CUDA's recorder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mvl.core.config import Config, build
from mvl.datasets import registry, splits
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task_data import TaskData
from mvl.training import step_graph
from mvl.training.loop import Trainer
from mvl.training.objective import build_optimizer, set_rate
from mvl.training.step_graph import WARM_STEPS, StepGraph, why_not

GPU = torch.device("cuda")
TINY = {
    "data": {"img_size": [16, 16, 16]},
    "train": {"train_epochs": 4, "batch_size": 2},
    "model": {
        "patch_size": [8, 8, 8],
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_size": 32,
        "mlp_dim": 64,
    },
}


def config_of(**changes: object) -> Config:
    config: Config = build(Config, TINY, "test")
    return replace(config, train=replace(config.train, cuda_graph=True, **changes))


def trainer_of(folder: Path, cases: int = 5) -> Trainer:
    config, task = config_of(), registry.find_task("phantoms")
    store = CaseStore(
        TaskData(task), splits.load_split(TaskData(task), 0, 0.3).train[:cases], config.data
    )
    return Trainer(config, store, store, folder, "")


class Way:
    """A step that notes which way a batch took, and a recorder beside it."""

    def __init__(self, fault: str = "") -> None:
        self.taken: list[str] = []
        self.fault = fault

    def plain(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        self.taken.append(f"plain {len(image)}")
        return image.sum(), label.sum()

    def record(self, step: step_graph.Step, image: Tensor, label: Tensor) -> step_graph.Step:
        self.taken.append("record")
        if self.fault:
            raise RuntimeError(self.fault)

        def replay(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
            self.taken.append("replay")
            return image.sum(), label.sum()

        return replay

    def steps(self, *sizes: int) -> None:
        graph = StepGraph(self.plain, 2, self.record)
        for size in sizes:
            loss, norm = graph(torch.ones(size), torch.ones(size) * 2)
            assert (loss.item(), norm.item()) == (size, 2 * size)


def test_full_batches_are_recorded_after_the_warm_steps_and_short_ones_go_the_plain_way() -> None:
    way = Way()
    way.steps(2, 1, *[2] * (WARM_STEPS + 1), 1, 2)
    assert way.taken == [
        "plain 2",
        "plain 1",
        *["plain 2"] * (WARM_STEPS - 1),
        "record",
        "replay",
        "replay",
        "plain 1",
        "replay",
    ]


def test_what_cannot_be_recorded_goes_the_plain_way_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    way = Way("CUDA error: operation not permitted when stream is capturing\nmore")
    way.steps(*[2] * (WARM_STEPS + 3))
    assert way.taken == [
        *["plain 2"] * WARM_STEPS,
        "record",
        *["plain 2"] * 3,
    ], "recording is tried once"
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and "operation not permitted when stream is capturing); steps go on one operator at a time"
        in said[0]
    )


def test_a_lost_gpu_is_not_taken_for_a_failed_recording() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Way("CUDA error: an illegal memory access was encountered").steps(*[2] * (WARM_STEPS + 1))


@pytest.mark.parametrize(
    ("changes", "device", "processes", "reason"),
    [
        ({}, GPU, 1, ""),
        ({"precision": "bf16"}, GPU, 1, ""),
        ({}, torch.device("cpu"), 1, "CUDA GPU"),
        ({"precision": "fp16"}, GPU, 1, "scaler"),
        ({"accumulate": 2}, GPU, 1, "accumulate"),
        ({}, GPU, 2, "processes"),
    ],
)
def test_runs_whose_steps_cannot_be_a_graph_say_why(
    changes: dict[str, object],
    device: torch.device,
    processes: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_of(**changes)
    found = why_not(config, device, processes)
    assert reason in found and bool(found) == bool(reason)
    made = step_graph.graph_of(lambda image, label: (image, label), config, device, processes)
    assert (made is None) == bool(reason)
    assert (reason in capsys.readouterr().err) and (made is None or made.batch_size == 2)


def test_a_cpu_run_with_the_switch_says_so_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tmp_path)
    assert trainer.graph is None and "needs a CUDA GPU" in capsys.readouterr().err


class _NoBar:
    def update(self) -> None:
        """Count nothing."""


def weights_after(trainer: Trainer, epochs: int = 2) -> Tensor:
    for epoch in range(epochs):
        trainer.progress.epoch, trainer.progress.step = epoch, 0
        trainer.train_epoch([], _NoBar())
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_the_whole_step_gives_the_weights_and_losses_of_the_plain_one(tmp_path: Path) -> None:
    """Through `Trainer.update`, with a recorder that replays by computing; five cases: two full
    batches and a short one."""
    plain, other = trainer_of(tmp_path), trainer_of(tmp_path)
    way = Way()
    other.graph = StepGraph(
        other.whole_step, 2, lambda step, image, label: way.taken.append("record") or step
    )
    assert torch.equal(weights_after(plain), weights_after(other))
    assert plain.progress.losses == other.progress.losses and way.taken == ["record"]


def test_a_whole_step_lets_old_gradients_go_first(tmp_path: Path) -> None:
    """A replay leaves its gradients behind: the next plain step must not add to them."""
    trainer = trainer_of(tmp_path)
    for parameter in trainer.network.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    image, label = (part[None] for part in trainer.train_cases.get(0))
    norms = []
    for either in (trainer, trainer_of(tmp_path)):
        torch.manual_seed(0)  # of dropout
        norms.append(either.whole_step(image, label)[1])
    assert torch.equal(*norms)


def test_a_rate_in_a_tensor_is_filled_in_place() -> None:
    network = nn.Linear(2, 2)
    held = torch.tensor(0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=held)
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is held and held.item() == 0.25
    plain = build_optimizer(config_of(), network)
    set_rate(plain, 0.25)
    assert {group["lr"] for group in plain.param_groups} == {0.25}, "on a CPU a rate stays a number"


def test_a_rate_in_a_tensor_survives_a_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    for group in trainer.optimizer.param_groups:
        group["lr"] = torch.tensor(0.125)
    trainer.save()
    other = trainer_of(tmp_path)
    assert other.restore()
    rates = [group["lr"] for group in other.optimizer.param_groups]
    assert all(
        isinstance(rate, Tensor) and rate.item() == 0.125 and rate.device == other.device
        for rate in rates
    )
