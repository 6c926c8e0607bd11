"""How long an action takes and how much memory it holds, on a CPU or on a GPU, and what peak the
device reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

from mvl.core import machine


def best_of(action: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Shortest of `repeats` durations, seconds, after one warm-up."""
    action()
    return min(duration(action, device) for _ in range(repeats))


def duration(action: Callable[[], object], device: str) -> float:
    """Seconds that `action` takes; on a GPU those between two events of its own.

    There the call returns before the work is done.
    """
    if device == "cpu":
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin
    import torch

    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    action()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def peak_memory_mb(device: str) -> float:
    """The largest memory so far, MB: of the process, or on a GPU of its tensors there."""
    if device == "cpu":
        return machine.peak_memory_mb()
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def matmul_peak_gflops(kind: str = "fp32", device: str = "cpu") -> float:
    """GFLOP/s of a square matrix product in a precision: 2048 rows on a CPU, 8192 on a GPU."""
    import torch

    from mvl.training.precision import SIXTEEN_BITS, set_flags

    set_flags(kind)
    size = 2048 if device == "cpu" else 8192
    dtype = SIXTEEN_BITS.get(kind, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_of(lambda: a @ b, 5, device) / 1e9


def step_memory_mb(step: Callable[[], object]) -> float:
    """The largest memory of one step's tensors on a GPU, weights and optimiser included, MB."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    step()
    return peak_memory_mb("cuda")
