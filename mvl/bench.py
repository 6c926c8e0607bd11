"""`mvl bench`: each figure is a ratio of two measurements made in one run, in child processes of one thread; on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl import runs
from mvl.bench_clock import best_of, matmul_peak_gflops, peak_memory_mb, step_memory_mb
from mvl.config import Config, TokenBlockConfig, build

if TYPE_CHECKING:
    from torch import Tensor

STEP_128 = {"data": {"img_size": [128, 128, 128]}}
STEP_64 = {"data": {"img_size": [64, 64, 64]}}


def counted_gflops(action: Callable[[], object]) -> float:
    """GFLOP of matrix products and convolutions in `action`.

    Attention counts 2 products forward and 4 backward (the kernel's recomputation is not counted); a convolution's backward counts its
    forward once for each gradient, where PyTorch 2.13's own counter takes a grouped one for a dense one.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

    import mvl.models.tiled_attention  # noqa: F401  (defines its operators)

    ops, tiled = torch.ops.aten, torch.ops.mvl
    forward: Callable[..., int] = lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)
    backward: Callable[..., int] = lambda g, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(g, q, k, v) * 4 // 5
    convolve: Callable[..., int] = lambda g, x, w, *more, out_shape=None, **__: conv_flop_count(x, w, g, more[4]) * sum(more[7][:2])
    counted = {ops._scaled_dot_product_flash_attention_for_cpu: forward, ops._scaled_dot_product_flash_attention_for_cpu_backward: backward,
               tiled.tiled_attention: forward, tiled.tiled_attention_backward: backward, ops.convolution_backward: convolve}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        action()
    return counter.get_total_flops() / 1e9


def training_step(config: Config, batch: int, device: str = "cpu") -> Callable[[], object]:
    """A full training step (forward, Dice + BCE, backward, Adam) of a config's system, in its precision, on random tensors of one channel."""
    import torch

    from mvl.models import build_system
    from mvl.precision import autocast

    network = build_system(config, 1, 1).to(device).train()
    fused = True if device != "cpu" or config.train.precision == "bf16" else None
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=fused)
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
    """Dice + BCE as `mvl.objective` takes them from MONAI, whose import alone would fill a third of a small step's memory."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    axes, p = tuple(range(2, logits.ndim)), logits.sigmoid()
    dice = (2 * (p * label).sum(axes) + 1) / (p.sum(axes) + label.sum(axes) + 1)
    return binary_cross_entropy_with_logits(logits, label) + (1 - dice).mean()


def released_step(clone: str, dropout_rate: float) -> Callable[[], object]:
    """The same of the released ViT-Baseline, imported from the reader's own clone of the paper's repository (needs unfoldNd)."""
    import torch

    sys.path.insert(0, clone)
    from src.losses.losses import DiceBCELoss
    from src.models.vit_baseline import ViT_Baseline

    network, loss = ViT_Baseline((128,) * 3, (8,) * 3, 1, 1, 64, 16, 4, dropout_rate).train(), DiceBCELoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    image, label = torch.randn(1, 1, 128, 128, 128), torch.empty(1, 1, 128, 128, 128).bernoulli_(0.5)

    def step() -> None:
        loss(network(image)[0], label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_step(step: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds per step and the process's peak resident memory."""
    return {"seconds": best_of(step, repeats), "peak_memory_mb": runs.peak_memory_mb()}


def probe_vit(dropout_rate: float, precision: str = "fp32") -> dict[str, float]:
    """Our ViT-Baseline step at 128x128x128, batch 1."""
    changes = {**STEP_128, "model": {"dropout_rate": dropout_rate}, "train": {"precision": precision}}
    return measure_step(training_step(build(Config, changes, "bench"), 1), 3)


def probe_released(clone: str, dropout_rate: float) -> dict[str, float]:
    """The released ViT-Baseline step at 128x128x128, batch 1."""
    return measure_step(released_step(clone, dropout_rate), 3 if dropout_rate == 0 else 1)


def probe_hybrid() -> dict[str, float]:
    """Hybrid step at 64x64x64, batch 4: share of the matmul peak of the same process."""
    return share_of_peak(build(Config, {**STEP_64, "model": {"architecture": "medvisionllama_v3"}}, "bench"), 4, 5)


