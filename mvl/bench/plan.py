"""`mvl plan`: what a study will cost before anything starts: runs, hours, memory and bytes, from
FLOPs counted on networks without weights.

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
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from mvl.bench import systems
from mvl.bench.gpus import GPU_SHARE, GPUS, Device, speed
from mvl.core import machine, run_folder
from mvl.core.block_config import LAYER_KINDS
from mvl.core.config import Config, ConfigError, DataConfig, did_you_mean, load_config, system_names
from mvl.core.errors import MvlError
from mvl.models import describe
from mvl.study import grid
from mvl.weights import listed_sizes

if TYPE_CHECKING:
    from torch import Tensor

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
VAL_BATCH = 32
"Cases that a validation batch holds on a GPU."
DECATHLON_BYTES, SMALL = 80e9, {"Task04_Hippocampus": 28e6}
"""The ten archives together, about; the registry does not know them one by one, so that each of the
other nine is taken for a ninth."""


class PlanError(MvlError, RuntimeError):
    """A study cannot be planned; the message names the remedy."""


@dataclass(frozen=True)
class Work:
    """What one case costs a network: GFLOP trained and GFLOP seen, MB kept for the backward pass,
    parameters."""

    trained: float
    seen: float
    saved_mb: float
    trainable: int
    frozen: int


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
    if peaks:
        return peaks[len(peaks) // 2]
    from mvl.bench.measure import child

    return child("peak")["peak_gflops"]


def sketched(config: Config) -> Config:
    """The config with a block of the same shapes whose files are not needed."""
    block = config.model.token_block
    if listed_sizes.has_listed_sizes(block.source):
        norm = "unit" if block.final_norm == "loaded" else block.final_norm
        block = replace(
            block, source=str(listed_sizes.described(block.source)), layer=-1, final_norm=norm
        )
    return replace(
        config,
        model=replace(config.model, token_block=replace(block, text_guidance=False, words="")),
    )


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by the operator that a CPU takes, on any device; heads of key
    and value that are shared are repeated."""
    import torch

    if enable_gqa:
        key, value = (
            x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value)
        )
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


@cache
def count_work(config: Config, channels: int, classes: int) -> Work:
    """Count a training step and a forward pass of two cases on the meta device: nothing is
    computed, nothing is held.

    Raises:
        PlanError: the network cannot be run there.
    """
    import torch

    from mvl.bench.measure import counted_gflops, dice_bce
    from mvl.models import vit
    from mvl.models.build import SYSTEMS, parameter_counts

    saved: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Any) -> Any:
        saved[tensor.untyped_storage()._cdata] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    try:
        # no block is computed twice here: what that saves, malloc's fragments take; nor is
        # attention written out, as on the meta device it would be
        plain, fused = (
            patch.object(vit, "LONG", math.inf),
            patch.object(torch.nn.functional, "scaled_dot_product_attention", fused_attention),
        )
        with torch.device("meta"), plain, fused:
            network = (
                SYSTEMS[config.model.architecture](sketched(config), channels, classes)
                .to("meta")
                .train()
            )
            image, label = (
                torch.empty(2, channels, *config.data.img_size),
                torch.empty(2, classes, *config.data.img_size),
            )
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                trained = counted_gflops(lambda: dice_bce(network(image), label).backward())
            with torch.no_grad():
                seen = counted_gflops(lambda: network.eval()(image))
    except RuntimeError as error:  # e.g. a network that asks a tensor for its value
        raise PlanError(
            f"{config.model.architecture}: its FLOPs cannot be counted"
            f" ({str(error).splitlines()[0]})"
        ) from error
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    held = sum(size for key, (_, size) in saved.items() if key not in weights)
    counts = parameter_counts(network)
    return Work(trained / 2, seen / 2, held / 2e6, counts["trainable"], counts["frozen"])


def cases(config: Config) -> dict[str, int]:
    """Numbers of training, validation and test cases, as `datasets.splits` deals the registry's
    number of cases to ten blocks."""
    from mvl.datasets.registry import find_task
    from mvl.datasets.splits import NUM_FOLDS, roles

    number = find_task(config.task).num_cases
    blocks = [len(range(k, number, NUM_FOLDS)) for k in range(NUM_FOLDS)]
    test, *val = roles(config.fold)
    seen = sum(blocks[k] for k in val)
    train = number - blocks[test] - seen
    return {"train": max(1, round(config.fraction * train)), "val": seen, "test": blocks[test]}


