"""Images and labels read at turned positions: one sampling grid for both, a batch at a time."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**17
"Voxels that are interpolated together on a CPU, so that the arrays in between stay in its cache."


def sampling_theta(matrix: Tensor, size: tuple[int, ...]) -> Tensor:
    """What `affine_grid` takes for `matrix`.

    `matrix` (d+1, d+1), float64, maps centred voxel positions of a grid of `size`; returns (d,
    d+1), float32, with the axes in the order of `affine_grid`, last one first.
    """
    d = len(size)
    half = torch.tensor(size, dtype=torch.float64) / 2
    turn = (matrix[:d, :d] * half[None, :] / half[:, None]).flip(0, 1)
    shift = (matrix[:d, d] / half).flip(0)[:, None]
    return torch.cat([turn, shift], dim=1).float()


def resample(image: Tensor, label: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Images (trilinear) and labels (nearest) read at the positions that `theta` says.

    Outside the grid its border is repeated. Shapes: image (B, C, *S) float32, label (B, 1, *S),
    theta (B, d, d+1) on their device.
    """
    if image.ndim == 5 and image.device.type == "cpu":
        return read_on_cpu(image, label, theta)
    grid = F.affine_grid(theta, [len(image), 1, *image.shape[2:]], align_corners=False)
    return read(image, grid, "bilinear"), read(label.float(), grid, "nearest").to(label.dtype)


def read(values: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Values (B, C, *S) at the positions of a grid (B, *S, d) between -1 and 1."""
    return F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)


@lru_cache(maxsize=4)
def identity_grid(size: tuple[int, ...]) -> Tensor:
    """Positions (4, voxels) that `affine_grid` multiplies by theta: x, y, z and 1."""
    theta = torch.eye(3, 4)[None]
    grid = F.affine_grid(theta, [1, 1, *size], align_corners=False).reshape(-1, 3)
    return torch.cat([grid, torch.ones(len(grid), 1)], dim=1).T.contiguous()


def read_on_cpu(image: Tensor, label: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """`resample` of volumes on a CPU: the bits of `grid_sample`, in less than half of its time.

    `grid_sample` walks through volumes one voxel at a time and finds the positions twice, for image
    and label. Here the same sums are taken in the same order, over many voxels at once.
    """
    size = tuple(image.shape[2:])
    base = identity_grid(size)
    turned = torch.empty_like(image)
    moved = torch.empty_like(label)
    for number in range(len(image)):
        grid = theta[number] @ base
        # The neighbours of the last voxels lie behind the volume, where they get weight 0.
        values = F.pad(image[number].flatten(1), (0, 1 + size[2] + size[1] * size[2]))
        marks = label[number].flatten()
        for start in range(0, grid.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            places = [position(grid[axis, part], size[2 - axis]) for axis in range(3)]
            mark = marks.index_select(0, nearest(places, size))
            moved[number].flatten()[part] = mark
            trilinear(values, places, size, turned[number].flatten(1)[:, part])
    return turned, moved


def position(coordinate: Tensor, length: int) -> Tensor:
    """Voxel positions of coordinates between -1 and 1, kept within an axis of `length` voxels."""
    return coordinate.add(1).mul_(length).sub_(1).div_(2).clamp_(0, length - 1)


def nearest(places: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """Flat index of the voxel next to each place (x, y, z)."""
    x, y, z = (place.round().int() for place in places)
    return z.mul_(size[1]).add_(y).mul_(size[2]).add_(x)


def trilinear(values: Tensor, places: list[Tensor], size: tuple[int, ...], out: Tensor) -> None:
    """Write what lies between the eight voxels around each place (x, y, z).

    `values` (C, voxels and a plane, a row and a voxel more) holds any finite number behind the
    volume.
    """
    low = [place.floor() for place in places]
    above = [place - floor for place, floor in zip(places, low)]
    below = [floor.add(1).sub_(place) for place, floor in zip(places, low)]
    x, y, z = (floor.int() for floor in low)
    corner = z.mul_(size[1]).add_(y).mul_(size[2]).add_(x)
    steps = (1, size[2], size[1] * size[2])
    voxels = values.shape[1] - sum(steps)
    flat = [below[0] * below[1], above[0] * below[1], below[0] * above[1], above[0] * above[1]]
    out.zero_()
    for upper, depth in enumerate((below[2], above[2])):
        for number, weight in enumerate(flat):
            shift = (number & 1) * steps[0] + (number >> 1) * steps[1] + upper * steps[2]
            share = weight * depth
            for channel, filled in zip(values, out):
                neighbours = channel.narrow(0, shift, voxels).index_select(0, corner)
                filled.add_(neighbours.mul_(share))
