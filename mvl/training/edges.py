"""The edges of two masks: the box that holds both, and the distances from one edge to the other."""

from __future__ import annotations

import numpy as np
from monai.metrics import get_surface_distance
from scipy import ndimage

MAX_TREE_EDGES = 100_000
"""Above this many edge voxels (noise) a distance transform is faster than MONAI's KD-tree; both are
exact."""


def joint_box(prediction: np.ndarray, label: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds every voxel of either mask; erosion takes outside as empty, so no
    margin is needed."""
    return ndimage.find_objects((prediction | label).view(np.uint8))[0]


def edge_distances(source: np.ndarray, target: np.ndarray, spacing: list[float]) -> np.ndarray:
    """Distance in mm (float32) from each voxel of `source` to the nearest voxel of `target`."""
    if np.count_nonzero(source) + np.count_nonzero(target) <= MAX_TREE_EDGES:
        return np.asarray(get_surface_distance(source, target, spacing=spacing))
    return ndimage.distance_transform_edt(~target, sampling=spacing)[source].astype(np.float32)
