"""Decoded cases kept on disk, so that the runs of a study decode a scan once: `MVL_CACHE=FOLDER`
turns it on, `mvl cache --clear` empties it.

An entry is a safetensors file whose name is `<key>-<hash>`. The key is a sha256 over all that the
arrays depend on: the bytes of the case's files, what the config asks of them, the code that reads
and transforms, package versions, processor and threads. The hash is the entry's own and is checked
whenever it is read. Off by default: an entry is a copy of a scan, made where somebody asked for
copies.

Differs: MONAI's PersistentDataset keeps by file name, gives old arrays when a file or a transform
changed, and takes flipped bits for good.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mvl.core import machine
from mvl.core.command_lines import command_line
from mvl.core.config import DataConfig
from mvl.core.files import atomic_write, sha256_bytes, sha256_file
from mvl.datasets.augment import Mask, Volume
from mvl.datasets.preflight import RULES
from mvl.datasets.task import Case, Task

ENTRY = re.compile(r"[0-9a-f]{40}-[0-9a-f]{40}\.safetensors")
LEFT = re.compile(r"\.[0-9a-f]{40}-[0-9a-f]{40}\.safetensors\..*\.tmp")
"Half an entry, left by a killed writer."
AFTERWARDS = {
    "augment",
    "augmentation",
    "rotate_degrees",
    "intensity_factor",
    "label_noise",
    "label_noise_rate",
    "cache_gb",
    "num_workers",
    "split",
}
"""Settings of data that act on decoded cases, or not on cases at all; every other one is part of
the key."""
CODE = (
    *("decoded_cache.py", "preprocessing.py", "case_store.py", "cases_2d.py", "slices.py"),
    *("nifti.py", "nifti_geometry.py", "pictures.py", "masks.py"),
)
"""Modules whose text is part of the key: an edit of any of them makes every entry one that is not
found again."""
PACKAGES = ("torch", "monai", "numpy", "nibabel", "pillow", "scipy")
LEAST_FREE = 2e9
"Bytes that stay free on the disk: an entry that would take of them is not written."
Pair = tuple[Volume, Mask]
_TOLD: set[Path] = set()


def folder() -> Path | None:
    """Where entries lie, by `$MVL_CACHE`; None: nothing is kept."""
    name = os.environ.get("MVL_CACHE", "").strip()
    return Path(name).expanduser().absolute() if name else None


def kept(
    task: Task, case: Case, data: DataConfig, digests: Sequence[str], make: Callable[[], Pair]
) -> Pair:
    """Image and label of a case from disk, else as `make` decodes them, then kept; `digests`:
    sha256 of the case's files, in their order."""
    place = folder()
    if place is None:
        return make()
    name = key(task, case, data, digests)
    pair = read(place, name)
    if pair is None:
        pair = make()
        write(place, name, pair)
    return pair


def key(task: Task, case: Case, data: DataConfig, digests: Sequence[str]) -> str:
    """sha256 (hex, 40 of 64) over everything that the arrays of a case depend on."""
    asked = {name: value for name, value in vars(data).items() if name not in AFTERWARDS}
    about = [
        task.layout,
        task.dims,
        task.channels,
        sorted(task.labels),
        task.own,
        RULES,
        case.z,
        len(case.images),
    ]
    return sha256_bytes(
        json.dumps(
            [list(digests), asked, about, made_by(), torch.get_num_threads()], sort_keys=True
        ).encode()
    )[:40]


@cache
def made_by() -> dict[str, Any]:
    """Code, packages and processor: what the same files and settings could give other bits with."""
    facts = {
        name: fact
        for name, fact in machine.platform_facts().items()
        if name not in ("device", "threads")
    }
    code = {name: sha256_file(Path(__file__).parent / name) for name in CODE}
    return {
        "code": code,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": facts,
    }


def read(place: Path, name: str) -> Pair | None:
    """The entry of a key, None where there is none; a damaged one is named on stderr and taken
    away."""
    for path in (place / name[:2]).glob(f"{name}-*.safetensors"):
        with suppress(FileNotFoundError):  # cleared meanwhile
            data = path.read_bytes()
            with suppress(SafetensorError, KeyError):
                if path.stem.endswith(sha256_bytes(data)[:40]):
                    entry = safetensors.torch.load(data)
                    return entry["image"], entry["label"]
            print(
                f"{path}: bytes differ from the hash in its name; its case is decoded anew",
                file=sys.stderr,
            )
            path.unlink(missing_ok=True)
    return None


def write(place: Path, name: str, pair: Pair) -> None:
    """Keep a pair, atomically, so that two writers of one key leave one whole entry; where that
    cannot be done it is said once, and no more."""
    data = safetensors.torch.save({"image": pair[0].contiguous(), "label": pair[1].contiguous()})
    try:
        path = place / name[:2] / f"{name}-{sha256_bytes(data)[:40]}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(place).free < LEAST_FREE + len(data):
            raise OSError(
                f"less than {LEAST_FREE / 1e9:g} GB would stay free;"
                f" `{command_line('cache', '--clear')}` empties it"
            )
        atomic_write(path, data)
    except OSError as error:
        if place not in _TOLD:
            print(
                f"{place}: decoded cases cannot be kept ({error}); free space, or point MVL_CACHE"
                " at a folder that can be written",
                file=sys.stderr,
            )
        _TOLD.add(place)


def entries(place: Path) -> Iterator[Path]:
    """Files of the cache in a folder: entries, and halves of entries; nothing else that may lie
    there."""
    for path in sorted(place.glob("??/*")) + sorted(place.glob("??/.*.tmp")):
        if path.is_file() and (ENTRY.fullmatch(path.name) or LEFT.fullmatch(path.name)):
            yield path


def describe(clear: bool = False) -> dict[str, Any]:
    """Where the cache is, how many entries and bytes it holds, and how many of them were cleared
    now."""
    place = folder()
    files = [(path, path.stat().st_size) for path in entries(place)] if place else []
    for path, _ in files if clear else ():
        path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty yet
            path.parent.rmdir()
    return {
        "folder": str(place) if place else None,
        "entries": len(files),
        "bytes": sum(size for _, size in files),
        "cleared": clear,
    }


def show(value: dict[str, Any]) -> str:
    """`describe` as a line."""
    if value["folder"] is None:
        return "decoded cases are not kept on disk; MVL_CACHE=FOLDER keeps them there"
    return (
        f"{value['folder']}: {value['entries']} decoded cases, {value['bytes'] / 1e6:.1f}"
        f" MB{', cleared' if value['cleared'] else ''}"
    )
