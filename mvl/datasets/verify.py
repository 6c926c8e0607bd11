"""Check every case of a task without trusting its files: bytes, header, voxels, labels, geometry,
pairs, duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvl.core.files import sha256_file
from mvl.datasets import sandbox
from mvl.datasets.checks import check_case
from mvl.datasets.masks import read_mask
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.picture_faults import picture_faults, picture_notes
from mvl.datasets.splits import check_deal
from mvl.datasets.task import MADE, Case, Task, TaskError, is_stray
from mvl.datasets.task_data import TaskData


@dataclass(frozen=True)
class Finding:
    """One bad file: where, what is wrong, what to do."""

    path: str
    fault: str
    remedy: str
    note: bool = False
    "True of what no run reads: it is said, and is no fault."


def verify(data: TaskData) -> list[Finding]:
    """Every bad file of a task, one finding each, in case order, and notes; empty when all is well.

    Raises:
        TaskError: there are no data to check, or `dataset.json` or the manifest cannot be used.
    """
    data = data.whole
    again = _remedy(data)
    pictures = data.task.layout in ("busi", "pairs")
    findings = _pictures(data, again) if pictures else _scans(data, again)
    sound = all(finding.note for finding in findings)
    return findings + (_set_faults(data) if data.task.own and sound else [])


def _pictures(data: TaskData, again: str) -> list[Finding]:
    return [Finding(str(path), fault, again) for path, fault in picture_faults(data)] + [
        Finding(str(path), text, "nothing need be done", note=True)
        for path, text in picture_notes(data)
    ]


def _scans(data: TaskData, again: str) -> list[Finding]:
    findings = _listing(data, again)
    seen: dict[str, Case] = {}
    for case in data.listed:
        faults, digest = look_at(data, case)
        if (
            digest
            and (twin := seen.setdefault(digest, case)) != case
            and case.image not in faults
            and not _together(data.task, twin, case)
        ):
            faults[case.image] = (
                f"the same voxels as {twin.image.name}: one scan under two names would leak from"
                " training into test"
            )
        findings += [Finding(str(path), text, again) for path, text in faults.items()]
    return findings


def _set_faults(data: TaskData) -> list[Finding]:
    """Findings about your own data as a whole, where each file is sound."""
    text = same_everywhere(data.task, data.listed)
    said = [f"{data.folder}: {text}"] if text else []
    try:
        check_deal(data)
    except TaskError as error:
        said.append(str(error))
    out = []
    for message in said:
        place, _, rest = message.partition(": ")
        fault, _, remedy = rest.rpartition("; ")
        out.append(Finding(str(data.folder) if place == data.task.name else place, fault, remedy))
    return out


def same_everywhere(task: Task, cases: Sequence[Case]) -> str:
    """Return what is wrong where every mask of your own task is empty, or every one is full."""
    values: set[float] = set()
    for path in (path for case in cases for path in (case.label, *case.more_labels)):
        with suppress(FileFault):
            flat = task.dims == 2
            mask = read_mask(path, max(task.labels)) if flat else read_scan(path, 1).voxels
            values |= {float(mask.min()), float(mask.max())}
        if len(values) > 1:
            return ""
    if not values:
        return ""
    written = "in white on black" if task.dims == 2 else "as its value in dataset.json"
    return (
        f"every mask of {task.name} is {'full' if any(values) else 'empty'}: there is nothing to"
        f" learn, and the masks may mean something else than their values; write each structure"
        f" {written}"
    )


def _together(task: Task, one: Case, other: Case) -> bool:
    """Whether the registry keeps two cases in one block."""
    return any(one.case_id in group and other.case_id in group for group in task.together)


def look_at(data: TaskData, case: Case) -> tuple[dict[Path, str], str | None]:
    """`check_case`, in this process where the publisher's manifest vouches for each byte, else in a
    bounded one."""
    task, folder, manifest = data.task, data.folder, data.manifest
    paths = (*case.images, case.label)
    vouched = not task.own and all(
        path.is_file() and manifest.get(path.relative_to(folder).as_posix()) == sha256_file(path)
        for path in paths
    )
    return (check_case if vouched else sandbox.check_case)(task, case, folder, manifest)


def _remedy(data: TaskData) -> str:
    task = data.task
    if task.name in MADE:
        return f"delete {data.place}; it is made again on demand"
    if task.own:
        return "put the file right, or take its case out of the folder"
    if task.page:
        return f"put the file right, or get it again from {task.page}"
    return f"move {data.place} away and run `{data.task_command('fetch')}`"


def _listing(data: TaskData, again: str) -> list[Finding]:
    """Findings about what the folder lists beside what it holds."""
    out, cases, task = [], data.listed, data.task
    if len(cases) != task.num_cases:
        told = f"lists {len(cases)} cases, {task.name} has {task.num_cases}"
        out.append(Finding(str(data.folder / "dataset.json"), told, again))
    # Path.resolve would stop at a circle of links, which is named as a fault of its file.
    listed = {os.path.realpath(path) for case in cases for path in (*case.images, case.label)}
    for sub in sorted({path.parent for case in cases for path in (case.image, case.label)}):
        for path in sorted(sub.iterdir()) if sub.is_dir() else []:
            if os.path.realpath(path) not in listed and not is_stray(path.name):
                out.append(
                    Finding(
                        str(path),
                        "stray file: not listed in dataset.json, it is not read",
                        "remove it, or list its image and label there",
                        note=True,
                    )
                )
    return out
