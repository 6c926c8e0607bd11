"""What is minimised has a gradient, the rate is a function of the step, and AdamW decays matrices
alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mvl.core.config import Config, DataConfig, ModelConfig, TrainConfig
from mvl.datasets.registry import find_task
from mvl.models.vit import ViTBaseline
from mvl.training import objective


@pytest.mark.parametrize("classes", [1, 3])
def test_both_halves_of_the_loss_have_a_gradient(classes: int) -> None:
    logits, label = (
        torch.zeros(2, classes, 4, 4, 4, requires_grad=True),
        torch.randint(0, 2, (2, 1, 4, 4, 4)).float(),
    )
    loss = objective.build_loss(classes)
    dice, cross = (
        loss.dice(logits, label),
        (loss.bce(logits, label) if classes == 1 else loss.ce(logits, label)),
    )
    for part in (dice, cross):
        assert torch.autograd.grad(part, logits, retain_graph=True)[0].abs().sum() > 0


def test_the_released_loss_follows_cross_entropy_alone() -> None:
    logits, label = (
        torch.randn(2, 1, 4, 4, 4, requires_grad=True),
        torch.randint(0, 2, (2, 1, 4, 4, 4)).float(),
    )
    loss = objective.build_loss(1, "bce_dice_released")
    assert (
        isinstance(loss, objective.ReleasedLoss) and not loss.hard_dice(logits, label).requires_grad
    )
    half = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
    assert torch.equal(
        torch.autograd.grad(loss(logits, label), logits)[0], torch.autograd.grad(half, logits)[0]
    )
    assert loss.hard_dice(20 * (2 * label - 1), label) == 0 and loss(logits, label) > half


def test_the_epoch_is_chosen_by_the_highest_dice_or_the_lowest_training_loss() -> None:
    """Only epochs that were validated count, and an equal one is not better."""
    rows = [
        {"train_loss": 0.3, "val_dice": 0.5},
        {"train_loss": 0.1},
        {"train_loss": 0.2, "val_dice": 0.4},
    ]
    better = objective.is_better
    assert better(rows[0], [], "val") and better(rows[0], rows[1:], "test")
    assert not better(rows[2], rows[:2], "val") and not better(rows[0], rows[:1], "val")
    assert better(rows[2], rows[:2], "train_loss") and not better(rows[2], rows, "train_loss")
    assert not better(rows[0], rows, "train_loss")


@pytest.mark.parametrize(("share", "warm"), [(0.1, 3), (0.25, 8), (0.0, 1), (0.01, 1), (1.0, 31)])
def test_the_rate_rises_in_a_line_and_falls_along_a_cosine(share: float, warm: int) -> None:
    """Every step of 31 by hand; the warm-up takes at least one step."""
    config = Config(train=TrainConfig(lr=0.03, warmup_fraction=share))
    rates = [objective.learning_rate(config, step, 31) for step in range(31)]
    rise = [0.03 * (step + 1) / warm for step in range(warm)]
    fall = 0.015 * (1 + np.cos(np.pi * np.arange(31 - warm) / max(1, 31 - warm)))
    assert rates == pytest.approx([*rise, *fall], rel=1e-12)


def test_the_rate_falls_as_a_power_or_stays() -> None:
    poly = Config(train=TrainConfig(lr=0.03, schedule="poly"))
    rates = [objective.learning_rate(poly, step, 31) for step in range(31)]
    assert rates == pytest.approx(0.03 * (1 - np.arange(31) / 31) ** 0.9, rel=1e-12)
    constant = Config(train=TrainConfig(lr=0.03, schedule="constant"))
    assert {objective.learning_rate(constant, step, 31) for step in range(31)} == {0.03}


@pytest.mark.parametrize(("classes", "size"), [(1, (3, 5)), (3, (3, 5)), (1, (2, 3, 4)), (4, (9,))])
def test_foreground_dice_by_counting(classes: int, size: tuple[int, ...]) -> None:
    """Each case alone, whatever its labels: both empty, one voxel of either, and as they come."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes + 2, (6, 1, *size)).astype(np.uint8)
    logits = rng.integers(-1, 2, (6, classes, *size)) * np.float32(0.5)
    marked = logits[:, 0] > 0 if classes == 1 else logits.argmax(1) > 0
    nothing = np.array([-1.0, *[-2.0] * (classes - 1)]).reshape(classes, *[1] * len(size))
    label[:2], logits[[0, 2, 3]], marked[[0, 2, 3]] = 0, nothing, False
    label[3].flat[0] = 1
    label[2] = 0
    logits[2, -1].flat[4], marked[2].flat[4] = 3, True
    wanted = []
    for predicted, true in zip(marked, label[:, 0] > 0):
        total = int(predicted.sum() + true.sum())
        wanted.append(2 * int((predicted & true).sum()) / total if total else 1.0)
    found = objective.foreground_dice(torch.from_numpy(logits), torch.from_numpy(label))
    assert found.dtype == torch.float32 and found.tolist() == pytest.approx(wanted)
    assert wanted[0] == 1 and wanted[1:4] == [0, 0, 0] and 0 < wanted[4] < 1


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_are_those_of_the_classes_in_float32(classes: int) -> None:
    logits = torch.randn(2, classes, 4, 5).bfloat16()
    found = objective.predict_probabilities(torch.nn.Identity(), logits)
    powers = logits.float().exp()
    wanted = powers / (powers.sum(1, keepdim=True) if classes > 1 else 1 + powers)
    assert found.dtype == torch.float32 and torch.allclose(found, wanted, atol=1e-6)


