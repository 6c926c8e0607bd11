"""The Decathlon's NSD and HD95 against areas known by hand, distances by brute force, and tables
that lack them."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from mvl.core.columns import CASE_COLUMNS, DECATHLON
from mvl.training.metrics import case_metrics
from mvl.training.surface import decathlon_metrics, weighted_percentile

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 2.6)]


def cuboid(shape: tuple[int, ...], corner: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """A mask with one box in it."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + s) for c, s in zip(corner, size))] = True
    return mask


def elements(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Places (mm) and sizes of the surface elements of a box, by hand, on every corner of the grid.

    Of the neighbours of a corner, half lie inside at a face, a quarter at an edge, one at a vertex.
    The surface is flat there; it cuts the lines between neighbours in the middle.
    """
    padded = np.pad(mask, 1)
    dims = mask.ndim
    places, sizes = [], []
    for corner in product(*(range(n + 1) for n in mask.shape)):
        around = padded[tuple(slice(c, c + 2) for c in corner)]
        inside = np.argwhere(around)
        if len(inside) in (0, 2**dims):
            continue
        fixed = [axis for axis in range(dims) if len(set(inside[:, axis])) == 1]
        free = [axis for axis in range(dims) if axis not in fixed]
        along = math.prod(spacing[axis] for axis in free)
        across = [spacing[axis] / 2 for axis in fixed]
        if len(fixed) == 1:
            size = along
        elif len(fixed) == 2:
            size = along * math.hypot(*across)
        else:
            a, b, c = across
            size = math.sqrt((a * b) ** 2 + (b * c) ** 2 + (c * a) ** 2) / 2
        places.append([c * s for c, s in zip(corner, spacing)])
        sizes.append(size)
    return np.array(places), np.array(sizes)


def by_hand(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """NSD and HD95 with every distance computed, and a percentile by adding up areas one at a
    time."""
    surfaces = [elements(mask, spacing) for mask in (prediction, label)]
    ways = []
    for (here, _), (there, _) in (surfaces, surfaces[::-1]):
        ways.append(np.sqrt(((here[:, None] - there[None]) ** 2).sum(-1)).min(1))
    close = sum(area[way <= tolerance + 1e-6].sum() for way, (_, area) in zip(ways, surfaces))
    reached = []
    for way, (_, area) in zip(ways, surfaces):
        running = 0.0
        for distance, piece in sorted(zip(way, area)):
            running += piece
            if running >= 0.95 * area.sum() - 1e-9:
                reached.append(distance)
                break
    return close / sum(area.sum() for _, area in surfaces), max(reached)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("corner", "size"),
    [
        ((3, 4, 2), (5, 4, 6)),
        ((0, 0, 0), (3, 9, 4)),
        ((4, 5, 5), (1, 1, 1)),
        ((1, 2, 3), (7, 2, 2)),
    ],
)
@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_boxes_against_areas_by_hand_and_all_distances(spacing, corner, size, tolerance) -> None:
    label, prediction = (
        cuboid((12, 13, 11), (3, 3, 3), (5, 5, 5)),
        cuboid((12, 13, 11), corner, size),
    )
    found = decathlon_metrics(prediction, label, list(spacing), tolerance)
    nsd, hd95 = by_hand(prediction, label, spacing, tolerance)
    assert found["nsd_decathlon"] == pytest.approx(nsd, abs=1e-6)
    assert found["hd95_decathlon_mm"] == pytest.approx(hd95, abs=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_rectangles_in_two_dimensions(spacing) -> None:
    label, prediction = cuboid((14, 12), (3, 3), (6, 5)), cuboid((14, 12), (4, 2), (8, 4))
    found = decathlon_metrics(prediction, label, list(spacing), 1.0)
    assert (found["nsd_decathlon"], found["hd95_decathlon_mm"]) == pytest.approx(
        by_hand(prediction, label, spacing, 1.0), abs=1e-5
    )


def test_a_mask_at_the_border_of_the_grid_has_a_whole_surface() -> None:
    """Shifting both masks to the border changes nothing."""
    inner = [cuboid((12, 12, 12), (3, 3, 3), (4, 5, 6)), cuboid((12, 12, 12), (4, 3, 3), (4, 5, 6))]
    border = [mask[3:, 3:, 3:] for mask in inner]
    assert decathlon_metrics(*inner, [1.0, 1.0, 2.0], 0.5) == decathlon_metrics(
        *border, [1.0, 1.0, 2.0], 0.5
    )


def test_each_area_counts_and_not_each_element() -> None:
    """A plate and the plate with a pin on it: the pin has many elements and little area in coarse
    slices."""
    label = cuboid((16, 16, 16), (2, 2, 2), (12, 12, 2))
    prediction = label | cuboid((16, 16, 16), (7, 7, 4), (1, 1, 9))
    row = case_metrics(prediction, label, (1.0, 1.0, 0.2), 0.5)
    assert row["nsd_decathlon"] != pytest.approx(row["nsd"], abs=1e-3)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_percentile_of_equal_areas_is_the_distance_that_reaches_it(share: float) -> None:
    distances = np.arange(1.0, 101.0)
    rng = np.random.default_rng(0)
    order = rng.permutation(100)
    assert weighted_percentile(distances[order], np.full(100, 0.3), share) == pytest.approx(
        100 * share, abs=1
    )
    quarters = np.array([0.25, 0.25, 0.25, 0.25])
    for wanted, part in ((7.0, 0.5), (7.5, 0.51), (9.0, 1.0), (9.0, 1.0 + 1e-9), (5.0, 0.0)):
        assert weighted_percentile(np.array([9.0, 7.0, 5.0, 7.5]), 2 * quarters, part) == wanted
    assert weighted_percentile(np.array([1.0, 9.0]), np.array([1.0, 99.0]), 0.5) == 9
    assert weighted_percentile(np.array([9.0, 1.0]), np.array([1.0, 99.0]), 0.95) == 1


def test_the_same_masks_score_one_and_empty_masks_follow_the_one_rule() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(12, 14, 16)), 2) > 0
    same = case_metrics(mask, mask, (1.0, 1.0, 2.0), 0.0)
    assert (same["nsd_decathlon"], same["hd95_decathlon_mm"]) == (1, 0)
    empty = np.zeros_like(mask)
    for pair in ((empty, mask), (mask, empty), (empty, empty)):
        row = case_metrics(*pair, (1.0, 1.0, 2.0), 1.0)
        assert (row["nsd_decathlon"], row["hd95_decathlon_mm"]) == (row["nsd"], row["hd95_mm"])
    assert CASE_COLUMNS[-2:] == list(DECATHLON)
