"""What the children of `make gpu` share: how they tell each part to their parent, and how they
take time and memory on the card."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from mvl.bench.clock import step_memory_mb
from mvl.bench.gpu_children import MARK
from mvl.core.config import Config
from mvl.core.files import RunError
from mvl.study import gpu_slots
from mvl.study.grid import study_runs
from mvl.study.inline import GPU_LOST
from mvl.training.precision import SIXTEEN_BITS, check_precision, set_flags
from mvl.weights.families import SourceError

PRECISIONS = ("fp32", "tf32", "bf16")
MATRIX = {"cuda": 8192, "cpu": 256}
"Rows of the matrices whose product is a device's peak."
Facts = dict[str, Any]


def tell(value: Facts) -> None:
    """Print one line for the parent."""
    print(MARK + json.dumps(value), flush=True)


def each_part(parts: list[str], measure: Callable[[str], Facts]) -> None:
    """Measure part after part; one that fails is told as failed, and ends the process when it took
    the GPU with it."""
    for part in parts:
        tell({"begin": part})
        try:
            facts = measure(part)
        except SourceError as error:
            state = "skipped: its weights are not here"
            tell({"part": part, "state": state, "facts": {"error": str(error)[:300]}})
        except Exception as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            words = f"{type(error).__name__}: {words}"[:300]
            tell({"part": part, "state": "failed", "facts": {"error": words}})
            if gpu_slots.gpu_is_lost():
                sys.exit(GPU_LOST)
        else:
            tell({"part": part, "state": facts.pop("state", "done"), "facts": facts})


def wait(device: str) -> None:
    """Until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object], device: str, repeats: int = 10) -> float:
    """The median duration of `action`, seconds, after three warm-ups."""
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        wait(device)
        begin = time.perf_counter()
        action()
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def peak_mb(action: Callable[[], object], device: str) -> float:
    """The most memory that `action` holds on the card at once, MB."""
    if device != "cuda":
        action()
        return 0.0
    return step_memory_mb(action)


def matmul_gflops(precision: str, device: str) -> float:
    """GFLOP/s of a square matrix product."""
    set_flags(precision)
    size = MATRIX[device]
    a, b = (
        torch.randn(size, size, device=device, dtype=SIXTEEN_BITS.get(precision, torch.float32))
        for _ in range(2)
    )
    return 2 * size**3 / seconds_of(lambda: a @ b, device) / 1e9


def refused(precision: str, device: str) -> str:
    """Why a GPU does not compute in a precision, such as a T4 in bf16; empty where it does, and on
    a CPU, where only tests look."""
    if device == "cpu":
        return ""
    try:
        check_precision(precision, torch.device(device))
    except RunError as error:
        return str(error)
    return ""


def smoke_configs() -> dict[str, Config]:
    """Every system of the study `smoke` by name."""
    return {config.system: config for config in study_runs("smoke")}
