"""The tasks of `data/registry.toml`, where their files lie, and which cases they hold."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from mvl.core.config import ROOT, Config, did_you_mean
from mvl.core.files import sha256_file
from mvl.datasets.decathlon import read_cases
from mvl.datasets.task import (
    MADE,
    SLICES,
    Case,
    Task,
    TaskError,
    UnknownTask,
    data_root,
    task_command,
)

NOT_KEPT = ("url", "md5", "bytes", "num_cases", "citation", "persons")

REGISTRY = ROOT / "data" / "registry.toml"
MANIFESTS = ROOT / "data" / "manifests"


@cache
def load_tasks() -> dict[str, Task]:
    """Every task of the registry by name, `phantoms` included."""
    rows = tomllib.loads(REGISTRY.read_text())
    return {name: _task(name, row) for name, row in rows.items()}


def _task(name: str, row: dict[str, Any]) -> Task:
    fields = {key: value for key, value in row.items() if key != "note"}
    fields["together"] = tuple(map(tuple, row.get("together", ())))
    for key in ("channels", "sequence_ends"):
        fields[key] = tuple(row.get(key, ()))
    labels = {int(value): label for value, label in row["labels"].items()}
    return Task(**{**fields, "name": name, "labels": labels})


def aliases(name: str) -> set[str]:
    """What a task of the registry may be called, in small letters: its name, also without `Task04_`
    before it or `_256` behind it."""
    short = name.lower()
    return {short, re.sub(r"^task\d\d_", "", short), short.removesuffix("_256")}


def find_task(name: str, data_dir: Path | None = None) -> Task:
    """The task called `name`: its folder name or one of its `aliases`, in any case;
    `<task>_slices`: the axial slices of one.

    A folder of your own data in the data folder is found by its whole name.

    Raises:
        TaskError: no such task; hints at the nearest.
    """
    if name.lower().endswith(SLICES) and len(name) > len(SLICES):
        return sliced(find_task(name[: -len(SLICES)], data_dir))
    known = {alias: task for task in load_tasks().values() for alias in aliases(task.name)}
    if name.lower() not in known:
        from mvl.datasets.own_data import own_task

        if own := own_task(name, data_dir):
            return own
        hint = did_you_mean(name.lower(), sorted(known))
        raise UnknownTask(
            f"unknown task {name!r}{hint}; known: {', '.join(load_tasks())}, "
            f"and each folder with a dataset.json in {data_root(data_dir)}"
        )
    return known[name.lower()]


def sliced(task: Task) -> Task:
    """The task whose cases are the axial slices of a Decathlon task's volumes, found in the same
    folder.

    Raises:
        TaskError: the task holds no volumes.
    """
    if task.layout != "decathlon" or task.dims != 3:
        raise TaskError(f"{task.name}: holds no volumes to slice; known: {', '.join(load_tasks())}")
    title, folder = f"{task.title}, axial slices", task.folder or task.name
    return dataclasses.replace(
        task, name=task.name + SLICES, title=title, folder=folder, dims=2, layout="slices"
    )


def whole_task(task: Task) -> Task:
    """The task whose volumes a task of slices cuts; any other task itself."""
    if task.layout != "slices":
        return task
    return dataclasses.replace(
        task,
        name=task.name.removesuffix(SLICES),
        title=task.title.removesuffix(", axial slices"),
        dims=3,
        layout="decathlon",
    )


def task_path(task: Task, data_dir: Path | None = None) -> Path:
    """Where the task's folder belongs, there or not.

    What is made here never goes into `$MVL_DATA`, which may be read-only; what is committed here is
    found whatever the data root is.
    """
    name = task.folder or task.name
    if name in MADE and data_dir is None:
        return ROOT / "data" / "raw" / name
    folder = data_root(data_dir) / name
    return ROOT / task.home / name if task.home and not folder.is_dir() else folder


def task_dir(task: Task, data_dir: Path | None = None) -> Path:
    """The task's folder; what mvl makes itself is made there when absent.

    Raises:
        TaskError: the data are not there; says how to get them.
    """
    folder = task_path(task, data_dir)
    if whole_task(task).name in MADE:
        return make(whole_task(task), folder)
    there = (
        folder.is_dir() if task.layout in ("busi", "pairs") else (folder / "dataset.json").is_file()
    )
    if not there:
        get = (
            f"download it from {task.page} and unpack it there"
            if task.page
            else f"run `{task_command('fetch', task, folder)}`"
        )
        if folder.exists():
            get = f"move it away, then {get}"
        raise TaskError(
            f"{folder}: no data of {task.name} there; {get}, "
            f"or point --data-dir or MVL_DATA at the folder that holds {folder.name}"
        )
    return folder


def make(task: Task, folder: Path) -> Path:
    """The folder of a task of `MADE`, made now unless it lies there."""
    if task.name == "shapes":
        from mvl.datasets.shapes2d import ensure_shapes

        return ensure_shapes(folder, task.num_cases)
    from mvl.datasets.phantoms import ensure_phantoms

    return ensure_phantoms(folder, task.num_cases)


def list_cases(task: Task, data_dir: Path | None = None) -> list[Case]:
    """Labelled cases that `dataset.json` lists, or that the folder holds (pictures, slices), sorted
    by case id, every file there.

    Raises:
        TaskError: `dataset.json` is not usable, a path leaves the folder, a case is listed twice or
            a file is missing; names it.
    """
    folder = task_dir(task, data_dir)
    cases = read_layout(task, folder)
    missing = [path for case in cases for path in (*case.images, case.label) if not path.is_file()]
    if missing:
        again = (
            f"move {folder} away and run `{task_command('fetch', task, folder)}`"
            if not task.own
            else "bring them back, or take their cases out"
        )
        raise TaskError(
            f"{missing[0]}: missing, with {len(missing) - 1} more files of {folder.name}; "
            f"run `{task_command('verify', task, folder)}` for the list, then {again}"
        )
    return cases


def read_layout(task: Task, folder: Path) -> list[Case]:
    """Cases of a folder in the task's layout, sorted by case id."""
    if task.layout == "decathlon":
        return read_cases(folder)
    if task.layout == "nnunet":
        from mvl.datasets.own_data import read_nnunet

        return read_nnunet(folder)
    from mvl.datasets import pictures, slices

    readers = {
        "busi": pictures.read_busi,
        "pairs": pictures.read_pairs,
        "slices": slices.read_slices,
    }
    return readers[task.layout](folder)


