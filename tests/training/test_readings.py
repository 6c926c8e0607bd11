"""What steps leave on the device is read whole, in order, and by each step's own name."""

from __future__ import annotations

import torch
from torch import Tensor

from mvl.training.readings import Reading, values_of


def reading(step: int, losses: list[float], norm: float) -> Reading:
    return Reading(
        2, step, ("a", "b"), [torch.tensor(loss) for loss in losses], torch.tensor([norm])
    )


def test_parts_of_a_step_are_summed_and_steps_kept_apart() -> None:
    read = values_of(
        [reading(0, [0.25, 0.5], 3.0), reading(1, [1.5], 4.0), reading(2, [0.125] * 3, 5.0)]
    )
    assert read == [(0.75, 3.0), (1.5, 4.0), (0.375, 5.0)]
    assert values_of([]) == []


def test_the_device_is_asked_once(monkeypatch) -> None:
    asked: list[int] = []
    tolist = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: asked.append(len(self)) or tolist(self))
    monkeypatch.setattr(Tensor, "item", lambda self: asked.append(-1))
    monkeypatch.setattr(Tensor, "__float__", lambda self: asked.append(-1))
    values_of([reading(step, [0.5], 1.0) for step in range(5)])
    assert asked == [10]


def test_a_step_says_where_it_stands() -> None:
    assert reading(7, [0.5], 1.0).place() == "epoch 2, step 7, cases a, b"
