"""What is minimised has a gradient, the rate is a function of the step, and AdamW decays matrices
alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mvl.core.config import Config, ModelConfig, TrainConfig
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
    rows = [
        {"train_loss": 0.3, "val_dice": 0.5},
        {"train_loss": 0.1},
        {"train_loss": 0.2, "val_dice": 0.4},
    ]
    assert objective.is_better(rows[0], [], "val") and not objective.is_better(
        rows[2], rows[:2], "val"
    )
    assert objective.is_better(rows[2], rows[:2], "train_loss") and objective.is_better(
        rows[0], rows[1:], "test"
    )
    assert not objective.is_better(rows[0], rows[:1], "val")


def test_schedule_warms_up_and_ends_at_zero() -> None:
    config = Config()
    rates = [objective.learning_rate(config, step, 100) for step in range(100)]
    assert (
        rates.index(max(rates)) in (9, 10)
        and max(rates) == pytest.approx(config.train.lr)
        and rates[-1] < 0.01 * config.train.lr
    )
    constant = replace(config, train=replace(TrainConfig(), schedule="constant"))
    assert {objective.learning_rate(constant, step, 100) for step in range(100)} == {
        constant.train.lr
    }


def test_foreground_dice_counts_every_label() -> None:
    logits, label = torch.full((1, 1, 4, 4), -1.0), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert objective.foreground_dice(logits, label).item() == 1
    label[0, 0, :2], logits[0, 0, 1:3] = 2, 1
    assert objective.foreground_dice(logits, label).item() == pytest.approx(0.5)


def test_foreground_dice_of_several_classes_and_cases() -> None:
    label = torch.tensor([[[[0, 1], [2, 2]]], [[[0, 0], [0, 0]]]], dtype=torch.uint8)
    logits = (
        torch.nn.functional.one_hot(torch.tensor([[[0, 2], [1, 0]], [[0, 0], [0, 1]]]), 3)
        .permute(0, 3, 1, 2)
        .float()
    )
    assert objective.foreground_dice(logits, label).tolist() == pytest.approx([0.8, 0.0])


@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_add_up(classes: int) -> None:
    probabilities = objective.predict_probabilities(
        torch.nn.Identity(), torch.randn(2, classes, 4, 4)
    )
    assert probabilities.min() > 0 and probabilities.max() < 1
    assert classes == 1 or torch.allclose(probabilities.sum(1), torch.ones(2, 4, 4))


def test_adamw_decays_matrices_alone_and_adam_nothing() -> None:
    network = ViTBaseline(ModelConfig(encoder_layers=1, decoder_layers=1), (8, 8, 8), 1, 1)
    network.head.requires_grad_(False)
    decayed, exempt = objective.build_optimizer(Config(), network).param_groups
    assert decayed["weight_decay"] == 0.01 and exempt["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decayed["params"]) and any(
        p is network.positions for p in exempt["params"]
    )
    trained = sum(p.requires_grad for p in network.parameters())
    assert len(decayed["params"]) + len(exempt["params"]) == trained
    adam = objective.build_optimizer(Config(train=TrainConfig(optimizer="adam")), network)
    assert [group["weight_decay"] for group in adam.param_groups] == [0]


@pytest.mark.parametrize("classes", [1, 3])
def test_bce_dice_is_the_released_formula_and_falls_with_the_error(classes: int) -> None:
    torch.manual_seed(0)
    logits, label = (
        torch.randn(2, classes, 6, 5, requires_grad=True),
        torch.randint(0, max(2, classes), (2, 1, 6, 5)).float(),
    )
    loss = objective.build_loss(classes, "bce_dice")(logits, label)
    if classes == 1:
        p, y = logits[:, 0].sigmoid(), label[:, 0]
        entropy = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
        dice = torch.stack(
            [(2 * (a * b).sum() + 1e-5) / (a.sum() + b.sum() + 1e-5) for a, b in zip(p, y)]
        )
        assert loss.item() == pytest.approx((0.5 * entropy + 1 - dice.mean()).item(), abs=1e-5)
    assert torch.autograd.grad(loss, logits)[0].abs().min() > 0
    truth = torch.nn.functional.one_hot(label[:, 0].long(), max(2, classes)).movedim(-1, 1).float()
    right = (truth if classes > 1 else truth[:, 1:]) * 40 - 20
    assert objective.build_loss(classes, "bce_dice")(right, label).item() < 0.01 < 0.8 < loss.item()


def test_bce_dice_of_parts_of_a_batch_adds_up_to_that_of_the_whole() -> None:
    logits, label, loss = (
        torch.randn(4, 1, 5, 5),
        torch.randint(0, 2, (4, 1, 5, 5)).float(),
        objective.build_loss(1, "bce_dice"),
    )
    label[3] = 0
    parts = sum(loss(logits[k : k + 1], label[k : k + 1]).item() / 4 for k in range(4))
    assert loss(logits, label).item() == pytest.approx(parts, rel=1e-5)


def test_poly_falls_from_the_first_step_to_nearly_zero() -> None:
    config = replace(Config(), train=replace(TrainConfig(), schedule="poly", lr=0.01))
    rates = [objective.learning_rate(config, step, 100) for step in range(100)]
    assert (
        rates[0] == 0.01
        and rates == sorted(rates, reverse=True)
        and rates[50] == pytest.approx(0.01 * 0.5**0.9)
        and 0 < rates[-1] < 2e-4
    )


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
    assert len(group["params"]) == 4 and (
        group["momentum"],
        group["weight_decay"],
        group["nesterov"],
    ) == (0.5, 0.2, False)
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
    found = objective.build_optimizer(Config(train=train), torch.nn.Linear(2, 2))
    assert found.defaults["fused"] is fused
