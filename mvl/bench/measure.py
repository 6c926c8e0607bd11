"""One training step measured: its time, its operations, its memory, in a child process of one
thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mvl.bench.clock import best_of, matmul_peak_gflops, peak_memory_mb, step_memory_mb
from mvl.core import machine
from mvl.core.config import Config

if TYPE_CHECKING:
    from torch import Tensor


def counted_gflops(action: Callable[[], object]) -> float:
    """GFLOP of matrix products and convolutions in `action`.

    Attention counts 2 products forward and 4 backward (the kernel's recomputation is not counted);
    a convolution's backward counts its forward once for each gradient, where PyTorch 2.13's own
    counter takes a grouped one for a dense one.
    """
    import torch
    from torch.utils.flop_counter import (
        FlopCounterMode,
        conv_flop_count,
        sdpa_backward_flop_count,
        sdpa_flop_count,
    )

    import mvl.models.tiled_attention  # noqa: F401  (defines its operators)

    ops, tiled = torch.ops.aten, torch.ops.mvl

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(g: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(g, q, k, v) * 4 // 5  # less the forward product again

    def convolve(g: Any, x: Any, w: Any, *more: Any, **__: Any) -> int:
        return conv_flop_count(x, w, g, more[4]) * sum(more[7][:2])

    counted = {
        ops._scaled_dot_product_flash_attention_for_cpu: forward,
        ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        tiled.tiled_attention: forward,
        tiled.tiled_attention_backward: backward,
        ops.convolution_backward: convolve,
    }
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        action()
    return counter.get_total_flops() / 1e9


def training_step(config: Config, batch: int, device: str = "cpu") -> Callable[[], object]:
    """A full training step (forward, Dice + BCE, backward, Adam) of a config's system, in its
    precision, on random tensors of one channel."""
    import torch

    from mvl.models.build import build_system
    from mvl.training.precision import autocast

    network = build_system(config, 1, 1).to(device).train()
    fused = True if device != "cpu" or config.train.precision == "bf16" else None
    optimizer = torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=fused
    )
    image = torch.randn(batch, 1, *config.data.img_size, device=device)
    label = torch.empty(batch, 1, *config.data.img_size, device=device).bernoulli_(0.5)

    def step() -> None:
        with autocast(config.train.precision, image.device):
            logits = network(image)
        dice_bce(logits.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def dice_bce(logits: Tensor, label: Tensor) -> Tensor:
    """Dice + BCE as `mvl.training.objective` takes them from MONAI, whose import alone would fill a
    third of a small step's memory."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    axes = tuple(range(2, logits.ndim))
    p = logits.sigmoid()
    dice = (2 * (p * label).sum(axes) + 1) / (p.sum(axes) + label.sum(axes) + 1)
    return binary_cross_entropy_with_logits(logits, label) + (1 - dice).mean()


def measure_step(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds per step and the process's peak resident memory."""
    return {"seconds": best_of(step, repeats), "peak_memory_mb": machine.peak_memory_mb()}


def share_of_peak(config: Config, batch: int, repeats: int) -> dict[str, float]:
    """Seconds of a training step, GFLOP counted in it, and the share of the matmul peak that it
    reaches."""
    from mvl.training.devices import device_of_runs

    machine.keep_freed_memory()
    device, kind = device_of_runs().type, config.train.precision
    step = training_step(config, batch, device)
    peak, work, seconds = (
        matmul_peak_gflops(kind, device),
        counted_gflops(step),
        best_of(step, repeats, device),
    )
    # The peak's own matrices, of 0.8 GB on a GPU, are not the step's memory.
    memory = peak_memory_mb(device) if device == "cpu" else step_memory_mb(step)
    peak = max(peak, matmul_peak_gflops(kind, device))
    return {
        "seconds": seconds,
        "gflop": work,
        "peak_gflops": peak,
        "share": work / seconds / peak,
        "peak_memory_mb": memory,
    }


def child(probe: str, *arguments: Any) -> dict[str, Any]:
    """Run one probe in a fresh process with one thread.

    Raises:
        RuntimeError: the probe failed; carries the end of its output.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mvl.bench.bars", probe, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"bench probe {probe} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])
