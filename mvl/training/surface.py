"""NSD and HD95 as the Medical Segmentation Decathlon computes them: every piece of a surface counts
by its area.

`metrics.boundary_metrics` counts edge voxels alike, as MONAI does by default. The Decathlon (and
nnU-Net) use DeepMind's surface-distance, where a surface runs between voxels and is weighted; the
two differ by points of NSD on small organs.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import get_mask_edges

from mvl.training.edges import edge_distances, joint_box


def decathlon_metrics(
    prediction: np.ndarray, label: np.ndarray, spacing: list[float], tolerance_mm: float
) -> dict[str, float]:
    """Return NSD and HD95 of two boolean masks that both hold voxels, on a grid of `spacing` (mm),
    2-D or 3-D.

    A surface element lies at each corner where voxels of the mask meet voxels outside it (the 2 x 2
    x 2 neighbours are neither all in nor all out); outside the grid counts as empty. Its area
    (mm^2; in 2-D its length) is that of the marching-cubes surface between the corner's neighbours.
    Distances (mm) go from each element to the nearest of the other mask. NSD is the share of the
    area, of both surfaces together, whose distance is at or below `tolerance_mm`. HD95 is the
    larger of the two directed distances that 95 % of the area does not exceed; the percentile is
    one of the distances, never between two.

    Source: Nikolov et al., arXiv 1809.04430, and the authors' package surface-distance; codes and
    areas are computed by MONAI (`use_subvoxels=True`), which has no HD95 of this kind.
    """
    box = joint_box(prediction, label)
    # One empty voxel on each side: a corner of the mask's own border must be seen from outside too.
    masks = [torch.from_numpy(np.pad(mask[box], 1)) for mask in (prediction, label)]
    found = get_mask_edges(masks[0], masks[1], crop=False, spacing=spacing)
    edges = [np.asarray(found[0]), np.asarray(found[1])]
    areas = [np.asarray(found[2 + k], dtype=np.float64)[edges[k]] for k in (0, 1)]
    ways = [
        edge_distances(edges[0], edges[1], spacing),
        edge_distances(edges[1], edges[0], spacing),
    ]

    within = sum(float(area[way <= tolerance_mm].sum()) for way, area in zip(ways, areas))
    total = sum(float(area.sum()) for area in areas)
    hd95 = max(weighted_percentile(way, area, 0.95) for way, area in zip(ways, areas))
    return {"nsd_decathlon": within / total, "hd95_decathlon_mm": hd95}


def weighted_percentile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """Return the smallest of the distances that `share` of the area lies at or below."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(areas[order]) / areas.sum()
    # Rounding can leave the last sum a hair below 1.
    place = min(int(np.searchsorted(reached, share)), len(order) - 1)
    return float(distances[order][place])
