"""What a step leaves on the device until somebody looks: its losses and its gradient's norm, and
what follows where one is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mvl.core.progress import Progress
from mvl.training.failures import Diverged
from mvl.training.precision import LEAST_SCALE, MAX_SKIPS


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


def take_over(
    readings: list[Reading], p: Progress, precision: str, scaler: torch.amp.GradScaler, folder: Path
) -> None:
    """Add the losses of steps to a run's progress, and count the steps that fp16 overflowed in.

    Raises:
        Diverged: a loss or gradient norm is not finite, or fp16 overflowed too often in a row.
    """
    for reading, (loss, norm) in zip(readings, values_of(readings)):
        finite = math.isfinite(loss) and math.isfinite(norm)
        p.skipped_in_a_row = 0 if finite else p.skipped_in_a_row + 1
        # In fp16 the scaler left the step out and lowers its scale; only a row of them is a fault.
        if not finite and (precision != "fp16" or p.skipped_in_a_row >= MAX_SKIPS):
            raise Diverged(
                f"{folder}: loss {loss}, gradient norm {norm} at {reading.place()}; "
                "lower train.lr, or look at these cases"
            )
        p.skipped += not finite
        if math.isfinite(loss):
            p.losses.append(loss)
    if p.skipped_in_a_row and scaler.get_scale() < LEAST_SCALE:
        raise Diverged(
            f"{folder}: gradients overflow fp16 even unscaled, at {readings[-1].place()};"
            " lower train.lr, or set train.precision to bf16 or fp32"
        )
