"""What a step leaves on the device until somebody looks: its losses and its gradient's norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """One step's numbers, not read yet."""

    epoch: int
    step: int
    cases: tuple[str, ...]
    losses: list[Tensor]
    "One scalar for each part of the batch; their sum is the step's loss."
    norm: Tensor
    "Norm of the gradient before it was clipped, a scalar."

    def place(self) -> str:
        """Where the step stands in the run, and its cases."""
        return f"epoch {self.epoch}, step {self.step}, cases {', '.join(self.cases)}"


def values_of(readings: list[Reading]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, read from the device all at once."""
    scalars = [
        scalar.reshape(()) for reading in readings for scalar in (*reading.losses, reading.norm)
    ]
    if not scalars:
        return []
    numbers = iter(torch.stack(scalars).tolist())
    return [(sum(next(numbers) for _ in reading.losses), next(numbers)) for reading in readings]
