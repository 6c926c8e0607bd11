"""Image and label turn together, within the stated bounds, and only then does intensity change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import (
    AffineGrid,
    RandAffineGrid,
    RandScaleIntensity,
    RandShiftIntensity,
    Resample,
)

from mvl.core.config import DataConfig
from mvl.datasets.augment import (
    Augment,
    Change,
    Changes,
    FlipRotate,
    Versions,
    augmentation,
    rotation,
    turn,
)
from mvl.datasets.resample import resample, sampling_theta


def turned_by(image, label, matrix):
    """One case turned by a matrix of centred voxel positions."""
    moved, marks = resample(
        image[None], label[None], sampling_theta(matrix, tuple(image.shape[1:]))[None]
    )
    return moved[0], marks[0]


def monais(data):
    """The transforms of MONAI whose draws `Augment` repeats."""
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
    for seed in (0, 7, 2**32 + 5, 2**40 + 3, 2**63 - 1):
        rotate.set_random_state(seed=seed % 2**32)
        rotate(size, lazy=True)
        theirs = torch.as_tensor(rotate.get_transformation_matrix(), dtype=torch.float64)
        drawn = augment.draw(seed)
        assert augment.angles(seed) == rotate.rotate_params and torch.equal(drawn.turn, theirs)
        contrast.set_random_state(seed=(seed + 1) % 2**32)
        brightness.set_random_state(seed=(seed + 2) % 2**32)
        factor, summand = torch.tensor(drawn.intensity, dtype=torch.float32)
        assert torch.equal(image * factor + summand, brightness(contrast(image)).as_tensor())


def test_matrices_by_their_formulas():
    """About the axes in float32, as MONAI takes it; in a plane in float64."""
    c, s = np.cos(np.float32(0.3)), np.sin(np.float32(0.3))
    found = rotation([0.3])
    assert found.dtype == torch.float64
    assert np.allclose(found, [[c, -s, 0], [s, c, 0], [0, 0, 1]], atol=1e-7)
    c, s = np.cos(0.3), np.sin(0.3)
    wanted = np.eye(4)
    wanted[[2, 2, 1, 1], [2, 1, 2, 1]] = c, s, -s, c
    assert turn(0.3, (2, 1)).dtype == torch.float64
    assert np.array_equal(turn(0.3, (2, 1)), wanted)


def by_hand(drawn, image, label):
    """One case after its change, step by step."""
    moved = image
    if drawn.turn is not None:
        moved, _ = turned_by(image, label, drawn.turn)
        _, label = turned_by(image, label, drawn.label_turn)
    if drawn.intensity is not None:
        factor, summand = torch.tensor(drawn.intensity)
        moved = moved * factor + summand
    pair = [moved.numpy(), label.numpy()]
    axes = [axis - 1 for axis in drawn.mirrored]
    pair = [np.flip(values, axes) for values in pair]
    if drawn.plane:
        plane = [axis - 1 for axis in drawn.plane]
        pair = [np.rot90(values, drawn.quarters, plane) for values in pair]
    return [torch.from_numpy(values.copy()) for values in pair]


@pytest.mark.parametrize("size", [(8, 8, 8), (8, 6, 8), (8, 8), (8, 6)])
def test_flips_and_turns_are_drawn_evenly_from_the_seed(size):
    """Each axis by its own draw, then quarters, then a plane among those with equal sides."""
    change = FlipRotate(DataConfig(img_size=size))
    pairs = [(a, b) for a in range(2, 5) for b in range(a + 1, 2 + len(size))]
    planes = [(a, b) for a, b in pairs if size[a - 2] == size[b - 2]]
    for seed in range(30):
        draws = np.random.default_rng(seed)
        mirrored = tuple(axis for axis in range(2, 2 + len(size)) if draws.random() < 0.5)
        quarters = int(draws.integers(4))
        plane = planes[draws.integers(len(planes))] if planes else None
        assert change.draw(seed) == Change(mirrored=mirrored, quarters=quarters, plane=plane)


@pytest.mark.parametrize(("name", "plane"), [("one_plane", (2, 1)), ("released_planes", (1, 0))])
def test_the_three_versions_by_hand(name, plane):
    """As it is; turned in one plane, the label in its own; with other intensity, drawn as
    `Augment` draws it."""
    data = DataConfig(img_size=(8, 6, 8), augmentation=name, rotate_degrees=20.0)
    versions, usual = augmentation(data), Augment(data)
    assert isinstance(versions, Versions)
    image, label = torch.randn(1, 8, 6, 8), (torch.rand(1, 8, 6, 8) * 3).to(torch.uint8)
    seen = set()
    for seed in range(20):
        draws = np.random.default_rng(seed)
        angle = np.deg2rad(draws.uniform(-20.0, 20.0))
        turned = Change(turn=turn(angle, (2, 1)), label_turn=turn(angle, plane))
        bright = Change(intensity=usual.draw(seed).intensity)
        for version, wanted in enumerate((Change(), turned, bright)):
            drawn = versions.draw(seed, version)
            assert drawn.intensity == wanted.intensity and not drawn.mirrored
            for found, matrix in ((drawn.turn, wanted.turn), (drawn.label_turn, wanted.label_turn)):
                assert (found is matrix is None) or torch.allclose(found, matrix, atol=1e-12)
            for found, made in zip(
                versions(image, label, seed, version), by_hand(drawn, image, label)
            ):
                assert torch.equal(found, made)
        draws = np.random.default_rng(seed)
        version = int(draws.integers(3))
        angle = np.deg2rad(draws.uniform(-20.0, 20.0))
        drawn = versions.draw(seed)
        assert (drawn.turn is not None, drawn.intensity is not None) == (version == 1, version == 2)
        assert version != 1 or torch.allclose(drawn.turn, turn(angle, (2, 1)), atol=1e-12)
        seen.add(version)
    assert seen == {0, 1, 2}


def test_draws_lie_on_the_device_that_is_named_and_may_be_none():
    apart = Change(turn=turn(0.1, (2, 1)), label_turn=turn(0.1, (1, 0)), intensity=(1.1, 0.2))
    changes = Changes([apart, Change()], (4, 4, 4), torch.device("meta"))
    held = (changes.theta, changes.label_theta, changes.intensity)
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert {tensor.dtype for tensor in held} == {torch.float32}
    assert changes.theta.shape == (2, 3, 4) and changes.intensity.shape == (2, 2, 1, 1, 1, 1)
    none = Changes([], (4, 4), torch.device("meta")).theta
    assert none.shape == (0,) and none.device.type == "meta"
    bright = Versions(DataConfig(augmentation="one_plane"))
    image, label = torch.empty(1, 4, 4, 4, device="meta"), torch.empty(1, 4, 4, 4, device="meta")
    assert bright(image, label.to(torch.uint8), 0, 2)[0].device.type == "meta"


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
        for wanted in (
            augment(image[k], label[k], k + 1),
            by_hand(augment.draw(k + 1), image[k], label[k]),
        ):
            assert torch.equal(changed[k], wanted[0]) and torch.equal(moved[k], wanted[1])
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
