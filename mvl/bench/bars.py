"""`mvl bench`: each figure is a ratio of two measurements made in one run, in child processes of
one thread; on a GPU where there is one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvl.bench.clock import best_of, matmul_peak_gflops
from mvl.bench.measure import child, measure_step, share_of_peak, training_step
from mvl.core import machine
from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import Config, build

STEP_128 = {"data": {"img_size": [128, 128, 128]}}
STEP_64 = {"data": {"img_size": [64, 64, 64]}}


def released_step(clone: str, dropout_rate: float) -> Callable[[], object]:
    """The same of the released ViT-Baseline, imported from the reader's own clone of the paper's
    repository (needs unfoldNd)."""
    import torch

    sys.path.insert(0, clone)
    from src.losses.losses import DiceBCELoss
    from src.models.vit_baseline import ViT_Baseline

    network, loss = (
        ViT_Baseline((128,) * 3, (8,) * 3, 1, 1, 64, 16, 4, dropout_rate).train(),
        DiceBCELoss(),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    image, label = (
        torch.randn(1, 1, 128, 128, 128),
        torch.empty(1, 1, 128, 128, 128).bernoulli_(0.5),
    )

    def step() -> None:
        loss(network(image)[0], label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def probe_vit(dropout_rate: float, precision: str = "fp32") -> dict[str, float]:
    """Our ViT-Baseline step at 128x128x128, batch 1."""
    changes = {
        **STEP_128,
        "model": {"dropout_rate": dropout_rate},
        "train": {"precision": precision},
    }
    return measure_step(training_step(build(Config, changes, "bench"), 1), 3)


def probe_released(clone: str, dropout_rate: float) -> dict[str, float]:
    """The released ViT-Baseline step at 128x128x128, batch 1."""
    return measure_step(released_step(clone, dropout_rate), 3 if dropout_rate == 0 else 1)


def probe_hybrid() -> dict[str, float]:
    """Hybrid step at 64x64x64, batch 4: share of the matmul peak of the same process."""
    return share_of_peak(
        build(Config, {**STEP_64, "model": {"architecture": "medvisionllama_v3"}}, "bench"), 4, 5
    )


def probe_system(name: str, study: str | None, img_size: list[int], batch: int) -> dict[str, float]:
    """A system's training step at its own sizes, or a study's, but for `img_size`; a hub source is
    replaced by SmolLM2."""
    from mvl.models.describe import system_config
    from mvl.weights.wheels import SOURCES

    config = system_config(name, study)
    block = config.model.token_block
    block = block if block.source in SOURCES else replace(block, source=TokenBlockConfig().source)
    config = replace(
        config,
        data=replace(config.data, img_size=tuple(img_size)),
        model=replace(config.model, token_block=block),
    )
    return share_of_peak(config, batch, 2)


def probe_loop() -> dict[str, float]:
    """An epoch of the loop on phantoms against bare forward-backward-step on the same tensors,
    interleaved; then with augmentation."""
    import tempfile

    from mvl.datasets.loaders import CaseStore, training_loader
    from mvl.datasets.splits import load_split
    from mvl.datasets.task_data import open_task
    from mvl.training.loop import Trainer

    machine.keep_freed_memory()
    config = build(
        Config,
        {
            "data": {**STEP_64["data"], "augment": False},
            "model": {"architecture": "medvisionllama_v3"},
        },
        "bench",
    )
    data = open_task("phantoms")
    store = CaseStore(data, load_split(data, 0, 1.0).train[:16], config.data)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(config, store, store, Path(scratch), "")
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
    return {
        "seconds": ours,
        "bare_seconds": peer,
        "overhead": ours / peer - 1,
        "overhead_with_augmentation": augmented / peer - 1,
    }


class _NoBar:
    def update(self) -> None:
        """Count nothing."""


def probe_metrics() -> dict[str, float]:
    """All metrics of one 128x128x128 case: two shifted balls of radius 40."""
    import numpy as np

    from mvl.training.metrics import case_metrics

    x, y, z = np.indices((128,) * 3) - 64
    label = x**2 + y**2 + z**2 < 40**2
    prediction = (x - 2) ** 2 + y**2 + z**2 < 40**2
    before = machine.peak_memory_mb()
    seconds = best_of(lambda: case_metrics(prediction, label, (1.0, 1.0, 1.0), 1.0), 3)
    return {"seconds": seconds, "extra_memory_mb": machine.peak_memory_mb() - before}


def probe_layer() -> dict[str, float]:
    """Reading the last SmolLM2 layer: hash, parse, dequantise that layer alone (imports not
    counted)."""

    import gguf  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    from mvl.weights.sources import load_layer

    before, begin = machine.peak_memory_mb(), time.perf_counter()
    load_layer("smollm2-135m", -1)
    return {
        "seconds": time.perf_counter() - begin,
        "extra_memory_mb": machine.peak_memory_mb() - before,
    }


def probe_hub_layer() -> dict[str, float]:
    """Reading one layer of a checkpoint with the true shapes of Llama-3.1-8B in bf16 (a sparse
    file): bytes read and held."""
    from mvl.bench.layer_read import probe_load_layer

    return probe_load_layer()


def probe_peak() -> dict[str, float]:
    """The matmul peak alone."""
    return {"peak_gflops": matmul_peak_gflops()}


def probe_peaks() -> dict[str, float | None]:
    """The matmul peaks of one thread in fp32 and bf16."""
    from mvl.bench.bf16 import probe_peaks as measure

    return measure()


def probe_bf16(name: str, study: str | None, img_size: list[int], batch: int) -> dict[str, float]:
    """A step in bf16 beside the same in fp32."""
    from mvl.bench.bf16 import probe_bf16 as measure

    return measure(name, study, img_size, batch)


def probe_help() -> dict[str, float]:
    """`mvl --help`, best of five."""
    words = [sys.executable, "-m", "mvl", "--help"]
    return {"seconds": best_of(lambda: subprocess.run(words, capture_output=True, check=True), 5)}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "vit": probe_vit,
    "released": probe_released,
    "system": probe_system,
    "hybrid": probe_hybrid,
    "loop": probe_loop,
    "metrics": probe_metrics,
    "layer": probe_layer,
    "hub_layer": probe_hub_layer,
    "help": probe_help,
    "peak": probe_peak,
    "peaks": probe_peaks,
    "bf16": probe_bf16,
}


CHECKPOINT = "one Llama-3.1-8B layer of a 16 GB checkpoint"
BARS = (
    ("training loop over bare forward-backward-step", "loop", "overhead", "ratio", 0.05),
    ("all metrics of one 128^3 case", "metrics", "seconds", "s", 2.0),
    ("all metrics of one 128^3 case, memory", "metrics", "extra_memory_mb", "MB", 1000.0),
    ("one SmolLM2 layer read", "layer", "seconds", "s", 2.0),
    ("one SmolLM2 layer read, memory", "layer", "extra_memory_mb", "MB", 300.0),
    (f"{CHECKPOINT}: bytes read, of the layer's", "hub_layer", "read_ratio", "ratio", 1.02),
    (f"{CHECKPOINT}: memory held, of the layer's bytes", "hub_layer", "peak_ratio", "ratio", 1.3),
    ("mvl --help", "help", "seconds", "s", 0.5),
)
"What, probe, its figure, unit, and the most that it may be."


def bench(
    released: Path | None = None, progress: Callable[[str], None] = lambda text: None
) -> list[dict[str, Any]]:
    """Rows of the table: what, value, unit, bar, met, and what was measured. `released`: a clone of
    the paper's repository."""
    from mvl.bench import bf16

    rows: list[dict[str, Any]] = []

    def add(
        what: str,
        value: float,
        unit: str,
        bar: float,
        measured: dict[str, Any],
        at_least: bool = False,
    ) -> None:
        rows.append(
            {
                "what": what,
                "value": round(value, 4),
                "unit": unit,
                "bar": bar,
                "bar_is": "at least" if at_least else "at most",
                "met": value >= bar if at_least else value <= bar,
                "measured": measured,
            }
        )
        progress(f"{what}: {value:.3g} {unit} (bar: {rows[-1]['bar_is']} {bar})")

    for name, rate, time_bar, memory_bar in (
        ("with dropout 0.2", 0.2, 1 / 9, 1 / 15),
        ("without dropout", 0.0, 0.9, 0.8),
    ):
        if released is None:
            ours = child("vit", rate)
            progress(
                f"ViT-Baseline step, 128^3, {name}: {ours} (give --released CLONE to measure the"
                " released model beside it)"
            )
            continue
        ours, theirs = child("vit", rate), child("released", str(Path(released).resolve()), rate)
        both = {"ours": ours, "released": theirs}
        add(
            f"ViT-Baseline step, 128^3, {name}: time, ours / released",
            ours["seconds"] / theirs["seconds"],
            "ratio",
            time_bar,
            both,
        )
        memory = ours["peak_memory_mb"] / theirs["peak_memory_mb"]
        add(
            f"ViT-Baseline step, 128^3, {name}: memory, ours / released",
            memory,
            "ratio",
            memory_bar,
            both,
        )
        if rate == 0 and bf16.has_units():
            half = child("vit", rate, "bf16")
            add(
                "ViT-Baseline step, 128^3, without dropout: time, ours in bf16 / released in fp32",
                half["seconds"] / theirs["seconds"],
                "ratio",
                0.6,
                {"ours": half, "released": theirs},
            )
    names = ("hybrid", "loop", "metrics", "layer", "hub_layer", "help")
    found = {name: child(name) for name in names}
    add(
        "hybrid step, 64^3, batch 4: share of the matmul peak",
        found["hybrid"]["share"],
        "ratio",
        0.65,
        found["hybrid"],
        at_least=True,
    )
    for what, bar, measured in bf16.rows(child):
        add(what, measured["ratio"], "ratio", bar, measured)
    for what, name, key, unit, bar in BARS:
        add(what, found[name][key], unit, bar, found[name])
    return rows


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(json.dumps(PROBES[sys.argv[1]](*json.loads(sys.argv[2]))))