def visits(config: Config) -> tuple[int, int]:
    """Cases trained on and cases looked at, over the whole run."""
    n, train = cases(config), config.train
    looks = math.ceil(train.train_epochs / train.val_interval)
    return n["train"] * train.train_epochs, n["val"] * looks + n["test"]


def work_of(config: Config) -> Work:
    """`count_work` of a run; runs that differ in fold, seed, fraction or epochs share it."""
    from mvl.datasets.registry import find_task

    task = find_task(config.task)
    classes = 1 if config.data.labels == "foreground" else len(task.labels) + 1
    block = config.model.token_block
    kind = "random" if block.kind in LAYER_KINDS else block.kind
    model = replace(config.model, token_block=replace(block, kind=kind, layer=-1))
    same = Config(system="", task="", data=DataConfig(img_size=config.data.img_size), model=model)
    return count_work(same, len(task.channels), classes)


@cache
def share_of_peak(system: str, study: str) -> float:
    """Share of the matmul peak that `mvl bench` measured for a system at the study's sizes, else at
    its own; of one that it did not, the lowest."""
    bench = systems.read_bench()
    measured = {**bench["systems"], **bench["studies"].get(study, {})}
    if not measured:
        raise PlanError(f"{systems.BENCH}: no system was measured; run `mvl bench all --record`")
    return (
        measured[system]["share"]
        if system in measured
        else min(row["share"] for row in measured.values())
    )


def seconds(config: Config, device: Device) -> float:
    """Seconds of one core, or of one GPU, that a run's training takes."""
    work, (trained, seen) = work_of(config), visits(config)
    gflop = trained * work.trained + seen * work.seen
    if device.name != "cpu":
        fast = speed(device, config.train.precision)
        return gflop / fast.gflops + launches(config) * fast.step_s
    turned = (
        trained * math.prod(config.data.img_size)
        if config.data.augment and config.data.augmentation == "rotate_intensity"
        else 0
    )
    return (
        gflop / (share_of_peak(config.system, config.study) * device.fp32)
        + CASE_S * (trained + seen)
        + AUGMENT_S * turned
    )


def launches(config: Config) -> int:
    """How often a run sends its network's operators to a GPU: once for each part of a step, each
    validation batch and each test case."""
    n, train = cases(config), config.train
    steps = train.train_epochs * math.ceil(n["train"] / train.batch_size) * train.accumulate
    looks = math.ceil(train.train_epochs / train.val_interval)
    return steps + looks * math.ceil(n["val"] / VAL_BATCH) + n["test"]


def memory_mb(config: Config, device: Device) -> float:
    """Peak memory of a run: on a GPU of the GPU, else of the process with its decoded cases."""
    work = work_of(config)
    held = 4 * (4 * work.trainable + work.frozen) / 1e6  # weights, gradients and two moments
    kept = work.saved_mb * math.ceil(config.train.batch_size / config.train.accumulate)
    if device.name != "cpu":
        return CUDA_MB + held + kept
    layer = (
        config.model.architecture.startswith(("medvisionllama", "llm4seg"))
        and config.model.token_block.kind in LAYER_KINDS
    )
    return BASE_MB + LAYER_MB * layer + held + kept + host_mb(config)


def host_mb(config: Config) -> float:
    """Decoded cases that a run keeps in memory: image in float32, label in bytes, at most
    `data.cache_gb`."""
    from mvl.datasets.registry import find_task

    n, voxels = (
        cases(config),
        math.prod(config.data.img_size) * (4 * len(find_task(config.task).channels) + 1),
    )
    return min(1e3 * config.data.cache_gb, (n["train"] + n["val"]) * voxels / 1e6)


def download_bytes(configs: Sequence[Config], data_dir: Path | None = None) -> dict[str, float]:
    """What must travel: archives that are not in the data folder, and one layer in 16 bits of each
    hub model."""
    from mvl.datasets.registry import find_task
    from mvl.datasets.task import MADE, data_root
    from mvl.weights.hub import is_hub_source

    tasks = {
        task.name: task
        for task in (
            find_task(name, data_dir) for name in dict.fromkeys(config.task for config in configs)
        )
    }
    absent = [
        t
        for t in tasks.values()
        if t.name not in MADE and not (data_root(data_dir) / (t.folder or t.name)).is_dir()
    ]
    ninth = DECATHLON_BYTES / 9
    out = {
        task.name: float(task.bytes or SMALL.get(task.name, ninth if task.url else 0))
        for task in absent
    }
    layers: dict[str, float] = {}
    for config in configs:
        block = config.model.token_block
        if is_hub_source(block.source) and block.kind in LAYER_KINDS and block.kind != "random":
            name, work = f"{block.source}, layer {block.layer}", work_of(config)
            # a system that trains the layer has none of it frozen
            layers[name] = max(layers.get(name, 0.0), 2.0 * work.frozen)
    return out | layers