def test_classes_are_the_foreground_or_the_background_and_every_label() -> None:
    task = find_task("hippocampus")
    assert len(task.labels) == 2
    numbers = [
        objective.num_classes(Config(data=DataConfig(labels=labels)), task)
        for labels in ("foreground", "all")
    ]
    assert numbers == [1, 3]


def test_one_hot_has_a_channel_for_each_class() -> None:
    label = torch.tensor([[[[0, 2], [1, 0]]], [[[2, 2], [1, 1]]]], dtype=torch.uint8)
    found = objective.one_hot(label, 3)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 2, 2)
    assert torch.equal(found, torch.eye(3)[label[:, 0].long()].movedim(-1, 1))


@pytest.mark.parametrize("gpu", [False, True])
def test_cross_entropy_is_minus_the_log_of_the_labels_probability(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the way that is taken on a GPU, in the type of the logits."""
    monkeypatch.setattr(objective, "on_gpu", lambda tensor: tensor.shape == (2, 3, 4, 5) and gpu)
    logits, label = torch.randn(2, 3, 4, 5).double(), torch.randint(0, 3, (2, 1, 4, 5))
    wanted = -logits.softmax(1).log().gather(1, label).mean()
    for found in (
        objective.cross_entropy(logits, label.to(torch.uint8)),
        objective.build_loss(3).ce(logits, label.float()),
    ):
        assert found.dtype == torch.float64 and found.item() == pytest.approx(wanted.item())


def soft_dice(p: torch.Tensor, y: torch.Tensor, smooth: float) -> torch.Tensor:
    """1 - Dice of each case and class, by the formula."""
    both, total = (p * y).flatten(2).sum(2), (p + y).flatten(2).sum(2)
    return 1 - (2 * both + smooth) / (total + smooth)


def few_voxels(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of three small cases, the last of which holds nothing and predicts nearly
    nothing: there the smoothing counts."""
    logits = 2 * torch.randn(3, classes, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    label = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0] * 6]).reshape(3, 1, 2, 3)
    label = label * torch.tensor([1, 1, max(1, classes - 1)]).repeat(2)[:6].reshape(2, 3)
    logits[2] = -12.0
    logits[2, 0] = 12.0 if classes > 1 else -12.0
    return logits, label.double()


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of the foreground classes."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)[:, 1:]


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize(("name", "weight", "smooth"), [("dice_ce", 1, 1), ("bce_dice", 0.5, 1e-5)])
def test_a_loss_is_cross_entropy_and_dice_by_the_formula(
    classes: int, name: str, weight: float, smooth: float
) -> None:
    logits, label = few_voxels(classes)
    p = probabilities(logits)
    y = torch.cat([label == k for k in range(1, max(2, classes))], 1).double()
    if classes == 1:
        entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    else:
        entropy = -logits.softmax(1).log().gather(1, label.long()).mean()
    wanted = weight * entropy + soft_dice(p, y, smooth).mean()
    found = objective.build_loss(classes, name)(logits, label)
    assert found.shape == () and found.item() == pytest.approx(wanted.item(), rel=1e-9)


