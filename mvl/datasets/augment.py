"""Augmentation of training cases: a small rotation, contrast and brightness (MedVisionLlama), or flips and quarter turns (LLM4Seg)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from monai.data import MetaTensor
from monai.transforms import RandAffineGrid, RandScaleIntensity, RandShiftIntensity
from torch import Tensor

from mvl.config import DataConfig

Volume = Float32[Tensor, "C *spatial"]
Mask = UInt8[Tensor, "1 *spatial"]


class Augment:
    """Random changes drawn by MONAI's Rand transforms, applied with one sampling grid for image and label.

    Rotation is about each axis of the network's grid, uniform within +-`rotate_degrees`; contrast is a factor around the mean, brightness a
    shift in standard deviations, each uniform within +-`intensity_factor`.

    Source: MedVisionLlama, released `datasets.py`. Differs: all three axes at once and fresh draws in each epoch (released: one plane, and
    each case stands three times, as it is, turned, and with other intensity, before the split into training and validation cases).
    """

    def __init__(self, data: DataConfig) -> None:
        angle = math.radians(data.rotate_degrees)
        self.rotate = RandAffineGrid(rotate_range=[(-angle, angle)] * (3 if len(data.img_size) == 3 else 1))
        self.contrast = RandScaleIntensity(factors=data.intensity_factor, prob=1.0)
        self.brightness = RandShiftIntensity(offsets=data.intensity_factor, prob=1.0)

    def __call__(self, image: Volume, label: Mask, seed: int) -> tuple[Volume, Mask]:
        """The changed copies, a function of the case and `seed` alone."""
        self.rotate.set_random_state(seed=seed % 2**32)
        self.rotate(image.shape[1:], lazy=True)
        image, label = resample(image, label, torch.as_tensor(self.rotate.get_transformation_matrix(), dtype=torch.float64))
        return self.intensity(image, seed), label

    def intensity(self, image: Volume, seed: int) -> Volume:
        """The image with other contrast and brightness."""
        for shift, draw in enumerate((self.contrast, self.brightness), start=1):
            draw.set_random_state(seed=(seed + shift) % 2**32)
        changed = self.brightness(self.contrast(image))
        return changed.as_tensor() if isinstance(changed, MetaTensor) else torch.as_tensor(changed)


class FlipRotate:
    """A quarter turn and mirrorings drawn anew for each case, image and label together, no value changed.

    Each axis is mirrored with probability 1/2; then a plane among those with sides of one length is turned by 0 to 3 quarters.

    Source: LLM4Seg, released `main.py` (RandomRotate90, Flip). Differs: every flip and turn equally likely (there each is left out half
    of the time); in 3-D over all planes.
    """

    def __init__(self, data: DataConfig) -> None:
        size = data.img_size
        self.planes = [(a, b) for a in range(len(size)) for b in range(a + 1, len(size)) if size[a] == size[b]]

    def __call__(self, image: Volume, label: Mask, seed: int) -> tuple[Volume, Mask]:
        """The changed copies, a function of the case and `seed` alone."""
        draw = np.random.default_rng(seed)
        axes = [axis + 1 for axis in range(image.ndim - 1) if draw.random() < 0.5]
        turns, plane = int(draw.integers(4)), self.planes[draw.integers(len(self.planes))] if self.planes else None
        change = lambda x: torch.rot90(x.flip(axes), turns, [axis + 1 for axis in plane]) if plane else x.flip(axes)
        return change(image).contiguous(), change(label).contiguous()


class Versions(Augment):
    """One of the three versions of a case that the released code trains on: 0 as it is; 1 turned in one plane; 2 other contrast and brightness.

    `one_plane` turns image and label together in the sagittal plane. `released_planes` turns the image in that plane and the label by the
    same angle in the axial one: the released code gives one pair of axes to an image with a channel axis and a label without.
    For the audit alone. Source: MedVisionLlama, released `datasets.py` (RotatedDataset, IntensityAdjustedDataset). Differs: linear and nearest
    interpolation and repeated borders (there cubic, zeros outside); changes of intensity as in `Augment`.
    """

    count = 3

    def __init__(self, data: DataConfig) -> None:
        super().__init__(data)
        self.degrees, self.label_plane = data.rotate_degrees, (1, 0) if data.augmentation == "released_planes" else (2, 1)

    def __call__(self, image: Volume, label: Mask, seed: int, version: int | None = None) -> tuple[Volume, Mask]:
        """The version asked for, or one of the three by chance; its change is a function of the case and `seed` alone."""
        draw = np.random.default_rng(seed)
        version = int(draw.integers(self.count)) if version is None else version
        if version == 1:
            angle = math.radians(draw.uniform(-self.degrees, self.degrees))
            return resample(image, label, turn(angle, (2, 1)))[0], resample(image, label, turn(angle, self.label_plane))[1]
        return (self.intensity(image, seed), label) if version == 2 else (image, label)


def turn(angle: float, plane: tuple[int, int]) -> Tensor:
    """The 4 x 4 matrix of a rotation by `angle` (radians) in the plane of two spatial axes."""
    (a, b), matrix = plane, torch.eye(4, dtype=torch.float64)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = math.sin(angle), -math.sin(angle)
    return matrix


def augmentation(data: DataConfig) -> Augment | FlipRotate:
    """What `data.augmentation` names."""
    if data.augmentation in ("released_planes", "one_plane"):
        return Versions(data)
    return FlipRotate(data) if data.augmentation == "flip_rot90" else Augment(data)


def resample(image: Tensor, label: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Image (C, *spatial, trilinear) and label (1, *spatial, nearest) read at `matrix` (d+1, d+1), which maps centred voxel positions."""
    d = image.ndim - 1
    half = torch.tensor(image.shape[1:], dtype=torch.float64) / 2
    theta = (matrix[:d, :d] * half[None, :] / half[:, None]).flip(0, 1)
    theta = torch.cat([theta, (matrix[:d, d] / half).flip(0)[:, None]], dim=1).float()
    grid = F.affine_grid(theta[None], [1, 1, *image.shape[1:]], align_corners=False)
    read = lambda x, mode: F.grid_sample(x[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
    return read(image, "bilinear"), read(label.float(), "nearest").to(label.dtype)
