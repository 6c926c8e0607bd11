"""Label noise: training labels damaged as hasty or mistaken drawing would, seeded; validation and
test labels never are.

Lengths are in radii of the structure (of the disc or ball of its size), so that one setting means
the same for a small and a large lesion, and on any grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from mvl.core.config import Config
from mvl.core.seeds import draw_seed
from mvl.datasets.case_store import Damage

SHIFT = (0.2, 0.4)
"""Erosion and dilation move the whole boundary by so many radii, drawn uniformly per case; never
less than one voxel."""
WAVE, WAVE_LENGTH = 0.35, 0.5
"""Elastic: root mean square of the displacement along each axis, and the standard deviation of the
Gaussian that smooths it, in radii."""
BLOB = (0.5, 1.0)
"""Region: radius of a region that is drawn where nothing is, in radii of the structure (of an
eighth of the shortest side without one)."""
BOUNDARY_KINDS = ("erode", "dilate", "elastic")
REGION_KINDS = ("drop", "add", "move")


def damaged_cases(config: Config, case_ids: Sequence[str]) -> frozenset[str]:
    """The round(rate * n) cases whose labels are damaged; those of a lower rate are among them.

    Which they are is a function of (seed, case ids) alone, and the same for both kinds of noise.
    """
    if config.data.label_noise == "none":
        return frozenset()
    order = sorted(case_ids, key=lambda case: draw_seed(config.seed, "label_noise", case))
    return frozenset(order[: round(config.data.label_noise_rate * len(order))])


def label_damage(config: Config, case_ids: Sequence[str]) -> Damage | None:
    """What `CaseStore` does to the labels of the training cases; nothing where there is no noise.

    The damage of a case is fixed for the whole run, a function of (seed, case): an annotator errs
    once, not anew in each epoch.
    """
    chosen = damaged_cases(config, case_ids)
    return LabelDamage(config.seed, config.data.label_noise, chosen) if chosen else None


@dataclass(frozen=True)
class LabelDamage:
    """The damage of one run; a class, since loader processes that are not forked get it pickled."""

    seed: int
    noise: str
    chosen: frozenset[str]

    def __call__(self, case: str, label: Tensor) -> Tensor:
        """Return the case's label, damaged where the case is chosen."""
        if case not in self.chosen:
            return label
        rng = np.random.default_rng(draw_seed(self.seed, "label_noise", self.noise, case))
        noise = boundary_noise if self.noise == "boundary" else region_noise
        return torch.as_tensor(np.ascontiguousarray(noise(label[0].numpy(), rng)))[None]


def radius_of(label: np.ndarray) -> float:
    """Radius in voxels of the disc or ball that is as large as the foreground; of an eighth of the
    shortest side without one."""
    count = np.count_nonzero(label)
    if not count:
        return min(label.shape) / 8
    return float(np.sqrt(count / np.pi) if label.ndim == 2 else np.cbrt(3 * count / (4 * np.pi)))


def boundary_noise(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The label with its outer boundary moved in, moved out, or bent; an empty label has none and
    stays."""
    if not label.any():
        return label
    kind, radius = rng.choice(BOUNDARY_KINDS), radius_of(label)
    shift = max(1.0, rng.uniform(*SHIFT) * radius)
    if kind == "erode":
        return eroded(label, shift)
    return dilated(label, shift) if kind == "dilate" else bent(label, radius, rng)


def eroded(label: np.ndarray, shift: float) -> np.ndarray:
    """Foreground further than `shift` voxels from the background, at least its innermost part."""
    depth = ndimage.distance_transform_edt(np.pad(label > 0, 1, constant_values=False))[
        (slice(1, -1),) * label.ndim
    ]
    return np.where(depth > min(shift, 0.7 * float(depth.max())), label, 0).astype(label.dtype)


def dilated(label: np.ndarray, shift: float) -> np.ndarray:
    """Foreground and what lies within `shift` voxels of it, with the value of the nearest
    foreground."""
    away, nearest = ndimage.distance_transform_edt(label == 0, return_indices=True)
    return np.where(away <= shift, label[tuple(nearest)], 0).astype(label.dtype)


def bent(label: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The label read at smoothly displaced places, nearest neighbour."""
    waves = [
        ndimage.gaussian_filter(rng.standard_normal(label.shape), max(1.0, WAVE_LENGTH * radius))
        for _ in label.shape
    ]
    moved = [
        grid + max(1.0, WAVE * radius) * wave / wave.std()
        for grid, wave in zip(np.indices(label.shape), waves, strict=True)
    ]
    return ndimage.map_coordinates(label, moved, order=0, mode="nearest")


def region_noise(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The label with one connected region dropped, one added elsewhere, or both; an empty label can
    only gain one."""
    kind, radius = rng.choice(REGION_KINDS) if label.any() else "add", radius_of(label)
    out = label.copy()
    if kind in ("drop", "move"):
        regions, count = ndimage.label(label > 0)
        out[regions == rng.integers(1, count + 1)] = 0
    return (
        blob_added(out, label, radius * rng.uniform(*BLOB), rng) if kind in ("add", "move") else out
    )


def blob_added(
    out: np.ndarray, label: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    """`out` with an ellipse or ellipsoid around a place outside `label`, clear of it where there is
    room; one of the values present, else 1."""
    free = ndimage.distance_transform_edt(label == 0)
    places = np.argwhere(free > min(radius, 0.9 * float(free.max())))
    if not len(places):
        return out
    centre, stretch = places[rng.integers(len(places))], rng.uniform(0.7, 1.3, label.ndim)
    away = sum(
        ((axis - c) / (max(radius, 1.0) * s)) ** 2
        for axis, c, s in zip(np.indices(label.shape), centre, stretch, strict=True)
    )
    values = np.unique(label[label > 0])
    value = rng.choice(values) if len(values) else 1
    return np.where((away <= 1) & (label == 0), value, out).astype(label.dtype)
