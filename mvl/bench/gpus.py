"""GPUs that a plan can name, by their data sheets, and what `make gpu` measured of a card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mvl.bench import gpu_record

GPU_SHARE, LAUNCH_S = 0.25, 0.01
"""Assumed of a card that `make gpu` has not measured: the share of its published peak (the networks
are narrow), and the seconds of a step or of a validation batch beside its products (some 400 to 900
operators are launched one by one)."""


@dataclass(frozen=True)
class Device:
    """Something that runs are computed on: dense peaks in GFLOP/s, by precision."""

    name: str
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    memory_mb: float
    count: int = 1

    def peak(self, precision: str) -> float:
        """The peak in this precision (fp32, tf32, bf16, fp16), GFLOP/s."""
        return float(getattr(self, precision))


GPUS = {
    gpu.name: gpu
    for gpu in (
        Device("h100", 67e3, 494e3, 989e3, 989e3, 80e3),
        Device("h200", 67e3, 494e3, 989e3, 989e3, 141e3),
        Device("a100", 19.5e3, 156e3, 312e3, 312e3, 80e3),
        Device("l4", 30.3e3, 60e3, 121e3, 121e3, 24e3),
        Device("t4", 8.1e3, 8.1e3, 8.1e3, 65e3, 15e3),
    )
}
"""NVIDIA's data sheets (H100 SXM, H200 SXM, A100 SXM 80 GB, L4, T4), without sparsity: fp32 outside
the tensor cores, the others in them. A T4 has neither TF32 nor bf16: the first is computed as fp32,
the second emulated at fp32's rate at best."""


@dataclass(frozen=True)
class Measured:
    """What a card did in the eager training steps of `make gpu`, in one precision."""

    card: str
    "The card's own name."
    gflops: float
    "Rate of the workload that went fastest, GFLOP/s."
    step_s: float
    "Shortest step of any workload, which is launches more than products, seconds."


def is_card(device: str, card: str) -> bool:
    """Whether a card's own name (`NVIDIA H100 80GB HBM3`, `Tesla T4`, `A100-SXM4-80GB`) is that of
    a device (`h100`)."""
    return device.upper() in re.split(r"[^A-Z0-9]+", card.upper())


def device_of_card(card: str) -> str:
    """The name of the device that a card is, or "" where it is none of `GPUS`."""
    return next((name for name in GPUS if is_card(name, card)), "")


def measured(lines: Sequence[dict[str, Any]], device: str, precision: str) -> Measured | None:
    """The figures of a device from the lines of `data/gpu.json`; None where no step of that
    precision was measured on it."""
    mine = [
        (line["card"], line["facts"])
        for line in lines
        if line["item"] == "steps"
        and line["state"] == "done"
        and is_card(device, line["card"])
        and (line["facts"]["precision"], line["facts"]["mode"]) == (precision, "eager")
        and line["facts"].get("gflop")
    ]
    if not mine:
        return None
    return Measured(
        mine[0][0],
        max(fact["gflop"] / fact["seconds"] for _, fact in mine),
        min(fact["seconds"] for _, fact in mine),
    )


def speed(device: Device, precision: str) -> Measured:
    """How fast a GPU computes in a precision and what a step costs beside: measured on such a card,
    else assumed (its `card` is then empty)."""
    assumed = Measured("", GPU_SHARE * device.peak(precision), LAUNCH_S)
    return measured(gpu_record.read_lines(gpu_record.RECORD), device.name, precision) or assumed