def keep_bytes(configs: Sequence[Config]) -> tuple[float, float]:
    """Bytes that stay (weights and records of every run), and those of the two checkpoints of one
    run at its time."""
    trained = [4 * work_of(config).trainable for config in configs]
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
        dims, places = (
            len(configs[0].data.img_size),
            dict.fromkeys((c.task, c.fold) for c in configs),
        )
        names = [
            n
            for n in system_names()
            if n not in systems.NEVER_TRAINED
            and len(describe.system_config(n).data.img_size) == dims
        ]
        more = [
            load_config(study, task, name, fold=fold) for name in names for task, fold in places
        ]
        configs = list({run_folder.run_name(c): c for c in [*configs, *more]}.values())
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
        {"system": c.system, "hours": seconds(c, on) / 3600, "peak_memory_mb": memory_mb(c, on)}
        for c in configs
    ]
    down, (keep, checkpoints) = download_bytes(configs, data_dir), keep_bytes(configs)
    archives = [size for name, size in down.items() if ", layer" not in name]
    need = sum(down.values()) + max(archives, default=0) + keep + checkpoints * on.count
    hours, peak = sum(row["hours"] for row in rows), max(row["peak_memory_mb"] for row in rows)
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
        "host_memory_mb": max(host_mb(c) for c in configs),
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
            (
                f"one core does {device.fp32:.0f} GFLOP/s of a matrix product; each system reaches"
                " its share of data/bench.json"
            ),
            (
                f"{CASE_S * 1e3:.0f} ms per visit of a case and {AUGMENT_S * 1e9:.0f} ns per"
                " augmented voxel beside that (fitted on vit_baseline of quick and hippocampus)"
            ),
        ]
    lines = []
    for kind in sorted({c.train.precision for c in configs}):
        fast = speed(device, kind)
        what = (
            f"{fast.gflops / 1e3:.3g} TFLOP/s in {kind} and {fast.step_s * 1e3:.3g} ms of a step"
            " beside"
        )
        peak = f"{GPU_SHARE:.0%} of the published peak of {device.peak(kind) / 1e3:g} TFLOP/s"
        lines.append(
            f"{what}: measured on {fast.card} by `make gpu`"
            if fast.card
            else f"{what}: {peak}, assumed, not measured"
        )
    return [
        *lines,
        (
            "attention goes by a fused kernel (in fp32 the memory-efficient one, with keys and"
            " values repeated for grouped heads): no score matrix is kept"
        ),
        "cases arrive as fast as they are used",
        "runs are independent: several devices share them out",
    ]


def show(value: dict[str, Any]) -> str:
    """The plan as text."""
    unit = "core-hours" if value["device"] == "cpu" else "GPU-hours"

    def size(number):
        return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"

    lines = [
        f"{row['system']:<34}{row['runs']:>4} runs {row['hours']:>10.2f} {unit}"
        f" {row['peak_memory_mb'] / 1e3:>7.1f} GB"
        for row in value["systems"]
    ]
    verdict = (
        ""
        if value["memory_fits"]
        else (
            f"; a {value['device']} has {value['device_memory_mb'] / 1e3:.0f} GB: raise"
            " train.accumulate"
        )
    )
    return "\n".join(
        [
            *lines,
            (
                f"{value['study']}: {value['runs']} runs of"
                f" {' or '.join(map(str, value['epochs']))} epochs, {value['hours']:.1f} {unit},"
                f" {value['wall_hours']:.1f} hours on {value['devices']} {value['device']}"
            ),
            f"memory: {value['peak_memory_mb'] / 1e3:.1f} GB at most per run{verdict}",
            (
                f"disk: {size(value['download_bytes'])} to download, {size(value['keep_bytes'])} to"
                f" keep; {size(value['disk_need_bytes'])} needed at most,"
                f" {size(value['disk_free_bytes'])} free"
            ),
            *(f"assumed: {line}" for line in value["assumptions"]),
        ]
    )


def refusal(value: dict[str, Any]) -> str:
    """Why the study cannot start here; empty: it can."""
    if value["disk_fits"]:
        return ""
    return (
        f"{value['study']} needs {value['disk_need_bytes'] / 1e9:.1f} GB of disk and"
        f" {value['disk_free_bytes'] / 1e9:.1f} GB are free; free space, or name a larger disk by"
        " --results-dir and --data-dir"
    )
