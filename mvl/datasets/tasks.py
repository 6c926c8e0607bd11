"""The tasks of `data/registry.toml`, where their files lie, and which cases they hold."""

from __future__ import annotations

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mvl.config import ROOT, did_you_mean

REGISTRY = ROOT / "data" / "registry.toml"
MANIFESTS = ROOT / "data" / "manifests"
IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")
"Stray files that desktops leave behind; so is every name that starts with `._`."


class TaskError(RuntimeError):
    """A task is unknown, absent or not whole; the message names it and the remedy."""


@dataclass(frozen=True)
class Task:
    """One row of the registry."""

    name: str
    "Folder name, e.g. Task04_Hippocampus."
    title: str
    "What a figure calls it."
    modality: str
    "MRI, CT or synthetic."
    channels: tuple[str, ...]
    "Image channels in order."
    labels: dict[int, str]
    "Foreground values and their names."
    url: str
    "Archive; empty for what is made here."
    md5: str
    "Hex md5 of the archive."
    bytes: int
    "Size of the archive; 0: not known."
    num_cases: int
    "Labelled cases."
    licence: str
    "Licence of the data."
    citation: str
    "Whom to cite."
    nsd_tolerance_mm: float
    "Tolerance of the normalised surface distance, mm."
    dims: int = 3
    "Spatial dimensions."


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    case_id: str
    "File name without .nii.gz."
    image: Path
    "Image file."
    label: Path
    "Label file."


@cache
def load_tasks() -> dict[str, Task]:
    """Every task of the registry by name, `phantoms` included."""
    rows = tomllib.loads(REGISTRY.read_text())
    return {name: _task(name, row) for name, row in rows.items()}


def _task(name: str, row: dict[str, Any]) -> Task:
    fields = {key: value for key, value in row.items() if key != "note"}
    labels = {int(value): label for value, label in row["labels"].items()}
    return Task(**{**fields, "name": name, "labels": labels, "channels": tuple(row["channels"])})


def find_task(name: str) -> Task:
    """The task called `name`: its folder name or the word after the underscore, in any case.

    Raises:
        TaskError: no such task; hints at the nearest.
    """
    known = {alias: task for task in load_tasks().values() for alias in (task.name.lower(), task.name.lower().split("_")[-1])}
    if name.lower() not in known:
        hint = did_you_mean(name.lower(), sorted(known))
        raise TaskError(f"unknown task {name!r}{hint}; known: {', '.join(load_tasks())}")
    return known[name.lower()]


def data_root(data_dir: Path | None = None) -> Path:
    """Folder that holds the tasks: `data_dir`, else `$MVL_DATA`, else `data/raw` of this clone."""
    return Path(data_dir or os.environ.get("MVL_DATA") or ROOT / "data" / "raw").expanduser()


def task_path(task: Task, data_dir: Path | None = None) -> Path:
    """Where the task's folder belongs, there or not; phantoms never go into `$MVL_DATA`, which may be read-only."""
    if task.name == "phantoms" and data_dir is None:
        return ROOT / "data" / "raw" / task.name
    return data_root(data_dir) / task.name


def task_dir(task: Task, data_dir: Path | None = None) -> Path:
    """The task's folder; phantoms are made there when absent.

    Raises:
        TaskError: the data are not there; says how to get them.
    """
    folder = task_path(task, data_dir)
    if task.name == "phantoms":
        from mvl.datasets.phantoms import ensure_phantoms

        return ensure_phantoms(folder, task.num_cases)
    if not (folder / "dataset.json").is_file():
        raise TaskError(f"{folder}: no data of {task.name} there; run `mvl fetch {task.name}`, "
                        f"or point --data-dir or MVL_DATA at the folder that holds {task.name}")
    return folder


def list_cases(task: Task, data_dir: Path | None = None) -> list[Case]:
    """Labelled cases that `dataset.json` lists, sorted by case id, every file there.

    Raises:
        TaskError: `dataset.json` is not usable, a path leaves the folder, a case is listed twice or a file is missing; names it.
    """
    folder = task_dir(task, data_dir)
    cases = read_cases(folder)
    missing = [path for case in cases for path in (case.image, case.label) if not path.is_file()]
    if missing:
        raise TaskError(f"{missing[0]}: missing, with {len(missing) - 1} more files of {folder.name}; "
                        f"run `mvl verify {task.name}` for the list, then move {folder} away and run `mvl fetch {task.name}`")
    return cases


def read_cases(folder: Path) -> list[Case]:
    """Cases that `folder/dataset.json` lists, sorted by case id; the files themselves are not looked at."""
    path = folder / "dataset.json"
    try:
        rows = [(row["image"], row["label"]) for row in json.loads(path.read_text())["training"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path}: not a Decathlon dataset.json ({type(error).__name__}: {error}); fetch the task again") from error
    rows = [(image, label) for image, label in rows if not is_stray(Path(image).name)]
    cases = [Case(case_name(image), _inside(folder, image), _inside(folder, label)) for image, label in rows]
    ids = [case.case_id for case in cases]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise TaskError(f"{path}: case {twice[0]} is listed twice; fetch the task again")
    return sorted(cases, key=lambda case: case.case_id)


def read_manifest(task: Task, folder: Path) -> dict[str, str]:
    """sha256 by relative path: the folder's own `manifest.json`, written when it was fetched, else the committed one, else nothing."""
    for path in (folder / "manifest.json", MANIFESTS / f"{task.name}.json"):
        if path.is_file():
            try:
                return dict(json.loads(path.read_text())["files"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TaskError(f"{path}: not a manifest ({type(error).__name__}); move {folder} away and fetch the task again") from error
    return {}


def case_name(path: str) -> str:
    """`./imagesTr/a_001.nii.gz` -> `a_001`."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def is_stray(name: str) -> bool:
    """True for files that desktops leave behind (`._x`, `.DS_Store`, ...), which are never cases."""
    return name.startswith("._") or name in IGNORED_NAMES


def _inside(folder: Path, relative: str) -> Path:
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TaskError(f"{folder / 'dataset.json'}: {relative!r} leaves the folder; do not use this copy, fetch the task again")
    return Path(os.path.normpath(path))


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (a folder, or a lock file made when absent), waiting for whoever has it.

    The kernel frees it when the process ends, however it ends.

    Raises:
        TaskError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TaskError(f"{path.parent}: cannot write there ({error.strerror}); choose a writable folder with --data-dir") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
