"""The tasks of `data/registry.toml`, where their files lie, and which cases they hold."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mvl.config import ROOT, did_you_mean
from mvl.errors import MvlError
from mvl.runs import sha256_file

REGISTRY = ROOT / "data" / "registry.toml"
MANIFESTS = ROOT / "data" / "manifests"
MADE = ("phantoms", "shapes")
"Tasks that mvl makes itself, on demand."
SLICES = "_slices"
"End of the name of a task of slices."
OWN = "own data"
"Licence of tasks that are not in the registry."
IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")
"Stray files that desktops leave behind; so is every name that starts with `._`."


class TaskError(MvlError, RuntimeError):
    """A task is unknown, absent or not whole; the message names it and the remedy."""


class UnknownTask(TaskError):
    """No task and no folder has this name."""


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
    layout: str = "decathlon"
    """decathlon: a dataset.json that lists cases; nnunet: one that names channels (see own.py); busi, pairs: pictures (see pictures.py);
    slices: axial slices of the Decathlon task in the same folder."""
    unit: str = "mm"
    "Unit of nsd_tolerance_mm and hd95_mm: mm, or px for pictures, whose pixels have no known size."
    folder: str = ""
    "Folder below the data root; empty: the task's name."
    page: str = ""
    "Where a person downloads what has no archive that can be fetched and checked."
    persons: str = ""
    """How the case names tell persons, for `data.split: persons`; `pairs`: numbers 2k-1 and 2k are two sides of one person; empty: they
    do not."""
    copy_of: str = ""
    "Name of the task of which this one is a reduced copy; empty: of none that the registry knows."
    together: tuple[tuple[str, ...], ...] = ()
    "Groups of cases that stay in one block of every split, such as one image with two labels."
    sequence_ends: tuple[int, ...] = ()
    "Last number of each video sequence, where a case is the number of a frame; the frames of a sequence stay in one block."
    least_correlation: float = 0.96
    "Near duplicates of a picture task correlate at least so much at 64 x 64 pixels (see duplicates.py)."
    prompt: str = ""
    "Words for text guidance; empty: structure and modality, from title, channels and modality."

    @property
    def own(self) -> bool:
        """True for your own data, which the registry does not know."""
        return self.licence == OWN


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    case_id: str
    "File name without .nii.gz."
    image: Path
    "Image file."
    label: Path
    "Label file."
    more_labels: tuple[Path, ...] = ()
    "Further mask files: the label is the union of all."
    z: int | None = None
    "Index along the superior axis, for a slice of a volume."
    more: tuple[Path, ...] = ()
    "Image files of the further channels, where each channel has its own (nnU-Net)."

    @property
    def images(self) -> tuple[Path, ...]:
        """Every image file, in channel order."""
        return (self.image, *self.more)


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
    """What a task of the registry may be called, in small letters: its name, also without `Task04_` before it or `_256` behind it."""
    short = name.lower()
    return {short, re.sub(r"^task\d\d_", "", short), short.removesuffix("_256")}


def find_task(name: str, data_dir: Path | None = None) -> Task:
    """The task called `name`: its folder name or one of its `aliases`, in any case; `<task>_slices`: the axial slices of one.

    A folder of your own data in the data folder is found by its whole name.

    Raises:
        TaskError: no such task; hints at the nearest.
    """
    if name.lower().endswith(SLICES) and len(name) > len(SLICES):
        return sliced(find_task(name[:-len(SLICES)], data_dir))
    known = {alias: task for task in load_tasks().values() for alias in aliases(task.name)}
    if name.lower() not in known:
        from mvl.datasets.own import own_task

        if own := own_task(name, data_dir):
            return own
        hint = did_you_mean(name.lower(), sorted(known))
        raise UnknownTask(f"unknown task {name!r}{hint}; known: {', '.join(load_tasks())}, "
                          f"and each folder with a dataset.json in {data_root(data_dir)}")
    return known[name.lower()]


def sliced(task: Task) -> Task:
    """The task whose cases are the axial slices of a Decathlon task's volumes, found in the same folder.

    Raises:
        TaskError: the task holds no volumes.
    """
    if task.layout != "decathlon" or task.dims != 3:
        raise TaskError(f"{task.name}: holds no volumes to slice; known: {', '.join(load_tasks())}")
    title, folder = f"{task.title}, axial slices", task.folder or task.name
    return dataclasses.replace(task, name=task.name + SLICES, title=title, folder=folder, dims=2, layout="slices")


def whole_task(task: Task) -> Task:
    """The task whose volumes a task of slices cuts; any other task itself."""
    if task.layout != "slices":
        return task
    return dataclasses.replace(task, name=task.name.removesuffix(SLICES), title=task.title.removesuffix(", axial slices"), dims=3, layout="decathlon")


def data_root(data_dir: Path | None = None) -> Path:
    """Folder that holds the tasks: `data_dir`, else `$MVL_DATA`, else `data/raw` of this clone."""
    return Path(data_dir or os.environ.get("MVL_DATA") or ROOT / "data" / "raw").expanduser()


def task_path(task: Task, data_dir: Path | None = None) -> Path:
    """Where the task's folder belongs, there or not; what is made here never goes into `$MVL_DATA`, which may be read-only."""
    name = task.folder or task.name
    return ROOT / "data" / "raw" / name if name in MADE and data_dir is None else data_root(data_dir) / name


