"""A training step in bf16 beside the same step in fp32, on a CPU: interleaved, in one process, on
one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from mvl.core import machine
from mvl.core.config import Config
from mvl.models.build import build_system
from mvl.models.describe import system_config
from mvl.training import precision
from mvl.training.objective import build_loss, build_optimizer

CASES: tuple[tuple[str, str, str | None, tuple[int, ...], int, float], ...] = (
    ("CMUNeXt step, 128x128, batch 8", "cmunext", None, (128, 128), 8, 0.5),
    ("LLM4Seg step, 128x128, batch 8", "llm4seg", None, (128, 128), 8, 0.5),
    ("hippocampus hybrid step, batch 2", "medvisionllama_v3", "hippocampus", (40, 56, 40), 2, 0.55),
)
"What, system, study, grid, batch, and the largest ratio of bf16 to fp32 that is wanted."

SIZE = 1024
"Rows of the square matrices whose product is the peak."


def has_units() -> bool:
    """Whether this processor multiplies bf16 numbers itself."""
    return bool(precision.processor_flags() & precision.BF16_FLAGS)


def median_of(action: Callable[[], object], repeats: int = 7) -> float:
    """The median processor time of this thread in `action`, seconds, after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        action()
        times.append(time.thread_time() - begin)
    return statistics.median(times)


def probe_peaks() -> dict[str, float | None]:
    """GFLOP/s of a matrix product on one thread, in fp32 and bf16; None without units for bf16."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    work = 2 * SIZE**3 / 1e9
    found: dict[str, float | None] = {"fp32_gflops": work / median_of(lambda: a @ b)}
    c, d = a.bfloat16(), b.bfloat16()
    found["bf16_gflops"] = work / median_of(lambda: c @ d) if has_units() else None
    return found


def step_in(name: str, network: nn.Module, config: Config, batch: int) -> Callable[[], object]:
    """A training step as the loop takes it, in a precision, on random tensors of one channel."""
    config = replace(config, train=replace(config.train, precision=name, optimizer="adam"))
    optimizer, loss = build_optimizer(config, network), build_loss(1)
    image = torch.randn(batch, 1, *config.data.img_size)
    label = torch.empty(batch, 1, *config.data.img_size).bernoulli_(0.5)

    def step() -> None:
        with precision.autocast(name, image.device):
            logits = network(image)
        loss(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def probe_bf16(
    name: str, study: str | None, img_size: list[int], batch: int, repeats: int = 5
) -> dict[str, float]:
    """Median processor seconds of a step in fp32 and in bf16, taken in turn, and their ratio."""
    machine.keep_freed_memory()
    config = system_config(name, study)
    config = replace(config, data=replace(config.data, img_size=tuple(img_size)))
    network = build_system(config, 1, 1).train()
    steps = {kind: step_in(kind, network, config, batch) for kind in ("fp32", "bf16")}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for turn in range(repeats + 1):
        for kind, step in steps.items():
            begin = time.thread_time()
            step()
            if turn:
                times[kind].append(time.thread_time() - begin)
    fp32, bf16 = (statistics.median(times[kind]) for kind in ("fp32", "bf16"))
    return {"fp32_seconds": fp32, "bf16_seconds": bf16, "ratio": bf16 / fp32}


def rows(
    child: Callable[..., dict[str, float]],
) -> Iterator[tuple[str, float, dict[str, float]]]:
    """What, bar and measurement of each case, each in a process of its own.

    Nothing on a processor that would emulate bf16.
    """
    if not has_units():
        return
    for what, name, study, size, batch, bar in CASES:
        yield f"{what}: bf16 / fp32", bar, child("bf16", name, study, list(size), batch)
