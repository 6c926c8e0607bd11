"""Both ways to the distances between edges give what all distances, computed one by one, give."""

from __future__ import annotations

import numpy as np
import pytest

from mvl.training.edges import edge_distances, joint_box


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("spacing", [[1.0, 1.0, 1.0], [0.7, 0.9, 2.5]])
def test_distances_are_those_to_the_nearest_voxel(
    limit: int, spacing: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mvl.training.edges.MAX_TREE_EDGES", limit)
    rng = np.random.default_rng(0)
    source, target = rng.random((8, 9, 7)) > 0.9, rng.random((8, 9, 7)) > 0.95
    here, there = np.argwhere(source) * spacing, np.argwhere(target) * spacing
    wanted = np.sqrt(((here[:, None] - there[None]) ** 2).sum(-1)).min(1)
    found = edge_distances(source, target, spacing)
    assert found == pytest.approx(wanted, abs=1e-5) and found.dtype == np.float32


@pytest.mark.parametrize(("limit", "tree"), [(4, False), (5, True)])
def test_the_tree_is_for_few_edge_voxels_of_both_masks_together(
    limit: int, tree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def distances(*_: object, spacing: list[float]) -> np.ndarray:
        asked.append(True)
        return np.zeros(2, np.float32)

    monkeypatch.setattr("mvl.training.edges.MAX_TREE_EDGES", limit)
    monkeypatch.setattr("mvl.training.edges.get_surface_distance", distances)
    source, target = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    source[0, :2], target[3, :3] = True, True
    edge_distances(source, target, [1.0, 1.0])
    assert bool(asked) is tree


def test_the_joint_box_holds_both_masks_and_no_more() -> None:
    one, other = np.zeros((6, 7), bool), np.zeros((6, 7), bool)
    one[2, 3] = other[4, 1] = True
    assert joint_box(one, other) == (slice(2, 5), slice(1, 4))
