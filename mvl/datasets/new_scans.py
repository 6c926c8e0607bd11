"""New scans to segment: found among files and folders, looked at before they are used, and written
back in their own geometry."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from mvl.datasets.checks import check_image
from mvl.datasets.dicom import is_dicom, read_series
from mvl.datasets.nifti import FileFault, Scan, apart_mm, read_scan
from mvl.datasets.own_data import ENDINGS
from mvl.datasets.pictures import OTHERS, SUFFIXES
from mvl.datasets.task import Task, case_name, is_stray

GEOMETRY = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)
"""Header fields that a mask takes over from its scan, beside the grid and the spacing; no text is
among them."""
IMAGES = (*ENDINGS, *SUFFIXES, *OTHERS, ".img", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz")
"Endings of images of any kind: one that is not taken from a folder of scans is named."
CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class NewScan:
    """One scan without a label: what its mask will be called, and where its channels lie (a folder,
    for a DICOM series)."""

    name: str
    files: tuple[Path, ...]
    kind: str
    "nifti, dicom or picture."


@dataclass(frozen=True)
class Failure:
    """What could not be segmented, and why; the fault names the file and the remedy."""

    input: str
    fault: str


def takes_pictures(task: Task) -> bool:
    """True where a run on `task` segments pictures; runs on slices segment volumes, slice by
    slice."""
    return task.dims == 2 and task.layout != "slices"


def skipped_images(paths: Sequence[Path], task: Task) -> list[Path]:
    """Return what folders of scans hold under the name of an image and a run on `task` does not
    read, lest a set shrink unnoticed."""
    held = {path: _held(path) for path in paths if path.is_dir()}
    return [
        file
        for inside in held.values()
        if any(_kind(file, task) for file in inside)  # a series of DICOM files has none
        for file in inside
        if file.name.lower().endswith(IMAGES) and not _kind(file, task)
    ]


def _held(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if not is_stray(file.name)]


def find_scans(paths: Sequence[Path], task: Task) -> tuple[list[NewScan], list[Failure]]:
    """Every scan that files and folders hold for a run on `task`, in order and once each, and what
    is none.

    A file `CASE_0000.nii.gz` stands for all channels of its case where the run has several; where
    it has one, `_0000` is dropped from the mask's name if every file ends in it.
    """
    scans: list[NewScan] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            scans += _scans_at(path, task, failures)
        except FileFault as fault:
            failures.append(Failure(str(path), str(fault)))
    scans = list(dict.fromkeys(scans))
    if scans and len(task.channels) == 1 and all(scan.name.endswith("_0000") for scan in scans):
        scans = [NewScan(scan.name.removesuffix("_0000"), scan.files, scan.kind) for scan in scans]
    firsts: dict[str, NewScan] = {}
    for scan in scans:
        if firsts.setdefault(scan.name, scan) is not scan:
            clash = (
                f"{scan.files[0]}: its mask would have the name of {firsts[scan.name].files[0]}'s;"
                " segment one of them into another --output"
            )
            failures.append(Failure(str(scan.files[0]), clash))
    return list(firsts.values()), failures


def _scans_at(path: Path, task: Task, failures: list[Failure]) -> list[NewScan]:
    if path.is_dir():
        inner = [file for file in _held(path) if _kind(file, task)]
        if not inner and takes_pictures(task):
            raise FileFault(
                f"{path}: no picture in this folder; this run takes {', '.join(SUFFIXES)}"
            )
        clashes = _channels_of_one_case(inner, task)
        failures += [Failure(str(file), told) for file, told in clashes.items()]
        inner = [file for file in inner if file not in clashes]
        if clashes and not inner:
            return []
        return [_scan(file, task) for file in inner] or [
            NewScan(path.resolve().name, (path,), "dicom")
        ]
    if not path.exists():
        raise FileFault(
            f"{path}: {'broken link' if path.is_symlink() else 'no such file or folder'}; check the"
            " path"
        )
    if not _kind(path, task):
        hint = (
            "give the folder of its series"
            if is_dicom(path)
            else f"this run takes {', '.join(SUFFIXES if takes_pictures(task) else ENDINGS)}"
        )
        raise FileFault(f"{path}: not a scan that this run can segment; {hint}")
    return [_scan(path, task)]


def _channels_of_one_case(files: list[Path], task: Task) -> dict[Path, str]:
    """Return why the files CASE_0000, CASE_0001, ... of a folder are not segmented where the run
    has one channel.

    In nnU-Net's naming they are the channels of one case, of which only the user knows the right
    one; as scans of their own, each would get a mask that means nothing.
    """
    if takes_pictures(task) or len(task.channels) > 1:
        return {}
    held: dict[str, list[Path]] = {}
    for file in files:
        if match := CHANNEL.fullmatch(case_name(file.name)):
            held.setdefault(match[1], []).append(file)
    told = (
        f"is a channel of its case by its name, beside others; the run takes one"
        f" ({task.channels[0]}): give the file of that channel itself, or rename what is a scan of"
        " its own"
    )
    return {
        file: f"{file}: {told}"
        for several in held.values()
        if len(several) > 1 and any(case_name(file.name).endswith("_0000") for file in several)
        for file in several
    }


def _kind(path: Path, task: Task) -> str:
    endings, kind = (SUFFIXES, "picture") if takes_pictures(task) else (ENDINGS, "nifti")
    return kind if path.name.lower().endswith(endings) and not path.is_dir() else ""


def _scan(path: Path, task: Task) -> NewScan:
    kind, channels = _kind(path, task), len(task.channels)
    name = case_name(path.name) if kind == "nifti" else path.stem
    match = CHANNEL.fullmatch(name)
    if kind == "nifti" and channels > 1 and match:
        if int(match[2]) >= channels:
            raise FileFault(
                f"{path}: channel {int(match[2])}, the run has {channels}"
                f" ({', '.join(task.channels)}); give only those"
            )
        ending = path.name.removeprefix(name)
        return NewScan(
            match[1],
            tuple(
                path.with_name(f"{match[1]}_{channel:04d}{ending}") for channel in range(channels)
            ),
            kind,
        )
    return NewScan(name, (path,), kind)


def check_scan(files: tuple[Path, ...], task: Task) -> None:
    """Nothing for whole NIfTI files that hold the task's channels on one grid.

    Raises:
        FileFault: names the file, what is wrong and the remedy.
    """
    first: Scan | None = None
    for path in files:
        try:
            scan = read_scan(path, len(task.channels) if len(files) == 1 else 1)
            check_image(scan.voxels, task)
            first = first or scan
            if scan.voxels.shape != first.voxels.shape or apart_mm(first, scan):
                raise FileFault(f"its grid differs from that of {files[0].name}")
        except FileFault as fault:
            wanted = (
                f", the run was trained on {', '.join(task.channels)}"
                if len(task.channels) > 1
                else ""
            )
            raise FileFault(f"{path}: {fault}{wanted}; put the file right and try again") from None


def series_as_nifti(folder: Path, series: str | None, target: Path) -> Path:
    """Write the DICOM series in `folder` as `target`, a plain .nii with nothing of the patient's
    but voxels and geometry."""
    voxels, affine = read_series(folder, series)
    image = nibabel.Nifti1Image(voxels, affine)
    # One form alone: a qform would round the rotation, and a tilted series would contradict itself.
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    target.write_bytes(image.to_bytes())
    return target


def nifti_like(voxels: np.ndarray, scan: Path) -> bytes:
    """A gzipped NIfTI-1 file of `voxels` with the geometry of `scan` (grid, spacing, sform, qform,
    codes, units) and no text of its header."""
    source, header = read_scan(scan).header, nibabel.Nifti1Header()
    for field in GEOMETRY:
        header[field] = source[field]
    try:
        header.get_qform()
    except (HeaderDataError, ValueError):
        header["qform_code"] = 0  # not readable, so it must not be passed on
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header["pixdim"][:4] = source["pixdim"][:4]
    return gzip.compress(
        nibabel.Nifti1Image(voxels, None, header).to_bytes(), compresslevel=4, mtime=0
    )
