"""Cases in two dimensions as arrays with a spacing: pictures (1 px) and axial slices (mm)."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from mvl.datasets import masks, slices
from mvl.datasets.task import Case, Task


def read_plane(task: Task, case: Case) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Image (C, rows, columns) float32, label (rows, columns) uint8 and spacing of a picture (px)
    or a slice (mm).

    Raises:
        TaskError: a file cannot be used; names it and the remedy.
    """
    if task.layout == "slices":
        return slices.read_slice(case)
    image, label = masks.read_case(case, len(task.channels), max(task.labels))
    return image, label, (1.0, 1.0)


def tensors(task: Task, case: Case) -> dict[str, MetaTensor]:
    """`image` (C, rows, columns) and `label` (1, rows, columns) with their affine, for MONAI's
    transforms."""
    image, label, spacing = read_plane(task, case)
    return {"image": flat(image, spacing), "label": flat(label[None], spacing)}


def flat(pixels: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> MetaTensor:
    """Pixels (C, rows, columns) with their affine."""
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(pixels)), affine=affine)
