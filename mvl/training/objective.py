"""What training minimises and follows: loss, optimiser, learning rate, and the Dice that selects
the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn

from mvl.core.config import Config
from mvl.core.shapes import Image, Labels, Logits
from mvl.datasets.task import Task
from mvl.models.deterministic_layers import GPUS, on_gpu


def num_classes(config: Config, task: Task) -> int:
    """Channels of the logits: 1 (foreground, sigmoid) or labels + 1 (softmax)."""
    return 1 if config.data.labels == "foreground" else len(task.labels) + 1


def one_hot(label: Tensor, classes: int) -> Tensor:
    """Labels (B, 1, *S) as one channel of zeros and ones for each class, (B, classes, *S), in
    float32."""
    return torch.cat([(label == k).float() for k in range(classes)], dim=1)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy of logits (B, K, *S) and labels (B, 1, *S).

    On a GPU the sum over labels that are looked up by index has no deterministic order, the one
    over a one-hot code has.
    """
    if on_gpu(logits):
        return F.cross_entropy(logits, one_hot(label, logits.shape[1]).to(logits.dtype))
    return F.cross_entropy(logits, label[:, 0].long())


class DiceAndCrossEntropy(DiceCELoss):
    """MONAI's DiceCELoss of several classes with a cross-entropy that is deterministic on a GPU."""

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        """The mean cross-entropy of logits (B, K, *S) and labels (B, 1, *S)."""
        return cross_entropy(input, target)


class BCEDice(nn.Module):
    """0.5 cross-entropy + soft Dice loss of logits (B, K, *S) and labels (B, 1, *S), both means
    over cases.

    Dice of a case and class is (2 sum(p y) + 1e-5) / (sum(p) + sum(y) + 1e-5): an empty label asks
    for a prediction of nearly nothing. One class: sigmoid and binary cross-entropy; several:
    softmax, Dice over the foreground classes.

    Source: LLM4Seg, released `utils/losses.py` (BCEDiceLoss).
    """

    smooth = 1e-5

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss, a scalar."""
        if logits.shape[1] == 1:
            entropy, probabilities, true = (
                F.binary_cross_entropy_with_logits(logits, label),
                logits.sigmoid(),
                label,
            )
        else:
            entropy, probabilities = cross_entropy(logits, label), logits.softmax(1)[:, 1:]
            true = torch.stack(
                [(label[:, 0] == k).to(logits.dtype) for k in range(1, logits.shape[1])], dim=1
            )
        p, y = probabilities.flatten(2), true.flatten(2)
        dice = (2 * (p * y).sum(2) + self.smooth) / (p.sum(2) + y.sum(2) + self.smooth)
        return 0.5 * entropy + 1 - dice.mean()


class ReleasedLoss(nn.Module):
    """0.5 BCE + 0.5 (1 - Dice of the thresholded mask), one class, Dice over the whole batch with
    smoothing 1: only BCE has a gradient.

    For the audit alone. Source: MedVisionLlama, released `losses.py` (DiceBCELoss).
    """

    def hard_dice(self, logits: Tensor, label: Tensor) -> Tensor:
        """1 - Dice of `probability > 0.5`, a scalar that no weight has a part in."""
        mask = (logits > 0).float()
        return 1 - (2 * (mask * label).sum() + 1) / (mask.sum() + label.sum() + 1)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss, a scalar."""
        return 0.5 * F.binary_cross_entropy_with_logits(logits, label) + 0.5 * self.hard_dice(
            logits, label
        )


def build_loss(classes: int, name: str = "dice_ce") -> nn.Module:
    """dice_ce: Dice + BCE (one class) or Dice + cross-entropy, mean over cases, with a gradient
    through both; the others by their class.

    Source: arXiv 2410.02458 v3, loss. Differs: Dice of probabilities, not of thresholded output,
    whose gradient is zero.
    """
    if name == "bce_dice":
        return BCEDice()
    if name == "bce_dice_released":
        return ReleasedLoss()
    if classes == 1:
        return DiceCELoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)
    return DiceAndCrossEntropy(
        softmax=True, to_onehot_y=True, include_background=False, smooth_nr=1.0, smooth_dr=1.0
    )


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Adam; AdamW that decays matrices alone; or SGD with momentum that decays everything that is
    trained, as LLM4Seg.

    On a CUDA GPU, and on a CPU in bf16, each step is one fused kernel; on a CPU in fp32 it is not,
    so that recorded runs repeat. A step that is recorded as a graph (`train.cuda_graph`) reads its
    rate from a tensor, which `set_rate` fills.
    """
    train = config.train
    everything = [p for p in model.parameters() if p.requires_grad]
    kinds = {p.device.type for p in everything}
    on_gpus = bool(kinds & GPUS)
    fused = True if on_gpus or (kinds == {"cpu"} and train.precision == "bf16") else None
    recorded = train.cuda_graph and on_gpus
    rate = torch.tensor(train.lr, device=everything[0].device) if recorded else train.lr
    if train.optimizer == "sgd":
        return torch.optim.SGD(
            everything,
            lr=rate,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            fused=fused,
        )
    trained = [
        p
        for n, p in model.named_parameters()
        if p.requires_grad and p.ndim >= 2 and "positions" not in n
    ]
    exempt = [
        p
        for n, p in model.named_parameters()
        if p.requires_grad and (p.ndim < 2 or "positions" in n)
    ]
    if train.optimizer == "adam":
        return torch.optim.Adam([*trained, *exempt], lr=rate, fused=fused, capturable=recorded)
    groups = [
        {"params": trained, "weight_decay": train.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, fused=fused, capturable=recorded)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the optimiser's next step go at `rate`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Rate of optimiser step `step` of `steps`: a function of the step alone, so that there is no
    scheduler state."""
    if config.train.schedule == "constant":
        return config.train.lr
    if config.train.schedule == "poly":
        return config.train.lr * (1 - step / steps) ** 0.9
    warm = max(1, round(config.train.warmup_fraction * steps))
    if step < warm:
        return config.train.lr * (step + 1) / warm
    return config.train.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def predict_probabilities(model: Callable[[Image], Logits], image: Image) -> Logits:
    """Class probabilities (B, K, *S): sigmoid for one class, softmax for several."""
    logits = model(image).float()
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


def is_better(row: dict[str, Any], before: list[dict[str, Any]], select: str) -> bool:
    """True when an epoch's row beats every validated one before it: highest Dice of the watched
    cases or, for `train_loss`, lowest training loss."""
    validated = [old for old in before if "val_dice" in old]
    if select == "train_loss":
        return all(row["train_loss"] < old["train_loss"] for old in validated)
    return all(row["val_dice"] > old["val_dice"] for old in validated)


def foreground_dice(logits: Logits, label: Labels) -> Tensor:
    """Dice of the whole foreground on the resized grid, one per case (B,); 1 where both lack it."""
    predicted = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1) > 0
    true, axes = label[:, 0] > 0, tuple(range(1, label.ndim - 1))
    both, total = (predicted & true).sum(axes), predicted.sum(axes) + true.sum(axes)
    return torch.where(total > 0, 2 * both / total, 1.0)