def read_manifest(task: Task, folder: Path) -> dict[str, str]:
    """sha256 by relative path: the folder's own `manifest.json`, written when it was fetched, else
    the committed one, else nothing.

    A committed manifest of pictures that say which copy they are (`copy`) does not bind another
    copy, e.g. one at full size.
    """
    for path in (folder / "manifest.json", MANIFESTS / f"{whole_task(task).name}.json"):
        if path.is_file():
            try:
                manifest = json.loads(path.read_text())
                return (
                    {}
                    if "copy" in manifest and is_other_copy(manifest["files"], folder)
                    else dict(manifest["files"])
                )
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TaskError(
                    f"{path}: not a manifest ({type(error).__name__}); move {folder} away and fetch"
                    " the task again"
                ) from error
    return {}


def is_other_copy(files: dict[str, str], folder: Path, looked_at: int = 6) -> bool:
    """True where none of a few images has the bytes that a manifest names: another copy of the
    data, not a damaged one."""
    some = [name for name in sorted(files) if "mask" not in name and (folder / name).is_file()][
        :: max(1, len(files) // (2 * looked_at))
    ]
    return bool(some) and not any(sha256_file(folder / name) == files[name] for name in some)


def settle(text: str, data_dir: Path | None = None) -> tuple[str, Path | None]:
    """Full name of a task that was given by name or as the path of its folder, and the folder that
    its data lie in.

    Raises:
        TaskError: there is no such task or folder, its name cannot be part of a path, or its
            description cannot be used.
    """
    folder = Path(text).expanduser()
    if len(folder.parts) > 1 or text.startswith((".", "~")):
        if not folder.is_dir():
            raise TaskError(f"{text}: no such folder; give the folder that holds dataset.json")
        folder = Path(os.path.abspath(folder))
        text, data_dir = folder.name, folder.parent
        if find_registered(text) not in (None, text):
            raise TaskError(
                f"{folder}: its name means the task {find_registered(text)}; rename the folder,"
                f" e.g. to Dataset001_{text}"
            )
    return find_task(text, data_dir).name, data_dir


def find_registered(name: str) -> str | None:
    """Full name of the task of the registry that `name` stands for, or nothing."""
    return next((task for task in load_tasks() if name.lower() in aliases(task)), None)


def task_facts(task: Task) -> dict[str, Any]:
    """What a run keeps of its task, so that its network can be built again without the training
    data."""
    return {key: value for key, value in dataclasses.asdict(task).items() if key not in NOT_KEPT}


def task_of_run(config: Config, status: dict[str, Any], data_dir: Path | None = None) -> Task:
    """The task that a run was trained on: as the run recorded it, else as the registry or the data
    folder has it."""
    facts = status.get("task")
    if not isinstance(facts, dict):
        return find_task(config.task, data_dir)
    known = {field.name for field in dataclasses.fields(Task)}
    kept = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in facts.items()
        if key in known
    }
    fields: dict[str, Any] = {
        **kept,
        "labels": {int(value): name for value, name in facts["labels"].items()},
    }
    return Task(**{**fields, "url": "", "md5": "", "bytes": 0, "num_cases": 0, "citation": ""})
