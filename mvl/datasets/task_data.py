"""A task with its data: where its files lie, which cases they are, and which bytes they have."""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path

from mvl.core.command_lines import command_line
from mvl.core.config import ROOT
from mvl.core.files import sha256_file
from mvl.datasets.decathlon import read_cases
from mvl.datasets.registry import find_task
from mvl.datasets.task import MADE, SLICES, Case, Task, TaskError, data_root

MANIFESTS = ROOT / "data" / "manifests"


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task and the data folder that it is looked for in; what is found there is found once, when
    it is first asked for, so that whoever gets this looks nothing up again."""

    task: Task
    data_dir: Path | None = None
    "None: the usual one, see `data_root`."

    @cached_property
    def whole(self) -> TaskData:
        """The volumes that a task of slices cuts; any other task itself."""
        if self.task.layout != "slices":
            return self
        task = dataclasses.replace(
            self.task,
            name=self.task.name.removesuffix(SLICES),
            title=self.task.title.removesuffix(", axial slices"),
            dims=3,
            layout="decathlon",
        )
        return TaskData(task, self.data_dir)

    @property
    def place(self) -> Path:
        """Where the task's folder belongs, there or not.

        What is made here never goes into `$MVL_DATA`, which may be read-only; what is committed
        here is found whatever the data root is.
        """
        name = self.task.folder or self.task.name
        if name in MADE and self.data_dir is None:
            return ROOT / "data" / "raw" / name
        folder = data_root(self.data_dir) / name
        return ROOT / self.task.home / name if self.task.home and not folder.is_dir() else folder

    @property
    def committed(self) -> Path:
        """Where a manifest that is committed with mvl lies, there or not."""
        return MANIFESTS / f"{self.whole.task.name}.json"

    def task_command(self, action: str) -> str:
        """The command `mvl <action>` for the task where its data belong."""
        usual = os.path.abspath(self.place.parent) == os.path.abspath(data_root())
        data_dir = None if usual else self.place.parent
        return command_line(action, self.task.name, data_dir=data_dir)

    @property
    def is_there(self) -> bool:
        """True where the data lie, or will be made when they are asked for."""
        if self.whole.task.name in MADE:
            return True
        if self.task.layout in ("busi", "pairs"):
            return self.place.is_dir()
        return (self.place / "dataset.json").is_file()

    @cached_property
    def folder(self) -> Path:
        """The task's folder; what mvl makes itself is made there when absent.

        Raises:
            TaskError: the data are not there; says how to get them.
        """
        task, folder = self.task, self.place
        if self.whole.task.name in MADE:
            return make(self.whole.task, folder)
        if not self.is_there:
            get = (
                f"download it from {task.page} and unpack it there"
                if task.page
                else f"run `{self.task_command('fetch')}`"
            )
            if folder.exists():
                get = f"move it away, then {get}"
            raise TaskError(
                f"{folder}: no data of {task.name} there; {get}, "
                f"or point --data-dir or MVL_DATA at the folder that holds {folder.name}"
            )
        return folder

    @cached_property
    def listed(self) -> list[Case]:
        """Labelled cases that `dataset.json` lists, or that the folder holds (pictures, slices),
        sorted by case id, their files there or not.

        Raises:
            TaskError: `dataset.json` is not usable, a path leaves the folder or a case is listed
                twice; names it.
        """
        if self.task.layout == "decathlon":
            return read_cases(self.folder)
        from mvl.datasets import own_data, pictures, slices

        readers = {
            "nnunet": own_data.read_nnunet,
            "busi": pictures.read_busi,
            "pairs": pictures.read_pairs,
            "slices": slices.read_slices,
        }
        return readers[self.task.layout](self.folder)

    @cached_property
    def cases(self) -> list[Case]:
        """The cases that are `listed`, every file there.

        Raises:
            TaskError: also when a file is missing; names it.
        """
        files = (path for case in self.listed for path in (*case.images, case.label))
        if missing := [path for path in files if not path.is_file()]:
            again = (
                f"move {self.folder} away and run `{self.task_command('fetch')}`"
                if not self.task.own
                else "bring them back, or take their cases out"
            )
            raise TaskError(
                f"{missing[0]}: missing, with {len(missing) - 1} more files of {self.folder.name}; "
                f"run `{self.task_command('verify')}` for the list, then {again}"
            )
        return self.listed

    @cached_property
    def manifest(self) -> dict[str, str]:
        """sha256 by relative path: the folder's own `manifest.json`, written when it was fetched,
        else the committed one, else nothing.

        A committed manifest of pictures that say which copy they are (`copy`) does not bind another
        copy, e.g. one at full size.

        Raises:
            TaskError: there is a manifest, and it cannot be used.
        """
        for path in (self.folder / "manifest.json", self.committed):
            if path.is_file():
                try:
                    manifest = json.loads(path.read_text())
                    files = manifest["files"]
                    other = "copy" in manifest and is_other_copy(files, self.folder)
                    return {} if other else dict(files)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise TaskError(
                        f"{path}: not a manifest ({type(error).__name__}); move {self.folder} away"
                        " and fetch the task again"
                    ) from error
        return {}


def open_task(name: str, data_dir: Path | None = None) -> TaskData:
    """The task called `name` (see `find_task`) with its data.

    Raises:
        TaskError: no such task; hints at the nearest.
    """
    return TaskData(find_task(name, data_dir), data_dir)


def make(task: Task, folder: Path) -> Path:
    """The folder of a task of `MADE`, made now unless it lies there."""
    if task.name == "shapes":
        from mvl.datasets.shapes2d import ensure_shapes

        return ensure_shapes(folder, task.num_cases)
    from mvl.datasets.phantoms import ensure_phantoms

    return ensure_phantoms(folder, task.num_cases)


def is_other_copy(files: dict[str, str], folder: Path, looked_at: int = 6) -> bool:
    """True where none of a few images has the bytes that a manifest names: another copy of the
    data, not a damaged one."""
    some = [name for name in sorted(files) if "mask" not in name and (folder / name).is_file()][
        :: max(1, len(files) // (2 * looked_at))
    ]
    return bool(some) and not any(sha256_file(folder / name) == files[name] for name in some)
