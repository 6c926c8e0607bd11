"""The tasks of `data/registry.toml` and of your own data, by name."""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from mvl.core.config import ROOT, Config, did_you_mean
from mvl.datasets.task import SLICES, Task, TaskError, UnknownTask, data_root

NOT_KEPT = ("url", "md5", "bytes", "num_cases", "citation", "persons")

REGISTRY = ROOT / "data" / "registry.toml"


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

    A folder of your own data in the data folder is found by its whole name, be it one that ends in
    `_slices`.

    Raises:
        TaskError: no such task; hints at the nearest.
    """
    folder = data_root(data_dir) / name
    if name.lower().endswith(SLICES) and len(name) > len(SLICES) and not folder.is_dir():
        return sliced(find_task(name[: -len(SLICES)], data_dir))
    known = {alias: task for task in load_tasks().values() for alias in aliases(task.name)}
    if name.lower() not in known:
        from mvl.datasets.own_data import own_task

        if own := own_task(name, data_dir):
            return own
        hint = did_you_mean(name.lower(), sorted(known))
        raise UnknownTask(
            f"unknown task {name!r}{hint}; known: {', '.join(load_tasks())}, "
            f"and each folder of your own data in {data_root(data_dir)}"
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


def settle(text: str, data_dir: Path | None = None) -> tuple[str, Path | None]:
    """Full name of a task that was given by name or as the path of its folder, and the folder that
    its data lie in.

    Raises:
        TaskError: there is no such task or folder, its name cannot be part of a path, or its
            description cannot be used.
    """
    folder = Path(text).expanduser()
    by_path = len(folder.parts) > 1 or text.startswith((".", "~"))
    if by_path:
        if not folder.is_dir():
            raise TaskError(f"{text}: no such folder; give the folder of the scans or pictures")
        folder = Path(os.path.abspath(folder))
        text, data_dir = folder.name, folder.parent
    task = find_task(text, data_dir)
    if by_path and text != (place := task.folder or task.name):
        raise TaskError(
            f"{folder}: its name means the task {task.name}, whose folder is called {place}; rename"
            f" the folder, e.g. to Dataset001_{text}"
        )
    return task.name, data_dir


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