def test_the_released_loss_by_the_formula() -> None:
    logits, label = few_voxels(1)
    logits[0, 0, 0, 0] = 0.0
    logits[0, 0, 0, 1] = 0.7
    p, mask = logits.sigmoid(), logits > 0
    entropy = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    both, total = float((label * mask).sum()), float(label.sum() + mask.sum())
    wanted = 0.5 * entropy + 0.5 * (1 - (2 * both + 1) / (total + 1))
    assert objective.build_loss(1, "bce_dice_released")(logits, label).item() == pytest.approx(
        wanted.item(), rel=1e-9
    )


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_adamw_decays_matrices_alone_and_adam_nothing(name: str) -> None:
    """Each trained tensor is in one group; vectors and positions are not decayed."""
    network = ViTBaseline(ModelConfig(encoder_layers=1, decoder_layers=1), (8, 8, 8), 1, 1)
    network.head.requires_grad_(False)
    train = TrainConfig(optimizer=name, lr=0.03, weight_decay=0.07)
    optimizer = objective.build_optimizer(Config(train=train), network)
    matrices, rest = [], []
    for title, p in network.named_parameters():
        if p.requires_grad:
            (matrices if p.ndim == 2 and title != "positions" else rest).append(id(p))
    found = [([id(p) for p in g["params"]], g["weight_decay"]) for g in optimizer.param_groups]
    if name == "adamw":
        assert found == [(matrices, 0.07), (rest, 0.0)]
    else:
        assert found == [([*matrices, *rest], 0)]
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    assert all(group["lr"] == 0.03 and not group["capturable"] for group in optimizer.param_groups)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_on_a_gpu_a_step_is_fused_and_a_recorded_one_reads_its_rate_from_a_tensor(
    name: str, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for the GPU."""
    monkeypatch.setattr(objective, "GPUS", {"cpu"})
    train = TrainConfig(optimizer=name, lr=0.03, cuda_graph=recorded)
    optimizer = objective.build_optimizer(Config(train=train), torch.nn.Linear(3, 3))
    assert optimizer.defaults["fused"] is True
    assert name == "sgd" or optimizer.defaults["capturable"] is recorded
    for group in optimizer.param_groups:
        assert isinstance(group["lr"], torch.Tensor) is recorded
        assert float(group["lr"]) == pytest.approx(0.03)


def test_the_next_step_goes_at_the_rate_that_is_set() -> None:
    for rate in (0.1, torch.tensor(0.1)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate)
        objective.set_rate(optimizer, 0.25)
        (group,) = optimizer.param_groups
        assert float(group["lr"]) == 0.25
        assert isinstance(rate, float) or group["lr"] is rate


@pytest.mark.parametrize("classes", [1, 3])
def test_bce_dice_falls_with_the_error(classes: int) -> None:
    logits = torch.randn(2, classes, 6, 5, requires_grad=True)
    label = torch.randint(0, max(2, classes), (2, 1, 6, 5)).float()
    loss = objective.build_loss(classes, "bce_dice")(logits, label)
    assert torch.autograd.grad(loss, logits)[0].abs().min() > 0
    truth = torch.nn.functional.one_hot(label[:, 0].long(), max(2, classes)).movedim(-1, 1).float()
    right = (truth if classes > 1 else truth[:, 1:]) * 40 - 20
    assert objective.build_loss(classes, "bce_dice")(right, label).item() < 0.01 < loss.item()


def test_bce_dice_of_parts_of_a_batch_adds_up_to_that_of_the_whole() -> None:
    logits, label, loss = (
        torch.randn(4, 1, 5, 5),
        torch.randint(0, 2, (4, 1, 5, 5)).float(),
        objective.build_loss(1, "bce_dice"),
    )
    label[3] = 0
    parts = sum(loss(logits[k : k + 1], label[k : k + 1]).item() / 4 for k in range(4))
    assert loss(logits, label).item() == pytest.approx(parts, rel=1e-5)


def test_sgd_decays_everything_that_is_trained() -> None:
    config = replace(
        Config(),
        train=replace(TrainConfig(), optimizer="sgd", lr=0.1, momentum=0.5, weight_decay=0.2),
    )
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)
    )
    model[2].requires_grad_(False)
    optimizer = objective.build_optimizer(config, model)
    (group,) = optimizer.param_groups
    names = ("lr", "momentum", "weight_decay", "nesterov")
    assert len(group["params"]) == 4 and [group[n] for n in names] == [0.1, 0.5, 0.2, False]
    before = model[0].bias.detach().clone()
    model[0].bias.grad = torch.zeros(3)
    optimizer.step()
    assert torch.allclose(model[0].bias, before * (1 - 0.1 * 0.2))


@pytest.mark.parametrize(("precision", "fused"), [("fp32", None), ("bf16", True)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimiser_is_one_kernel_on_a_cpu_in_bf16_alone(
    optimizer: str, precision: str, fused: bool | None
) -> None:
    train = replace(TrainConfig(), optimizer=optimizer, precision=precision)
    model = torch.nn.Linear(2, 2)
    assert objective.build_optimizer(Config(train=train), model).defaults["fused"] is fused
    model.bias = torch.nn.Parameter(torch.zeros(2, device="meta"))
    assert objective.build_optimizer(Config(train=train), model).defaults["fused"] is None
