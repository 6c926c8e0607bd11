"""What a study will cost before anything starts (`mvl plan`): runs, hours, memory and bytes, from
the work that `mvl/bench/work.py` counts.

Hours are counted work over (share of peak x peak). On a CPU the share is the one that `mvl bench`
measured for the system (data/bench.json) and what is no matrix product is added per case. A GPU
goes by what `make gpu` measured on it (data/gpu.json), else by its published peak and a share that
is assumed and said.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mvl.bench import systems
from mvl.bench.gpus import GPU_SHARE, GPUS, Device, speed
from mvl.bench.measure import child
from mvl.bench.work import PlanError, cases, visits, work_of
from mvl.core import machine, run_folder
from mvl.core.block_config import LAYER_KINDS
from mvl.core.command_lines import command_line
from mvl.core.config import Config, ConfigError, did_you_mean, load_config, system_names
from mvl.datasets.registry import find_task
from mvl.datasets.task import MADE
from mvl.datasets.task_data import open_task
from mvl.models import describe
from mvl.study import grid
from mvl.training.trained import cases_at_once
from mvl.weights.hub import is_hub_source

CASE_S = 0.005
"""Seconds of one core per visit of a case beside the products (batches, optimiser, Python); fitted
once, on vit_baseline of `quick` and `hippocampus`."""
AUGMENT_S = 110e-9
"""Seconds of one core per voxel that is rotated and recoloured; from the same fit. `mvl bench`
measures 94e-9 in its loop."""
BASE_MB, LAYER_MB = 530, 60
"""Memory of a process before it has a case (Python, torch, MONAI), and of reading a language layer
(transformers); CPU runs of `quick`."""
CUDA_MB = 1500
"Assumed for a CUDA context and its kernels' workspace."
DECATHLON_BYTES, SMALL = 80e9, {"Task04_Hippocampus": 28e6}
"""The ten archives together, about; the registry does not know them one by one, so that each of the
other nine is taken for a ninth."""


def find_device(text: str) -> Device:
    """`cpu`, or `h100`, or `8xh100`.

    Raises:
        ConfigError: no such device; lists those there are.
    """
    count, name = re.fullmatch(r"(?:(\d+)x)?(.*)", text.lower()).groups()  # type: ignore[union-attr]
    if name == "cpu":
        peak = cpu_peak()
        return Device("cpu", peak, peak, peak, peak, math.inf, int(count or 1))
    if name not in GPUS or count == "0":
        raise ConfigError(
            f"unknown device {text!r}{did_you_mean(name, list(GPUS))}; known: cpu,"
            f" {', '.join(GPUS)}, and several as in 8xh100"
        )
    return replace(GPUS[name], count=int(count or 1))


@cache
def cpu_peak() -> float:
    """GFLOP/s of a matrix product on one core: recorded by `mvl bench` if this is the bench's
    processor, else measured now."""
    processor = machine.platform_facts()["processor"]
    rows = (row for rows in systems.whole_record()["systems"].values() for row in rows)
    peaks = sorted(
        row["peak_gflops"]
        for row in rows
        if row["machine"]["processor"] == processor and row["machine"]["device"] == "cpu"
    )
    return peaks[len(peaks) // 2] if peaks else child("peak")["peak_gflops"]


@cache
def share_of_peak(system: str, study: str) -> float:
    """Share of the matmul peak that `mvl bench` measured for a system at the study's sizes, else at
    its own; of one that it did not, the lowest."""
    bench = systems.read_bench()
    measured = {**bench["systems"], **bench["studies"].get(study, {})}
    if not measured:
        record = command_line("bench", "all", "--record")
        raise PlanError(f"{systems.BENCH}: no system was measured; run `{record}`")
    return (
        measured[system]["share"]
        if system in measured
        else min(row["share"] for row in measured.values())
    )


def seconds(config: Config, device: Device, data_dir: Path | None = None) -> float:
    """Seconds of one core, or of one GPU, that a run's training takes."""
    work, (trained, seen) = work_of(config, data_dir), visits(config, data_dir)
    gflop = trained * work.trained + seen * work.seen
    if device.name != "cpu":
        fast = speed(device, config.train.precision)
        return gflop / fast.gflops + launches(config, data_dir) * fast.step_s
    products_s = gflop / (share_of_peak(config.system, config.study) * device.fp32)
    augmented = config.data.augment and config.data.augmentation == "rotate_intensity"
    voxels = trained * math.prod(config.data.img_size) if augmented else 0
    return products_s + CASE_S * (trained + seen) + AUGMENT_S * voxels


