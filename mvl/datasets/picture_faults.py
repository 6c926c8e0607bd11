"""Check a folder of pictures without trusting its files: bytes, pixels, masks, sizes, pairs,
strays, one picture on both sides of a split."""

from __future__ import annotations

import json
from pathlib import Path

from mvl.core.files import sha256_bytes, sha256_file
from mvl.datasets.masks import check_upright, read_mask
from mvl.datasets.nifti import FileFault
from mvl.datasets.pictures import Listing, check_pixels, list_busi, list_pairs, read_image
from mvl.datasets.splits import read_split, split_path
from mvl.datasets.task import Case, Task, TaskError
from mvl.datasets.task_data import TaskData

Fault = tuple[Path, str]


def picture_faults(data: TaskData) -> list[Fault]:
    """Every bad file of a folder of pictures and what is wrong with it; empty when all is well."""
    task, folder = data.task, data.folder
    listing = _listing(data)
    out = list(listing.broken)
    if task.num_cases and len(listing.cases) != task.num_cases:
        out.append(
            (
                folder,
                f"holds {len(listing.cases)} images with masks, {task.name} has {task.num_cases}",
            )
        )
    seen: dict[str, list[str]] = {}
    for case in listing.cases:
        faults, digest = case_faults(data, case)
        out += faults
        seen.setdefault(digest, []).append(case.case_id)
    seen.pop("", None)
    paths = {case.case_id: case.image for case in listing.cases}
    return out + [(paths[case], text) for case, text in _leaks(data, seen)]


def _listing(data: TaskData) -> Listing:
    return (list_busi if data.task.layout == "busi" else list_pairs)(data.folder)


def picture_notes(data: TaskData) -> list[Fault]:
    """Return what is odd about a folder of pictures and changes no run: files that are not read,
    and a copy other than the recorded one."""
    told = "stray file: no picture of this layout, it is not read"
    out = [(path, told) for path in _listing(data).strays]
    if data.committed.is_file() and not data.manifest:
        copy = json.loads(data.committed.read_text())["copy"]
        text = (
            f"another copy than the recorded runs used ({copy}); it can be used, but its results"
            " are not comparable with theirs"
        )
        out.append((data.folder, text))
    return out


def case_faults(data: TaskData, case: Case) -> tuple[list[Fault], str]:
    """The faults of one case, and the sha256 of its image's pixels when they can be read."""
    task, out, digest, shape = data.task, [], "", None
    for path in (case.image, case.label, *case.more_labels):
        try:
            _check_bytes(path, data)
            if path == case.image:
                pixels = read_image(path, len(task.channels))
                shape, digest = (
                    pixels.shape[1:],
                    sha256_bytes(repr(pixels.shape).encode() + pixels.tobytes()),
                )
                check_pixels(pixels)
            else:
                # The same three looks that `masks.read_case` takes when it trains.
                if shape is not None:
                    check_upright(case.image, path)
                _check_mask(path, shape, max(task.labels))
        except FileFault as fault:
            out.append((path, str(fault)))
    if not out and (text := _class_fault(task, case)):
        out.append((case.label, text))
    return out, digest


def _check_bytes(path: Path, data: TaskData) -> None:
    wanted = data.manifest.get(path.relative_to(data.folder).as_posix())
    if data.manifest and wanted is None:
        raise FileFault("not in the manifest")
    if wanted and (found := sha256_file(path)) != wanted:
        raise FileFault(
            f"its bytes differ from the manifest (sha256 {found[:12]}..., expected"
            f" {wanted[:12]}...)"
        )


def _check_mask(path: Path, shape: tuple[int, ...] | None, top: int) -> None:
    mask = read_mask(path, top)
    if shape is not None and mask.shape != shape:
        raise FileFault(
            f"{mask.shape[0]} x {mask.shape[1]} pixels, its image has {shape[0]} x {shape[1]}"
        )


def _class_fault(task: Task, case: Case) -> str:
    """What is odd about a sound mask in BUSI's layout: foreground in a normal picture, or none
    beside a lesion."""
    if task.layout != "busi":
        return ""
    present = any(read_mask(path).any() for path in (case.label, *case.more_labels))
    if present == case.case_id.startswith("normal"):
        return (
            "foreground in the mask of a normal picture"
            if present
            else "no foreground in the mask of a lesion"
        )
    return ""


def _leaks(data: TaskData, seen: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Pictures with the same pixels that a split would put on both sides."""
    twins = [cases for cases in seen.values() if len(cases) > 1]
    path = split_path(data)
    try:
        blocks = read_split(path)["blocks"] if path.is_file() else []
    except TaskError as error:
        return [(cases[0], str(error)) for cases in twins[:1]]
    home = {case: k for k, block in enumerate(blocks) for case in block}
    return [
        (
            case,
            (
                f"the same pixels as {cases[0]}, in another block of {path.name}: training would"
                " see the test"
            ),
        )
        for cases in twins
        for case in cases[1:]
        if blocks and home.get(case) != home.get(cases[0])
    ]
