"""How many volumes the loader gives, from files, from disk and from memory, beside what a planned
GPU would take (`mvl bench --loader`)."""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl.bench.overhead import clock
from mvl.core import files, machine
from mvl.core.config import ROOT, Config, load_config
from mvl.core.markdown import markdown_table

if TYPE_CHECKING:
    from torch import Tensor

    from mvl.datasets.augment import Change
    from mvl.datasets.loaders import CaseStore

RECORD = ROOT / "data" / "loader.json"
STUDY, TASK, SYSTEMS, DEVICE = (
    "paper",
    "Task04_Hippocampus",
    ("vit_baseline", "medvisionllama_v3"),
    "h100",
)
"""Real scans at the paper's size and batch; what is asked for is asked by these systems on this
device."""
VOLUMES, WORKERS, LARGE = 8, (0, 1, 2), (512, 512, 64)
BATCH_BAR = 0.5
"Most that a case's augmentation in a batch may take of what it takes alone."
SOURCES = {
    "files": "decoded at each visit",
    "disk": "from the cache on disk",
    "memory": "from memory",
}


def bench(
    tell: Callable[[str], None] = lambda line: None,
    data_dir: Path | None = None,
    config: Config | None = None,
    volumes: int = VOLUMES,
    large: tuple[int, ...] = LARGE,
) -> dict[str, Any]:
    """An epoch of `volumes` for each source, number of loader processes, with and without
    augmentation; and one large made scan.

    Raises:
        TaskError: the scans are not there; says how to get them.
    """
    config, rows = config or load_config(STUDY, TASK, SYSTEMS[0]), []
    for source in SOURCES:
        with (
            tempfile.TemporaryDirectory() as scratch,
            cached(Path(scratch) if source == "disk" else None),
        ):
            for augment in (True, False):
                data = replace(
                    config.data,
                    augment=augment,
                    cache_gb=config.data.cache_gb if source == "memory" else 0.0,
                )
                for workers in WORKERS:
                    one = replace(config, data=replace(data, num_workers=workers))
                    rows.append(row(one, source, volumes, data_dir))
                tell(
                    "; ".join(
                        f"{r['source']}, augment {r['augment']}, {r['workers']} processes:"
                        f" {r['volumes_per_s']:.2f} volumes/s"
                        for r in rows[-len(WORKERS) :]
                    )
                )
    with cached(None):
        augmented = augmentation_times(config, volumes, data_dir)
    tell(augmentation_line(augmented))
    return {
        "task": config.task,
        "augmentation": augmented,
        "img_size": list(config.data.img_size),
        "volumes": volumes,
        "rows": rows,
        "asked": asked(config),
        "large": {"shape": list(large), "cpu_s": large_scan(config, large)},
        "device": DEVICE,
        "measured": files.now(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "environment": machine.environment(),
    }


@contextmanager
def cached(folder: Path | None) -> Iterator[None]:
    """While the block runs, decoded cases are kept in `folder`, or not on disk."""
    old = os.environ.pop("MVL_CACHE", None)
    if folder:
        os.environ["MVL_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("MVL_CACHE", None)
        if old is not None:
            os.environ["MVL_CACHE"] = old


def store_of(config: Config, volumes: int, data_dir: Path | None) -> CaseStore:
    """The first training cases of fold 0."""
    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.splits import load_split
    from mvl.datasets.task_data import open_task

    data = open_task(config.task, data_dir)
    return CaseStore(data, load_split(data, 0, 1.0).train[:volumes], config.data)


def row(config: Config, source: str, volumes: int, data_dir: Path | None) -> dict[str, Any]:
    """One epoch, start and end of the loader processes included: volumes per second, and processor
    seconds per volume over all processes."""
    from mvl.datasets.loaders import training_loader

    store = store_of(config, volumes, data_dir)
    if source != "files":  # decoded before the clock starts, into memory or onto disk
        for index in range(len(store)):
            store.get(index)
    begun, cpu = time.monotonic(), clock()
    seen = sum(len(batch["cases"]) for batch in training_loader(store, config, 0))
    wall, cpu = time.monotonic() - begun, clock() - cpu
    return {
        "source": source,
        "augment": config.data.augment,
        "workers": config.data.num_workers,
        "volumes_per_s": seen / wall,
        "cpu_s": cpu / seen,
    }


def augmentation_times(
    config: Config, volumes: int, data_dir: Path | None, repeats: int = 3
) -> dict[str, float]:
    """Milliseconds of processor time that the augmentation of a case takes alone and in a batch,
    with the same draws, in this process.

    Alone is PyTorch's own sampler, asked for image and label apart; the batch is what training
    does. Medians of `repeats`, turn about.

    Raises:
        RuntimeError: the two differ in a bit.
    """
    import torch

    from mvl.datasets.augment import Changes, augmentation

    # as training does: without it, page faults are most of what is measured
    machine.keep_freed_memory()
    store = store_of(config, volumes, data_dir)
    pairs = [store.get(index) for index in range(len(store))]
    images, labels = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    augment, size = augmentation(config.data), config.train.batch_size
    taken: dict[str, list[float]] = {"alone": [], "batch": []}
    for repeat in range(repeats + 1):
        begun = clock()
        single = [
            one_alone(augment.draw(index), images[index : index + 1], labels[index : index + 1])
            for index in range(volumes)
        ]
        middle = clock()
        changes = Changes(
            [augment.draw(index) for index in range(volumes)], config.data.img_size, images.device
        )
        parts = [slice(start, start + size) for start in range(0, volumes, size)]
        together = [changes.apply(images[part], labels[part], part) for part in parts]
        if repeat:  # the first warms up
            taken["alone"].append((middle - begun) / volumes * 1e3)
            taken["batch"].append((clock() - middle) / volumes * 1e3)
    for which in (0, 1):
        if not torch.equal(
            torch.cat([pair[which] for pair in single]),
            torch.cat([pair[which] for pair in together]),
        ):
            raise RuntimeError("augmentation in a batch differs from that of a case alone")
    medians = {way: statistics.median(times) for way, times in taken.items()}
    return {
        "alone_ms": medians["alone"],
        "batch_ms": medians["batch"],
        "ratio": medians["batch"] / medians["alone"],
        "bar": BATCH_BAR,
    }


def one_alone(change: Change, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """One case (1, C, *S) turned and brightened as PyTorch does it, whose sampler finds the
    positions for image and label apart."""
    import torch.nn.functional as F

    from mvl.datasets.resample import read, sampling_theta

    if change.turn is not None:
        theta = sampling_theta(change.turn, tuple(image.shape[2:]))[None]
        grid = F.affine_grid(theta, [1, 1, *image.shape[2:]], align_corners=False)
        image, label = (
            read(image, grid, "bilinear"),
            read(label.float(), grid, "nearest").to(label.dtype),
        )
    factor, summand = change.intensity or (1.0, 0.0)
    return image * factor + summand, label


def asked(config: Config) -> dict[str, dict[str, float]]:
    """Seconds per step and volumes per second that the planner expects of the device, by system."""
    from mvl.bench import gpus, plan
    from mvl.bench.work import work_of

    device, size, out = plan.find_device(DEVICE), config.train.batch_size, {}
    for system in SYSTEMS:
        planned = load_config(STUDY, config.task, system)
        fast = gpus.speed(device, planned.train.precision)
        step = work_of(planned).trained * size / fast.gflops + fast.step_s
        out[system] = {"step_s": step, "volumes_per_s": size / step}
    return out


def large_scan(config: Config, shape: tuple[int, ...]) -> float:
    """Processor seconds that a made scan of CT's size takes from file to the network's grid:
    hippocampus scans are small, most others are not."""
    import numpy as np

    from mvl.datasets.nifti import nifti_bytes
    from mvl.datasets.preprocessing import preprocessing

    rng, paths = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as scratch:
        for key, voxels in (
            ("image", rng.integers(-100, 100, shape, np.int16)),
            ("label", (np.indices(shape)[0] < shape[0] // 2).astype(np.uint8)),
        ):
            paths[key] = f"{scratch}/{key}.nii.gz"
            Path(paths[key]).write_bytes(nifti_bytes(voxels, np.eye(4)))
        transform, begun = preprocessing(config.data), clock()
        transform(paths)
        return clock() - begun


def augmentation_line(augmented: dict[str, float]) -> str:
    """The augmentation of a case alone and in a batch, beside its bar."""
    met = "met" if augmented["ratio"] <= augmented["bar"] else "NOT met"
    return (
        f"The augmentation of a case takes {augmented['alone_ms']:.0f} ms of processor time alone,"
        f" by PyTorch's sampler, and {augmented['batch_ms']:.0f} ms in a batch, with the same draws"
        f" and bits: {augmented['ratio']:.2f} of it (bar: at most {augmented['bar']:g}, {met})."
    )


def starving(value: dict[str, Any]) -> str:
    """What would keep the device waiting, computed from a record."""
    cpu = {(r["source"], r["augment"]): r["cpu_s"] for r in value["rows"] if r["workers"] == 0}
    part = {
        "augmentation": cpu["memory", True] - cpu["memory", False],
        "decoding a small scan": cpu["files", False] - cpu["memory", False],
        "reading the cache": cpu["disk", False] - cpu["memory", False],
    }
    most = max(part, key=lambda name: part[name])
    large = value["large"]["cpu_s"] + cpu["memory", True]
    lines = [
        f"One core prepares {1 / cpu['memory', True]:.1f} volumes a second from memory,"
        f" {1 / cpu['disk', True]:.1f} from the cache and {1 / cpu['files', True]:.1f} when each"
        f" visit decodes. What takes longest is {most} ({part[most] * 1e3:.0f} of"
        f" {cpu['files', True] * 1e3:.0f} ms of processor time for a volume)."
    ]
    for system, ask in value["asked"].items():
        rate = ask["volumes_per_s"]
        lines.append(
            f"For `{system}` the planner expects {ask['step_s']:.3f} s a step,"
            f" {rate:.1f} volumes a second. With fewer cores than these it waits:"
            f" {math.ceil(rate * cpu['memory', True])} from memory,"
            f" {math.ceil(rate * cpu['files', True])} when each visit decodes a small scan,"
            f" {math.ceil(rate * large)} when it decodes one of"
            f" {'x'.join(map(str, value['large']['shape']))} ({value['large']['cpu_s']:.1f} s)."
        )
    return " ".join(lines)


def table(value: dict[str, Any]) -> str:
    """Markdown table of the rows."""
    titles = [
        "source",
        "augmented",
        *(f"{w} process{'es' * (w != 1)}" for w in WORKERS),
        "ms of processor time per volume",
    ]
    rows = []
    for source, words in SOURCES.items():
        for augment in (True, False):
            mine = {
                r["workers"]: r
                for r in value["rows"]
                if (r["source"], r["augment"]) == (source, augment)
            }
            cells = [f"{mine[w]['volumes_per_s']:.1f}" for w in WORKERS]
            ms = f"{mine[0]['cpu_s'] * 1e3:.0f}"
            rows.append([words, "yes" if augment else "no", *cells, ms])
    return markdown_table(titles, "ll" + "r" * (len(titles) - 2), rows)


def show(value: dict[str, Any]) -> str:
    """The measured epochs and what they mean."""
    return "\n\n".join([table(value), augmentation_line(value["augmentation"]), starving(value)])


def facts(path: Path = RECORD) -> dict[str, str]:
    """What `book/scale.md` shows."""
    if not path.is_file():
        return {"loader": "The loader was not measured."}
    value = json.loads(path.read_text())
    size = "x".join(map(str, value["img_size"]))
    first = (
        "Volumes per second that the loader gives, by loader processes (0: the run's own), over"
        f" epochs of {value['volumes']} scans of `{value['task']}` at {size}, as `mvl bench"
        f" --loader` wrote them into `data/loader.json`. The machine had {value['cores']} cores and"
        f" a load of {value['load']:g} from other work: the last column hardly depends on that, the"
        " others do."
    )
    # A record of before the measurement has none.
    augmented = [augmentation_line(value["augmentation"])] if "augmentation" in value else []
    return {"loader": "\n\n".join([first, table(value), *augmented, starving(value)])}