def share_of_peak(config: Config, batch: int, repeats: int) -> dict[str, float]:
    """Seconds of a training step, GFLOP counted in it, and the share of the matmul peak that it reaches."""
    from mvl.devices import device_of_runs

    runs.keep_freed_memory()
    device, kind = device_of_runs().type, config.train.precision
    step = training_step(config, batch, device)
    peak, work, seconds = matmul_peak_gflops(kind, device), counted_gflops(step), best_of(step, repeats, device)
    # The peak's own matrices, of 0.8 GB on a GPU, are not the step's memory.
    memory = peak_memory_mb(device) if device == "cpu" else step_memory_mb(step)
    peak = max(peak, matmul_peak_gflops(kind, device))
    return {"seconds": seconds, "gflop": work, "peak_gflops": peak, "share": work / seconds / peak, "peak_memory_mb": memory}


def probe_system(name: str, study: str | None, img_size: list[int], batch: int) -> dict[str, float]:
    """A system's training step at its own sizes, or a study's, but for `img_size`; a hub source is replaced by SmolLM2."""
    from mvl.models.llm_sources import SOURCES
    from mvl.systems import system_config

    config = system_config(name, study)
    block = config.model.token_block
    block = block if block.source in SOURCES else replace(block, source=TokenBlockConfig().source)
    config = replace(config, data=replace(config.data, img_size=tuple(img_size)), model=replace(config.model, token_block=block))
    return share_of_peak(config, batch, 2)


def probe_loop() -> dict[str, float]:
    """An epoch of the loop on phantoms against bare forward-backward-step on the same tensors, interleaved; then with augmentation."""
    import tempfile

    from mvl.datasets import splits, tasks
    from mvl.datasets.loaders import CaseStore, training_loader
    from mvl.train import Trainer

    runs.keep_freed_memory()
    config = build(Config, {"data": {**STEP_64["data"], "augment": False}, "model": {"architecture": "medvisionllama_v3"}}, "bench")
    task = tasks.find_task("phantoms")
    store = CaseStore(task, splits.load_split(task, 0, 1.0).train[:16], config.data)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, task, store, store, Path(scratch), "")
        batches = list(training_loader(store, config, 0, 0, 0, 1))

        def bare() -> None:
            trainer.model.train()
            for batch in batches:
                trainer.loss(trainer.model(batch["image"]), batch["label"].float()).backward()
                trainer.optimizer.step()
                trainer.optimizer.zero_grad(set_to_none=True)

        def loop() -> None:
            trainer.train_epoch([], _NoBar())
            trainer.progress.step, trainer.progress.losses = 0, []

        pairs = [(best_of(loop, 2), best_of(bare, 2)) for _ in range(2)]
        trainer.config = replace(config, data=replace(config.data, augment=True))
        augmented = best_of(loop, 2)
    ours, peer = min(p[0] for p in pairs), min(p[1] for p in pairs)
    return {"seconds": ours, "bare_seconds": peer, "overhead": ours / peer - 1, "overhead_with_augmentation": augmented / peer - 1}


class _NoBar:
    def update(self) -> None:
        """Count nothing."""


def probe_metrics() -> dict[str, float]:
    """All metrics of one 128x128x128 case: two shifted balls of radius 40."""
    import numpy as np

    from mvl.evaluate import case_metrics

    grid = np.indices((128,) * 3) - 64
    ball = lambda shift: ((grid[0] - shift) ** 2 + grid[1] ** 2 + grid[2] ** 2) < 40**2
    prediction, label, before = ball(2), ball(0), runs.peak_memory_mb()
    seconds = best_of(lambda: case_metrics(prediction, label, (1.0, 1.0, 1.0), 1.0), 3)
    return {"seconds": seconds, "extra_memory_mb": runs.peak_memory_mb() - before}


def probe_layer() -> dict[str, float]:
    """Reading the last SmolLM2 layer: hash, parse, dequantise that layer alone (imports not counted)."""

    import gguf  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from mvl.models.llm_sources import load_layer

    before, begin = runs.peak_memory_mb(), time.perf_counter()
    load_layer("smollm2-135m", -1)
    return {"seconds": time.perf_counter() - begin, "extra_memory_mb": runs.peak_memory_mb() - before}


def probe_hub_layer() -> dict[str, float]:
    """Reading one layer of a checkpoint with the true shapes of Llama-3.1-8B in bf16 (a sparse file): bytes read and held."""
    from mvl.models.layer_bench import probe_load_layer

    return probe_load_layer()


def probe_peak() -> dict[str, float]:
    """The matmul peak alone."""
    return {"peak_gflops": matmul_peak_gflops()}