def launches(config: Config, data_dir: Path | None = None) -> int:
    """How often a run sends its network's operators to a GPU: once for each part of a step, each
    validation batch and each test case."""
    n, train = cases(config, data_dir), config.train
    steps = train.train_epochs * math.ceil(n["train"] / train.batch_size) * train.accumulate
    looks = math.ceil(train.train_epochs / train.val_interval)
    at_once = cases_at_once(config, "cuda")
    return steps + looks * math.ceil(n["val"] / at_once) + math.ceil(n["test"] / at_once)


def memory_mb(config: Config, device: Device, data_dir: Path | None = None) -> float:
    """Peak memory of a run: on a GPU of the GPU, else of the process with its decoded cases."""
    work = work_of(config, data_dir)
    held = 4 * (4 * work.trainable + work.frozen) / 1e6  # weights, gradients and two moments
    kept = work.saved_mb * math.ceil(config.train.batch_size / config.train.accumulate)
    on = "cpu" if device.name == "cpu" else "cuda"
    kept = max(kept, work.live_mb * cases_at_once(config, on))  # a step, or a prediction
    if device.name != "cpu":
        return CUDA_MB + held + kept
    layer = (
        config.model.architecture.startswith(("medvisionllama", "llm4seg"))
        and config.model.token_block.kind in LAYER_KINDS
    )
    return BASE_MB + LAYER_MB * layer + held + kept + host_mb(config, data_dir)


def host_mb(config: Config, data_dir: Path | None = None) -> float:
    """Decoded cases that a run keeps in memory: image in float32, label in bytes, at most
    `data.cache_gb`."""
    number = cases(config, data_dir)
    bytes_a_voxel = 4 * len(find_task(config.task, data_dir).channels) + 1
    case_mb = math.prod(config.data.img_size) * bytes_a_voxel / 1e6
    return min(1e3 * config.data.cache_gb, (number["train"] + number["val"]) * case_mb)


def download_bytes(configs: Sequence[Config], data_dir: Path | None = None) -> dict[str, float]:
    """What must travel: archives that are not in the data folder, and one layer in 16 bits of each
    hub model."""
    archives: dict[str, float] = {}
    for name in dict.fromkeys(config.task for config in configs):
        data = open_task(name, data_dir)
        task, there = data.task, data.place.is_dir()
        if task.name not in MADE and not there:
            assumed = SMALL.get(task.name, DECATHLON_BYTES / 9 if task.url else 0)
            archives[task.name] = float(task.bytes or assumed)
    layers: dict[str, float] = {}
    for config in configs:
        block = config.model.token_block
        if is_hub_source(block.source) and block.kind in LAYER_KINDS and block.kind != "random":
            name, work = f"{block.source}, layer {block.layer}", work_of(config, data_dir)
            # a system that trains the layer has none of it frozen
            layers[name] = max(layers.get(name, 0.0), 2.0 * work.frozen)
    return archives | layers


def keep_bytes(configs: Sequence[Config], data_dir: Path | None = None) -> tuple[float, float]:
    """Bytes that stay (weights and records of every run), and those of the two checkpoints of one
    run at its time."""
    trained = [4 * work_of(config, data_dir).trainable for config in configs]
    return sum(trained) + 3e5 * len(trained), 8.0 * max(trained)


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def chosen(study: str, epochs: int | None = None, every_system: bool = False) -> list[Config]:
    """The study's runs, for `epochs` in place of their own; `every_system`: and each other system
    of the same dims on its tasks and folds.

    Raises:
        ConfigError: no such study.
    """
    configs = grid.study_runs(study)
    if every_system:
        runs = {run_folder.run_name(c): c for c in configs}
        dims = len(configs[0].data.img_size)
        places = dict.fromkeys((c.task, c.fold) for c in configs)
        for name in system_names():
            same_dims = len(describe.system_config(name).data.img_size) == dims
            if name in systems.NEVER_TRAINED or not same_dims:
                continue
            for task, fold in places:
                config = load_config(study, task, name, fold=fold)
                runs[run_folder.run_name(config)] = config
        configs = list(runs.values())
    return [
        replace(c, train=replace(c.train, train_epochs=epochs or c.train.train_epochs))
        for c in configs
    ]


