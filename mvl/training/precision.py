"""The numbers that a run computes with: fp32, tf32, bf16 or fp16, where each may be used, and what
is recorded of it.

Weights, losses, gradients and their norms are float32 in all four. In bf16 and fp16 the network's
matrix products and convolutions are taken in 16 bits (torch's autocast); sums inside its norms are
float32 still.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mvl.core import files
from mvl.core.machine import cpu_fields

SIXTEEN_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"Precisions that run under autocast, and its type."
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Processor flags of units that multiply bf16 numbers; other processors emulate them, slower than
fp32."""
MAX_SKIPS = 20
"Optimiser steps in a row that fp16 may overflow in; a run that needs more has diverged."
LEAST_SCALE = 1.0
"A gradient scale below this means that the gradients themselves overflow: the run has diverged."


def check_precision(precision: str, device: torch.device) -> None:
    """Return where `device` computes in `precision` itself, without emulation.

    Raises:
        RunError: it does not; the message says which precision to set instead.
    """
    fault = ""
    if precision == "bf16" and device.type == "cpu" and not processor_flags() & BF16_FLAGS:
        fault = (
            "this processor has no bf16 units (AVX512-BF16 or AMX) and would emulate them; set it"
            " to fp32"
        )
    elif (
        precision == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        fault = f"{torch.cuda.get_device_name(device)} emulates bf16; set it to fp16"
    elif precision == "fp16" and device.type != "cuda":
        fault = "fp16 needs a CUDA GPU; set it to fp32, or to bf16 where the processor has it"
    elif precision == "tf32" and device.type != "cuda":
        fault = "tf32 is a mode of CUDA GPUs; set it to fp32"
    elif precision == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        fault = f"{torch.cuda.get_device_name(device)} has no tf32 units; set it to fp32"
    if fault:
        raise files.RunError(f"train.precision {precision}: {fault}")


def processor_flags() -> frozenset[str]:
    """The feature flags of the processor, as Linux names them; empty where they are not known."""
    return frozenset(cpu_fields().get("flags", "").split())


def set_flags(precision: str) -> None:
    """Let matrix products and convolutions round to TF32 in `tf32` and in no other precision.

    torch's own defaults differ between the two, so that the arms of one "fp32" study would differ
    too.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def facts_of(precision: str) -> dict[str, Any]:
    """What is recorded of a run's precision: its name and both TF32 flags, read back from torch."""
    return {
        "precision": precision,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
    }


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A block in which the network computes in `precision`; losses belong outside of it."""
    kind = SIXTEEN_BITS.get(precision)
    return torch.autocast(device.type, dtype=kind) if kind else nullcontext()


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of losses that keeps small gradients from vanishing in fp16; in other precisions it
    does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
