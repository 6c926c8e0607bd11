"""Image and label turn together, within the stated bounds, and only then does intensity change."""

from __future__ import annotations

import numpy as np
import torch

from mvl.config import DataConfig
from mvl.datasets.augment import Augment, resample


def test_a_quarter_turn_goes_the_same_way_in_image_and_label():
    image = torch.arange(6 * 6 * 4, dtype=torch.float32).reshape(1, 6, 6, 4)
    label = (image > 70).to(torch.uint8)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned, moved = resample(image, label, turn)
    expected = next(r for r in (torch.rot90(image, k, (1, 2)) for k in (1, 3)) if torch.allclose(turned, r, atol=1e-3))
    assert torch.equal(moved, (expected > 70).to(torch.uint8))
    assert torch.allclose(resample(image, label, torch.eye(4, dtype=torch.float64))[0], image, atol=1e-4)


def test_rotation_of_an_oblong_grid_is_rigid_in_voxels():
    from monai.transforms import AffineGrid, Resample

    image = torch.rand(1, 20, 30, 12)
    grid, matrix = AffineGrid(rotate_params=(0.05, -0.08, 0.03))((20, 30, 12))
    theirs = Resample(mode="bilinear", padding_mode="border")(image, grid=grid).as_tensor()
    assert torch.allclose(resample(image, image.to(torch.uint8), matrix.double())[0], theirs, atol=1e-4)


def test_augmentation_stays_within_its_bounds():
    data = DataConfig(img_size=(16, 16, 16))
    augment, flat = Augment(data), torch.full((1, 16, 16, 16), 2.0)
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    values = [augment(flat, label, seed)[0] for seed in range(200)]
    means = torch.stack([v.mean() for v in values])
    assert means.min() >= 2 * 0.9 - 0.1 - 1e-4 and means.max() <= 2 * 1.1 + 0.1 + 1e-4 and means.max() - means.min() > 0.4
    angles = []
    for seed in range(200):
        augment(flat, label, seed)
        angles.append(np.abs(np.rad2deg(augment.rotate.rotate_params)))
    assert 4.5 < np.max(angles) <= 5.0 and np.shape(angles) == (200, 3) and not np.allclose(np.array(angles)[:, 0], np.array(angles)[:, 1])


def test_nothing_to_change_changes_nothing():
    augment = Augment(DataConfig(img_size=(12, 12, 12), rotate_degrees=0.0, intensity_factor=0.0))
    image, label = torch.rand(1, 12, 12, 12), (torch.rand(1, 12, 12, 12) > 0.5).to(torch.uint8)
    changed, moved = augment(image, label, 1)
    assert torch.allclose(changed, image, atol=1e-4) and torch.equal(moved, label)