def task_dir(task: Task, data_dir: Path | None = None) -> Path:
    """The task's folder; what mvl makes itself is made there when absent.

    Raises:
        TaskError: the data are not there; says how to get them.
    """
    folder = task_path(task, data_dir)
    if whole_task(task).name in MADE:
        return make(whole_task(task), folder)
    there = folder.is_dir() if task.layout in ("busi", "pairs") else (folder / "dataset.json").is_file()
    if not there:
        get = f"download it from {task.page} and unpack it there" if task.page else f"run `mvl fetch {task.name}`"
        raise TaskError(f"{folder}: no data of {task.name} there; {get}, "
                        f"or point --data-dir or MVL_DATA at the folder that holds {folder.name}")
    return folder


def make(task: Task, folder: Path) -> Path:
    """The folder of a task of `MADE`, made now unless it lies there."""
    if task.name == "shapes":
        from mvl.datasets.shapes2d import ensure_shapes

        return ensure_shapes(folder, task.num_cases)
    from mvl.datasets.phantoms import ensure_phantoms

    return ensure_phantoms(folder, task.num_cases)


def list_cases(task: Task, data_dir: Path | None = None) -> list[Case]:
    """Labelled cases that `dataset.json` lists, or that the folder holds (pictures, slices), sorted by case id, every file there.

    Raises:
        TaskError: `dataset.json` is not usable, a path leaves the folder, a case is listed twice or a file is missing; names it.
    """
    folder = task_dir(task, data_dir)
    cases = read_layout(task, folder)
    missing = [path for case in cases for path in (*case.images, case.label) if not path.is_file()]
    if missing:
        again = f"move {folder} away and run `mvl fetch {task.name}`" if not task.own else "bring them back, or take their cases out"
        raise TaskError(f"{missing[0]}: missing, with {len(missing) - 1} more files of {folder.name}; "
                        f"run `mvl verify {task.name}` for the list, then {again}")
    return cases


def read_layout(task: Task, folder: Path) -> list[Case]:
    """Cases of a folder in the task's layout, sorted by case id."""
    if task.layout == "decathlon":
        return read_cases(folder)
    if task.layout == "nnunet":
        from mvl.datasets.own import read_nnunet

        return read_nnunet(folder)
    from mvl.datasets import pictures, slices

    readers = {"busi": pictures.read_busi, "pairs": pictures.read_pairs, "slices": slices.read_slices}
    return readers[task.layout](folder)


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
    """sha256 by relative path: the folder's own `manifest.json`, written when it was fetched, else the committed one, else nothing.

    A committed manifest of pictures that say which copy they are (`copy`) does not bind another copy, e.g. one at full size.
    """
    for path in (folder / "manifest.json", MANIFESTS / f"{whole_task(task).name}.json"):
        if path.is_file():
            try:
                manifest = json.loads(path.read_text())
                return {} if "copy" in manifest and is_other_copy(manifest["files"], folder) else dict(manifest["files"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TaskError(f"{path}: not a manifest ({type(error).__name__}); move {folder} away and fetch the task again") from error
    return {}


def is_other_copy(files: dict[str, str], folder: Path, looked_at: int = 6) -> bool:
    """True where none of a few images has the bytes that a manifest names: another copy of the data, not a damaged one."""
    some = [name for name in sorted(files) if "mask" not in name and (folder / name).is_file()][::max(1, len(files) // (2 * looked_at))]
    return bool(some) and not any(sha256_file(folder / name) == files[name] for name in some)


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
        RunError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot write there ({error.strerror}); choose a writable folder with --data-dir") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
