"""Axial slices of a Decathlon task's volumes as 2-D cases, grouped by volume.

Slices lie at right angles to the file's axis nearest to superior and are read as right x anterior
grids, in the volume's own voxels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from mvl.datasets.decathlon import read_cases
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.task import Case, TaskError

EMPTY_STEP = 4
"""Which slices are cases: every one that holds foreground, and of the others those whose index is a
multiple of this."""
KEPT_VOLUMES = 4
"Volumes kept in memory while their slices are read."


def read_slices(folder: Path) -> list[Case]:
    """Slices of every volume that `folder/dataset.json` lists, by volume and index:
    `hippocampus_001_z017`."""
    return [slice_case for case in read_cases(folder) for slice_case in _slices(case)]


def _slices(case: Case) -> list[Case]:
    present = foreground_slices(case.label)
    chosen = [z for z in range(len(present)) if present[z] or z % EMPTY_STEP == 0]
    return [Case(f"{case.case_id}_z{z:03d}", case.image, case.label, z=z) for z in chosen]


@lru_cache(maxsize=4096)
def foreground_slices(label: Path) -> tuple[bool, ...]:
    """Whether each axial slice of a label volume holds foreground."""
    voxels, _ = load_volume(label)
    return tuple(bool(voxels[:, :, z].any()) for z in range(voxels.shape[2]))


def read_slice(case: Case) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Image (C, x, y) float32, label (x, y) uint8 and spacing in mm of one slice.

    Raises:
        TaskError: image and label differ in shape, the file cannot be read or has no such slice.
    """
    (image, spacing), (label, _) = load_volume(case.image), load_volume(case.label)
    if image.shape[:3] != label.shape or case.z is None or case.z >= label.shape[2]:
        raise TaskError(
            f"{case.label}: shape {label.shape}, its image has {image.shape[:3]}, slice {case.z}"
            " was asked for; put the pair right"
        )
    plane = image[:, :, case.z].astype(np.float32)
    return (
        plane[None] if plane.ndim == 2 else np.moveaxis(plane, -1, 0),
        label[:, :, case.z].astype(np.uint8),
        spacing,
    )


@lru_cache(maxsize=2 * KEPT_VOLUMES)
def load_volume(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Voxels with axes turned to right, anterior, superior, and the spacing in mm of the first
    two."""
    try:
        scan = read_scan(path)
    except FileFault as fault:
        raise TaskError(f"{path}: {fault}; put the file right") from fault
    turn = io_orientation(scan.affine)
    voxels = apply_orientation(scan.voxels, turn)
    along = {int(axis): scan.spacing_mm[place] for place, axis in enumerate(turn[:, 0])}
    return voxels, (along[0], along[1])
