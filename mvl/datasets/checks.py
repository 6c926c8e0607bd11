"""Checks of one scan and its label: bytes, header, voxels, labels, geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mvl.core.files import sha256_bytes
from mvl.datasets.nifti import FileFault, Scan, apart_mm, check_bytes, decode, read_whole
from mvl.datasets.task import Case, Task


def check_case(
    task: Task, case: Case, folder: Path, manifest: dict[str, str]
) -> tuple[dict[Path, str], str | None]:
    """The case's faults by file, and the sha256 of its voxels when the image is sound."""
    faults: dict[Path, str] = {}
    scans: dict[Path, Scan] = {}
    channels = 1 if case.more else len(task.channels)
    for kind, path in (*(("image", path) for path in case.images), ("label", case.label)):
        try:
            wanted = manifest.get(path.relative_to(folder).as_posix())
            if manifest and wanted is None:
                raise FileFault("not in the manifest")
            scans[path] = check_file(path, channels if kind == "image" else 1, wanted)
            (check_image if kind == "image" else check_label)(scans[path].voxels, task)
        except FileFault as error:
            faults[path] = str(error)
    if not faults:
        beside = {case.label: "label", **dict.fromkeys(case.more, "channel")}
        odd = (
            (path, pair_fault(scans[case.image], scans[path], what))
            for path, what in beside.items()
        )
        faults |= {path: fault for path, fault in odd if fault}
    if any(path in faults or path not in scans for path in case.images):
        return faults, None
    voxels = [scans[path].voxels for path in case.images]
    return faults, sha256_bytes(b"".join(repr(v.shape).encode() + v.tobytes("F") for v in voxels))


def check_file(path: Path, channels: int, sha256: str | None) -> Scan:
    """The scan in a file whose bytes and header are sound.

    Raises:
        FileFault: says what is wrong.
    """
    raw = read_whole(path)
    check_bytes(raw)
    if sha256 and (found := sha256_bytes(raw)) != sha256:
        reason = _broken(raw, channels)
        raise FileFault(
            f"its bytes differ from the manifest (sha256 {found[:12]}..., expected"
            f" {sha256[:12]}...){reason}"
        )
    return decode(raw, channels)


def _broken(raw: bytes, channels: int) -> str:
    try:
        decode(raw, channels)
    except FileFault as fault:
        return f": {fault}"
    return ""


def check_image(voxels: np.ndarray, task: Task) -> None:
    """Nothing for an image that is finite, varies in each channel, and is not a label map.

    Raises:
        FileFault: says what is wrong.
    """
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise FileFault(f"{int((~np.isfinite(voxels)).sum())} voxels are NaN or infinite")
    if (
        voxels.dtype == np.float64
        and (most := float(np.abs(voxels).max())) > np.finfo(np.float32).max
    ):
        raise FileFault(f"values up to {most:.3g} lie beyond float32, in which a network computes")
    for channel in np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else [voxels]:
        if channel.min() == channel.max():
            raise FileFault(f"constant image: every voxel is {channel.flat[0]}")
    low, high = voxels.min(), voxels.max()
    if low >= 0 and high <= max(task.labels) and (voxels == np.round(voxels)).all():
        raise FileFault(
            f"looks like a label map (whole numbers {low:g} to {high:g}): image and label swapped?"
        )


def check_label(voxels: np.ndarray, task: Task) -> None:
    """Nothing for a label that holds declared whole numbers and some foreground (your own may hold
    none: a healthy case).

    Raises:
        FileFault: lists the values that do not belong, with their voxel counts.
    """
    values, counts = np.unique(voxels, return_counts=True)
    odd = [
        (value, count)
        for value, count in zip(values.tolist(), counts.tolist())
        if value not in {0, *task.labels}
    ]
    if odd:
        shown = ", ".join(f"{_shown(value)} ({count} voxels)" for value, count in odd[:5])
        raise FileFault(
            f"{len(odd)} values are not labels of {task.name} (0,"
            f" {', '.join(map(str, sorted(task.labels)))}): {shown}"
        )
    if values.tolist() == [0] and not task.own:
        raise FileFault("no foreground voxel")


def _shown(value: float) -> str:
    """Return a value in few digits, but in so many that a fraction looks like no whole label."""
    short = f"{value:g}"
    return f"{value:.9g}" if value % 1 and not float(short) % 1 else short


def pair_fault(image: Scan, label: Scan, what: str = "label") -> str | None:
    """What keeps an image and its label (or a further channel) from lying on one grid."""
    if image.voxels.shape[:3] != label.voxels.shape:
        return f"{what} grid {label.voxels.shape} differs from the image's {image.voxels.shape[:3]}"
    far = apart_mm(image, label)
    return f"{what} lies up to {far:.3g} mm away from its image (affines differ)" if far else None