def plan(
    study: str,
    device: str = "cpu",
    results_dir: Path | None = None,
    data_dir: Path | None = None,
    epochs: int | None = None,
    every_system: bool = False,
) -> dict[str, Any]:
    """What the study costs: `price` of its `chosen` runs.

    Raises:
        ConfigError: no such study or device.
        PlanError: FLOPs cannot be counted, or nothing was measured here.
    """
    return price(chosen(study, epochs, every_system), find_device(device), results_dir, data_dir)


def price(
    configs: Sequence[Config],
    on: Device,
    results_dir: Path | None = None,
    data_dir: Path | None = None,
) -> dict[str, Any]:
    """What these runs cost on this device: runs, hours, memory, bytes, per system and in all, with
    every assumption."""
    rows: list[dict[str, Any]] = [
        {
            "system": c.system,
            "hours": seconds(c, on, data_dir) / 3600,
            "peak_memory_mb": memory_mb(c, on, data_dir),
        }
        for c in configs
    ]
    down = download_bytes(configs, data_dir)
    keep, checkpoints = keep_bytes(configs, data_dir)
    # An archive lies beside its unpacked files until it is removed: the largest counts twice.
    archives = [size for name, size in down.items() if ", layer" not in name]
    need = sum(down.values()) + max(archives, default=0) + keep + checkpoints * on.count
    hours = sum(row["hours"] for row in rows)
    peak = max(row["peak_memory_mb"] for row in rows)
    free = free_bytes(Path(results_dir or run_folder.default_results_dir()))
    return {
        "study": configs[0].study,
        "epochs": sorted({c.train.train_epochs for c in configs}),
        "runs": len(rows),
        "device": on.name,
        "devices": on.count,
        "hours": hours,
        "wall_hours": hours / on.count,
        "peak_memory_mb": peak,
        "device_memory_mb": None if math.isinf(on.memory_mb) else on.memory_mb,
        "memory_fits": peak <= on.memory_mb,
        "host_memory_mb": max(host_mb(c, data_dir) for c in configs),
        "download_bytes": sum(down.values()),
        "downloads": down,
        "keep_bytes": keep,
        "disk_need_bytes": need,
        "disk_free_bytes": free,
        "disk_fits": need <= free,
        "assumptions": assumptions(configs, on),
        "systems": by_system(rows),
    }


def by_system(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs, hours and peak memory of each system, in the study's order."""
    out = []
    for name in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == name]
        out.append(
            {
                "system": name,
                "runs": len(mine),
                "hours": sum(row["hours"] for row in mine),
                "peak_memory_mb": max(row["peak_memory_mb"] for row in mine),
            }
        )
    return out


def assumptions(configs: Sequence[Config], device: Device) -> list[str]:
    """What the hours rest on, in words."""
    if device.name == "cpu":
        return [
            f"one core does {device.fp32:.0f} GFLOP/s of a matrix product; each system reaches its"
            " share of data/bench.json",
            f"{CASE_S * 1e3:.0f} ms per visit of a case and {AUGMENT_S * 1e9:.0f} ns per augmented"
            " voxel beside that (fitted on vit_baseline of quick and hippocampus)",
        ]
    precisions = sorted({c.train.precision for c in configs})
    return [
        *(speed_as_text(device, precision) for precision in precisions),
        "attention goes by a fused kernel (in fp32 the memory-efficient one, with keys and values"
        " repeated for grouped heads): no score matrix is kept",
        "cases arrive as fast as they are used",
        "runs are independent: several devices share them out",
    ]


def speed_as_text(device: Device, precision: str) -> str:
    """How fast a GPU is taken to be in a precision, and whether that was measured."""
    fast = speed(device, precision)
    rate = (
        f"{fast.gflops / 1e3:.3g} TFLOP/s in {precision} and {fast.step_s * 1e3:.3g} ms of a step"
        " beside"
    )
    if fast.card:
        return f"{rate}: measured on {fast.card} by `make gpu`"
    peak = f"{GPU_SHARE:.0%} of the published peak of {device.peak(precision) / 1e3:g} TFLOP/s"
    return f"{rate}: {peak}, assumed, not measured"