def probe_peaks() -> dict[str, float | None]:
    """The matmul peaks of one thread in fp32 and bf16."""
    from mvl.bench_bf16 import probe_peaks as measure

    return measure()


def probe_bf16(name: str, study: str | None, img_size: list[int], batch: int) -> dict[str, float]:
    """A step in bf16 beside the same in fp32."""
    from mvl.bench_bf16 import probe_bf16 as measure

    return measure(name, study, img_size, batch)


def probe_help() -> dict[str, float]:
    """`mvl --help`, best of five."""
    words = [sys.executable, "-m", "mvl.cli", "--help"]
    return {"seconds": best_of(lambda: subprocess.run(words, capture_output=True, check=True), 5)}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "vit": probe_vit, "released": probe_released, "system": probe_system, "hybrid": probe_hybrid, "loop": probe_loop,
    "metrics": probe_metrics, "layer": probe_layer, "hub_layer": probe_hub_layer, "help": probe_help,
    "peak": probe_peak, "peaks": probe_peaks, "bf16": probe_bf16}


def child(probe: str, *arguments: Any) -> dict[str, Any]:
    """Run one probe in a fresh process with one thread.

    Raises:
        RuntimeError: the probe failed; carries the end of its output.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mvl.bench", probe, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"bench probe {probe} failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def bench(released: Path | None = None, progress: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Rows of the table: what, value, unit, bar, met, and what was measured. `released`: a clone of the paper's repository."""
    from mvl import bench_bf16

    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, unit: str, bar: float, measured: dict[str, Any], at_least: bool = False) -> None:
        rows.append({"what": what, "value": round(value, 4), "unit": unit, "bar": bar, "bar_is": "at least" if at_least else "at most",
                     "met": value >= bar if at_least else value <= bar, "measured": measured})
        progress(f"{what}: {value:.3g} {unit} (bar: {rows[-1]['bar_is']} {bar})")

    for name, rate, time_bar, memory_bar in (("with dropout 0.2", 0.2, 1 / 9, 1 / 15), ("without dropout", 0.0, 0.9, 0.8)):
        if released is None:
            ours = child("vit", rate)
            progress(f"ViT-Baseline step, 128^3, {name}: {ours} (give --released CLONE to measure the released model beside it)")
            continue
        ours, theirs = child("vit", rate), child("released", str(Path(released).resolve()), rate)
        both = {"ours": ours, "released": theirs}
        add(f"ViT-Baseline step, 128^3, {name}: time, ours / released", ours["seconds"] / theirs["seconds"], "ratio", time_bar, both)
        memory = ours["peak_memory_mb"] / theirs["peak_memory_mb"]
        add(f"ViT-Baseline step, 128^3, {name}: memory, ours / released", memory, "ratio", memory_bar, both)
        if rate == 0 and bench_bf16.has_units():
            half = child("vit", rate, "bf16")
            add("ViT-Baseline step, 128^3, without dropout: time, ours in bf16 / released in fp32",
                half["seconds"] / theirs["seconds"], "ratio", 0.6, {"ours": half, "released": theirs})
    hybrid, loop, metrics, layer, hub, usage = (child(name) for name in ("hybrid", "loop", "metrics", "layer", "hub_layer", "help"))
    add("hybrid step, 64^3, batch 4: share of the matmul peak", hybrid["share"], "ratio", 0.65, hybrid, at_least=True)
    for what, bar, measured in bench_bf16.rows(child):
        add(what, measured["ratio"], "ratio", bar, measured)
    add("training loop over bare forward-backward-step", loop["overhead"], "ratio", 0.05, loop)
    add("all metrics of one 128^3 case", metrics["seconds"], "s", 2.0, metrics)
    add("all metrics of one 128^3 case, memory", metrics["extra_memory_mb"], "MB", 1000.0, metrics)
    add("one SmolLM2 layer read", layer["seconds"], "s", 2.0, layer)
    add("one SmolLM2 layer read, memory", layer["extra_memory_mb"], "MB", 300.0, layer)
    add("one Llama-3.1-8B layer of a 16 GB checkpoint: bytes read, of the layer's", hub["read_ratio"], "ratio", 1.02, hub)
    add("one Llama-3.1-8B layer of a 16 GB checkpoint: memory held, of the layer's bytes", hub["peak_ratio"], "ratio", 1.3, hub)
    add("mvl --help", usage["seconds"], "s", 0.5, usage)
    return rows


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(json.dumps(PROBES[sys.argv[1]](*json.loads(sys.argv[2]))))
