"""Check every case of a task without trusting its files: bytes, header, voxels, labels, geometry, pairs, duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mvl.datasets import limited
from mvl.datasets.nifti import FileFault, Scan, check_bytes, corner_distance_mm, decode, read_whole
from mvl.datasets.picture_faults import picture_faults
from mvl.datasets.tasks import MADE, Case, Task, TaskError, is_stray, read_layout, read_manifest, task_dir, whole_task
from mvl.runs import sha256_bytes, sha256_file


@dataclass(frozen=True)
class Finding:
    """One bad file: where, what is wrong, what to do."""

    path: str
    fault: str
    remedy: str


def verify(task: Task, data_dir: Path | None = None) -> list[Finding]:
    """Every bad file of a task, one finding each, in case order; empty when all is well.

    Raises:
        TaskError: there are no data to check, or `dataset.json` or the manifest cannot be used.
    """
    task = whole_task(task)
    folder = task_dir(task, data_dir)
    if task.layout in ("busi", "pairs"):
        return [Finding(str(path), fault, _remedy(task, folder)) for path, fault in picture_faults(task, folder, data_dir)]
    cases, manifest, again = read_layout(task, folder), read_manifest(task, folder), _remedy(task, folder)
    findings = _listing(task, folder, cases, again)
    seen: dict[str, Case] = {}
    for case in cases:
        faults, digest = look_at(task, case, folder, manifest)
        if digest and (twin := seen.setdefault(digest, case)) != case and case.image not in faults and not _together(task, twin, case):
            faults[case.image] = f"the same voxels as {twin.image.name}: one scan under two names would leak from training into test"
        findings += [Finding(str(path), text, again) for path, text in faults.items()]
    return findings


def _together(task: Task, one: Case, other: Case) -> bool:
    """Whether the registry keeps two cases in one block."""
    return any(one.case_id in group and other.case_id in group for group in task.together)


def look_at(task: Task, case: Case, folder: Path, manifest: dict[str, str]) -> tuple[dict[Path, str], str | None]:
    """`check_case`, in this process where the publisher's manifest vouches for each byte, else in a bounded one."""
    paths = (*case.images, case.label)
    vouched = not task.own and all(path.is_file() and manifest.get(path.relative_to(folder).as_posix()) == sha256_file(path) for path in paths)
    return (check_case if vouched else limited.check_case)(task, case, folder, manifest)


def check_case(task: Task, case: Case, folder: Path, manifest: dict[str, str]) -> tuple[dict[Path, str], str | None]:
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
        odd = ((path, pair_fault(scans[case.image], scans[path], what)) for path, what in beside.items())
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
        raise FileFault(f"its bytes differ from the manifest (sha256 {found[:12]}..., expected {sha256[:12]}...){reason}")
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
    if voxels.dtype == np.float64 and (most := float(np.abs(voxels).max())) > np.finfo(np.float32).max:
        raise FileFault(f"values up to {most:.3g} lie beyond float32, in which a network computes")
    for channel in np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else [voxels]:
        if channel.min() == channel.max():
            raise FileFault(f"constant image: every voxel is {channel.flat[0]}")
    low, high = voxels.min(), voxels.max()
    if low >= 0 and high <= max(task.labels) and (voxels == np.round(voxels)).all():
        raise FileFault(f"looks like a label map (whole numbers {low:g} to {high:g}): image and label swapped?")


def check_label(voxels: np.ndarray, task: Task) -> None:
    """Nothing for a label that holds declared whole numbers and some foreground (your own may hold none: a healthy case).

    Raises:
        FileFault: lists the values that do not belong, with their voxel counts.
    """
    values, counts = np.unique(voxels, return_counts=True)
    odd = [(value, count) for value, count in zip(values.tolist(), counts.tolist()) if value not in {0, *task.labels}]
    if odd:
        shown = ", ".join(f"{value:g} ({count} voxels)" for value, count in odd[:5])
        raise FileFault(f"{len(odd)} values are not labels of {task.name} (0, {', '.join(map(str, sorted(task.labels)))}): {shown}")
    if values.tolist() == [0] and not task.own:
        raise FileFault("no foreground voxel")


def pair_fault(image: Scan, label: Scan, what: str = "label") -> str | None:
    """What keeps an image and its label (or a further channel) from lying on one grid."""
    if image.voxels.shape[:3] != label.voxels.shape:
        return f"{what} grid {label.voxels.shape} differs from the image's {image.voxels.shape[:3]}"
    far = corner_distance_mm(image.affine, label.affine, label.voxels.shape)
    return f"{what} lies up to {far:.3g} mm away from its image (affines differ)" if not far <= 1e-3 else None


def _remedy(task: Task, folder: Path) -> str:
    if task.name in MADE:
        return f"delete {folder}; it is made again on demand"
    if task.own:
        return "put the file right, or take its case out of the folder"
    if task.page:
        return f"put the file right, or get it again from {task.page}"
    return f"move {folder} away and run `mvl fetch {task.name}`"


def _listing(task: Task, folder: Path, cases: list[Case], again: str) -> list[Finding]:
    """Findings about what the folder lists beside what it holds."""
    out = []
    if len(cases) != task.num_cases:
        out.append(Finding(str(folder / "dataset.json"), f"lists {len(cases)} cases, {task.name} has {task.num_cases}", again))
    listed = {path.resolve() for case in cases for path in (*case.images, case.label)}
    for sub in sorted({path.parent for case in cases for path in (case.image, case.label)}):
        for path in sorted(sub.iterdir()) if sub.is_dir() else []:
            if path.resolve() not in listed and not is_stray(path.name):
                out.append(Finding(str(path), "stray file: not listed in dataset.json", "remove it, or list its image and label there"))
    return out


__all__ = ["Finding", "TaskError", "verify"]
