"""Augmentation of training cases: a small rotation, contrast and brightness (MedVisionLlama), or
flips and quarter turns (LLM4Seg).

What is drawn for a case is a function of its seed alone, made without touching a voxel; what was
drawn for many cases is then applied a batch at a time, on the device that holds them, and gives
each case what it would get alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from mvl.core.config import DataConfig
from mvl.datasets.resample import resample, sampling_theta

Volume = Float32[Tensor, "C *spatial"]
Mask = UInt8[Tensor, "1 *spatial"]


@dataclass(frozen=True)
class Change:
    """What was drawn for one case; None and empty mean that this is not changed."""

    turn: Tensor | None = None
    "Matrix (d+1, d+1), float64, of the image's rotation."
    label_turn: Tensor | None = None
    "The label's; it differs from the image's in the audit alone."
    intensity: tuple[float, float] | None = None
    "Factor and summand of the image's values."
    mirrored: tuple[int, ...] = ()
    "Axes of a batch (the first spatial one is 2) that are mirrored."
    quarters: int = 0
    "Quarter turns after that."
    plane: tuple[int, int] | None = None
    "Axes of a batch that are turned."


class Changes:
    """What was drawn for many cases, as tensors on a device, ready to be applied to slices of
    them."""

    def __init__(
        self, drawn: Sequence[Change], size: tuple[int, ...], device: torch.device
    ) -> None:
        self.drawn = list(drawn)
        unmoved = torch.eye(len(size) + 1)
        turns = [unmoved if c.turn is None else c.turn for c in drawn]
        label_turns = [unmoved if c.label_turn is None else c.label_turn for c in drawn]
        self.apart = any(c.turn is not c.label_turn for c in drawn)
        self.theta = stacked([sampling_theta(turn, size) for turn in turns], device)
        self.label_theta = self.theta
        if self.apart:
            self.label_theta = stacked([sampling_theta(turn, size) for turn in label_turns], device)
        values = torch.tensor([c.intensity or (1.0, 0.0) for c in drawn])
        self.intensity = values.reshape(len(drawn), 2, *[1] * (len(size) + 1)).to(device)

    def apply(self, image: Tensor, label: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Changed copies of images (B, C, *S) and labels (B, 1, *S), whose draws stand in
        `rows`."""
        drawn, given = self.drawn[rows], image
        if any(c.turn is not None for c in drawn):
            image, label = self.turned(image, label, rows)
        if any(c.intensity is not None for c in drawn):
            factor, summand = self.intensity[rows].unbind(1)
            bright = [c.intensity is not None for c in drawn]
            if all(bright) and image is not given:  # a copy already
                image = image.mul_(factor).add_(summand)
            else:
                image = chosen(bright, image * factor + summand, image)
        if any(c.mirrored or c.plane for c in drawn):
            image = torch.stack([flipped(x[None], c)[0] for x, c in zip(image, drawn)])
            label = torch.stack([flipped(y[None], c)[0] for y, c in zip(label, drawn)])
        return image, label

    def turned(self, image: Tensor, label: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Images and labels after their rotations."""
        moved, marks = resample(image, label, self.theta[rows])
        if self.apart:
            marks = resample(image, label, self.label_theta[rows])[1]
        which = [c.turn is not None for c in self.drawn[rows]]
        return chosen(which, moved, image), chosen(which, marks, label)


def stacked(matrices: list[Tensor], device: torch.device) -> Tensor:
    """The matrices as one tensor on the device; none give an empty one."""
    return torch.stack(matrices).to(device) if matrices else torch.empty(0, device=device)


def chosen(which: list[bool], changed: Tensor, before: Tensor) -> Tensor:
    """Each row of `changed` that is asked for, and of `before` where it is not."""
    if all(which):
        return changed
    return torch.stack([after if take else old for take, after, old in zip(which, changed, before)])


def flipped(values: Tensor, change: Change) -> Tensor:
    """Values (1, C, *S) mirrored and turned by quarters."""
    values = values.flip(change.mirrored)
    return torch.rot90(values, change.quarters, change.plane) if change.plane else values


class Augment:
    """Random changes, drawn as MONAI's RandAffineGrid, RandScaleIntensity and RandShiftIntensity
    draw them, one sampling grid for image and label.

    The draws are taken from numpy's generator in MONAI's order: its own objects take a millisecond
    for a case.

    Rotation is about each axis of the network's grid, uniform within +-`rotate_degrees`; contrast
    is a factor around the mean, brightness a shift in standard deviations, each uniform within
    +-`intensity_factor`.

    Source: MedVisionLlama, released `datasets.py`. Differs: all three axes at once and fresh draws
    in each epoch (released: one plane, and each case stands three times, as it is, turned, and with
    other intensity, before the split into training and validation cases).
    """

    def __init__(self, data: DataConfig) -> None:
        self.size = data.img_size
        self.angle = math.radians(data.rotate_degrees)
        self.factor = data.intensity_factor
        # seeded anew for each draw: a new one costs ten times that
        self.generator = np.random.RandomState()

    def draw(self, seed: int) -> Change:
        """What a case with this seed gets."""
        turn = rotation(self.angles(seed))
        return Change(turn=turn, label_turn=turn, intensity=self.intensity(seed))

    def angles(self, seed: int) -> list[float]:
        """Rotation about each axis, radians; one angle in 2-D."""
        self.generator.seed(seed % 2**32)
        axes = 3 if len(self.size) == 3 else 1
        return [self.generator.uniform(-self.angle, self.angle) for _ in range(axes)]

    def intensity(self, seed: int) -> tuple[float, float]:
        """Factor and summand of the image's values."""
        drawn = []
        for shift in (1, 2):
            self.generator.seed((seed + shift) % 2**32)
            self.generator.rand()  # MONAI asks first whether to change anything
            drawn.append(self.generator.uniform(-self.factor, self.factor))
        return 1 + drawn[0], drawn[1]

    def __call__(self, image: Volume, label: Mask, seed: int) -> tuple[Volume, Mask]:
        """The changed copies, a function of the case and `seed` alone."""
        return alone(self.draw(seed), image, label)


class FlipRotate:
    """A quarter turn and mirrorings drawn anew for each case, image and label together, no value
    changed.

    Each axis is mirrored with probability 1/2; then a plane among those with sides of one length is
    turned by 0 to 3 quarters.

    Source: LLM4Seg, released `main.py` (RandomRotate90, Flip). Differs: every flip and turn equally
    likely (there each is left out half of the time); in 3-D over all planes.
    """

    def __init__(self, data: DataConfig) -> None:
        size = data.img_size
        self.dims = len(size)
        self.planes = [
            (a, b) for a in range(len(size)) for b in range(a + 1, len(size)) if size[a] == size[b]
        ]

    def draw(self, seed: int) -> Change:
        """What a case with this seed gets."""
        generator = np.random.default_rng(seed)
        mirrored = tuple(axis + 2 for axis in range(self.dims) if generator.random() < 0.5)
        quarters = int(generator.integers(4))
        plane = None
        if self.planes:
            first, second = self.planes[generator.integers(len(self.planes))]
            plane = (first + 2, second + 2)
        return Change(mirrored=mirrored, quarters=quarters, plane=plane)

    def __call__(self, image: Volume, label: Mask, seed: int) -> tuple[Volume, Mask]:
        """The changed copies, a function of the case and `seed` alone."""
        return alone(self.draw(seed), image, label)


class Versions(Augment):
    """One of the three versions of a case that the released code trains on: 0 as it is; 1 turned in
    one plane; 2 other contrast and brightness.

    `one_plane` turns image and label together in the sagittal plane. `released_planes` turns the
    image in that plane and the label by the same angle in the axial one: the released code gives
    one pair of axes to an image with a channel axis and a label without. For the audit alone.
    Source: MedVisionLlama, released `datasets.py` (RotatedDataset, IntensityAdjustedDataset).
    Differs: linear and nearest interpolation and repeated borders (there cubic, zeros outside);
    changes of intensity as in `Augment`.
    """

    count = 3

    def __init__(self, data: DataConfig) -> None:
        super().__init__(data)
        self.degrees = data.rotate_degrees
        self.label_plane = (1, 0) if data.augmentation == "released_planes" else (2, 1)

    def draw(self, seed: int, version: int | None = None) -> Change:
        """What the version asked for gets, or one of the three by chance."""
        generator = np.random.default_rng(seed)
        if version is None:
            version = int(generator.integers(self.count))
        if version == 1:
            angle = math.radians(generator.uniform(-self.degrees, self.degrees))
            return Change(turn=turn(angle, (2, 1)), label_turn=turn(angle, self.label_plane))
        return Change(intensity=self.intensity(seed)) if version == 2 else Change()

    def __call__(
        self, image: Volume, label: Mask, seed: int, version: int | None = None
    ) -> tuple[Volume, Mask]:
        """The version asked for, or one of the three by chance; its change is a function of the
        case and `seed` alone."""
        return alone(self.draw(seed, version), image, label)


def alone(change: Change, image: Volume, label: Mask) -> tuple[Volume, Mask]:
    """One case after what was drawn for it."""
    changes = Changes([change], tuple(image.shape[1:]), image.device)
    changed, moved = changes.apply(image[None], label[None], slice(None))
    return changed[0], moved[0]


def rotation(angles: Sequence[float]) -> Tensor:
    """The (d+1, d+1) matrix of rotations about each axis, or of one in the plane, by angles in
    radians.

    Sines and products are taken in float32, as MONAI takes them, so that recorded runs repeat.
    """
    exact = torch.tensor(angles)
    sines, cosines = exact.sin().tolist(), exact.cos().tolist()
    if len(angles) == 1:
        (s,), (c,) = sines, cosines
        return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).double()
    (sx, sy, sz), (cx, cy, cz) = sines, cosines
    about_x = torch.tensor([[1, 0, 0, 0], [0, cx, -sx, 0], [0, sx, cx, 0], [0, 0, 0, 1]])
    about_y = torch.tensor([[cy, 0, sy, 0], [0, 1, 0, 0], [-sy, 0, cy, 0], [0, 0, 0, 1]])
    about_z = torch.tensor([[cz, -sz, 0, 0], [sz, cz, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return (about_x @ about_y @ about_z).double()


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
