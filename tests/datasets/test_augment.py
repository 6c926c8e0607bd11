"""Image and label turn together, within the stated bounds, and only then does intensity change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvl.core.config import DataConfig
from mvl.datasets.augment import Augment, Changes, FlipRotate, augmentation, rotation
from mvl.datasets.resample import resample, sampling_theta


def turned_by(image, label, matrix):
    """One case turned by a matrix of centred voxel positions."""
    moved, marks = resample(
        image[None], label[None], sampling_theta(matrix, tuple(image.shape[1:]))[None]
    )
    return moved[0], marks[0]


def monais(data):
    """The transforms of MONAI whose draws `Augment` repeats."""
    from monai.transforms import RandAffineGrid, RandScaleIntensity, RandShiftIntensity

    angle = np.deg2rad(data.rotate_degrees)
    axes = 3 if len(data.img_size) == 3 else 1
    return (
        RandAffineGrid(rotate_range=[(-angle, angle)] * axes),
        RandScaleIntensity(factors=data.intensity_factor, prob=1.0),
        RandShiftIntensity(offsets=data.intensity_factor, prob=1.0),
    )


@pytest.mark.parametrize("size", [(12, 10, 14), (16, 12)])
def test_draws_and_intensities_are_monais_bit_for_bit(size):
    data = DataConfig(img_size=size)
    augment = Augment(data)
    rotate, contrast, brightness = monais(data)
    image = torch.randn(2, *size)
    for seed in (0, 7, 2**40 + 3, 2**63 - 1):
        rotate.set_random_state(seed=seed % 2**32)
        rotate(size, lazy=True)
        theirs = torch.as_tensor(rotate.get_transformation_matrix(), dtype=torch.float64)
        drawn = augment.draw(seed)
        assert augment.angles(seed) == rotate.rotate_params and torch.equal(drawn.turn, theirs)
        contrast.set_random_state(seed=(seed + 1) % 2**32)
        brightness.set_random_state(seed=(seed + 2) % 2**32)
        factor, summand = torch.tensor(drawn.intensity, dtype=torch.float32)
        assert torch.equal(image * factor + summand, brightness(contrast(image)).as_tensor())


def test_a_rotation_in_two_dimensions_turns_by_its_angle():
    assert torch.allclose(
        rotation([0.3])[:2, :2] @ torch.tensor([1.0, 0.0]).double(),
        torch.tensor([0.955336, 0.295520]).double(),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((12, 10, 12), "rotate_intensity"),
        ((12, 10), "rotate_intensity"),
        ((8, 8, 6), "flip_rot90"),
        ((8, 8), "flip_rot90"),
        ((12, 10, 12), "released_planes"),
        ((12, 10, 12), "one_plane"),
    ],
)
def test_a_batch_gives_each_case_what_it_gets_alone(size, name):
    augment = augmentation(DataConfig(img_size=size, augmentation=name))
    image, label = torch.randn(9, 2, *size), (torch.rand(9, 1, *size) * 3).to(torch.uint8)
    before = image.clone(), label.clone()
    changes = Changes([augment.draw(seed) for seed in range(10)], size, torch.device("cpu"))
    changed, moved = changes.apply(image, label, slice(1, 10))
    for k in range(9):
        alone = augment(image[k], label[k], k + 1)
        assert torch.equal(changed[k], alone[0]) and torch.equal(moved[k], alone[1])
    assert (
        not torch.equal(changed, image)
        and torch.equal(image, before[0])
        and torch.equal(label, before[1])
    )


def test_a_quarter_turn_goes_the_same_way_in_image_and_label():
    image = torch.arange(6 * 6 * 4, dtype=torch.float32).reshape(1, 6, 6, 4)
    label = (image > 70).to(torch.uint8)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned, moved = turned_by(image, label, turn)
    expected = next(
        r
        for r in (torch.rot90(image, k, (1, 2)) for k in (1, 3))
        if torch.allclose(turned, r, atol=1e-3)
    )
    assert torch.equal(moved, (expected > 70).to(torch.uint8))
    assert torch.allclose(
        turned_by(image, label, torch.eye(4, dtype=torch.float64))[0], image, atol=1e-4
    )


def test_rotation_of_an_oblong_grid_is_rigid_in_voxels():
    from monai.transforms import AffineGrid, Resample

    image = torch.rand(1, 20, 30, 12)
    grid, matrix = AffineGrid(rotate_params=(0.05, -0.08, 0.03))((20, 30, 12))
    theirs = Resample(mode="bilinear", padding_mode="border")(image, grid=grid).as_tensor()
    assert torch.allclose(
        turned_by(image, image.to(torch.uint8), matrix.double())[0], theirs, atol=1e-4
    )


def test_augmentation_stays_within_its_bounds():
    data = DataConfig(img_size=(16, 16, 16))
    augment, flat = Augment(data), torch.full((1, 16, 16, 16), 2.0)
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    values = [augment(flat, label, seed)[0] for seed in range(200)]
    means = torch.stack([v.mean() for v in values])
    assert (
        means.min() >= 2 * 0.9 - 0.1 - 1e-4
        and means.max() <= 2 * 1.1 + 0.1 + 1e-4
        and means.max() - means.min() > 0.4
    )
    angles = []
    for seed in range(200):
        angles.append(np.abs(np.rad2deg(augment.angles(seed))))
    assert (
        4.5 < np.max(angles) <= 5.0
        and np.shape(angles) == (200, 3)
        and not np.allclose(np.array(angles)[:, 0], np.array(angles)[:, 1])
    )


def test_nothing_to_change_changes_nothing():
    augment = Augment(DataConfig(img_size=(12, 12, 12), rotate_degrees=0.0, intensity_factor=0.0))
    image, label = torch.rand(1, 12, 12, 12), (torch.rand(1, 12, 12, 12) > 0.5).to(torch.uint8)
    changed, moved = augment(image, label, 1)
    assert torch.allclose(changed, image, atol=1e-4) and torch.equal(moved, label)


def test_small_rotations_in_two_dimensions_turn_image_and_label_together():
    augment = Augment(DataConfig(img_size=(32, 40), rotate_degrees=20.0, intensity_factor=0.0))
    label = torch.zeros(1, 32, 40, dtype=torch.uint8)
    label[:, 8:24, 10:20] = 1
    changed, moved = augment(label.float(), label, 4)
    assert (
        changed.shape == (1, 32, 40)
        and not torch.equal(moved, label)
        and ((changed > 0.5) == (moved > 0)).float().mean() > 0.98
    )
    assert abs(int(moved.sum()) - int(label.sum())) < 16 and np.shape(augment.angles(4)) == (1,)


@pytest.mark.parametrize(
    ("size", "count"), [((6, 6), 8), ((6, 8), 4), ((4, 4, 4), 48), ((4, 6, 8), 8)]
)
def test_flips_and_quarter_turns_reach_every_pose_and_change_no_value(size, count):
    change = augmentation(DataConfig(img_size=size, augmentation="flip_rot90"))
    image = torch.arange(int(np.prod(size)), dtype=torch.float32).reshape(1, *size)
    label = (image % 3).to(torch.uint8)
    poses = {}
    for seed in range(40 * count // 4):
        turned, moved = change(image, label, seed)
        assert turned.shape == image.shape and torch.equal(
            turned.flatten().sort()[0], image.flatten()
        )
        assert torch.equal(moved, (turned % 3).to(torch.uint8))
        poses.setdefault(turned.numpy().tobytes(), []).append(seed)
    assert len(poses) == count if count < 48 else 20 <= len(poses) <= 48
    assert torch.equal(change(image, label, 5)[0], change(image, label, 5)[0]) and torch.equal(
        image.flatten(), torch.arange(image.numel()).float()
    )


def test_the_default_is_the_small_rotation():
    assert isinstance(augmentation(DataConfig()), Augment) and isinstance(
        augmentation(DataConfig(augmentation="flip_rot90")), FlipRotate
    )
