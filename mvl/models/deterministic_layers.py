"""Layers whose gradient is the same at every run on a GPU too; on a CPU they are PyTorch's own.

Why: on a GPU the gradients of PyTorch's linear upsampling and 3-D max pooling add by atomic
operations, in an order that no run repeats; asked to be deterministic, PyTorch refuses, or takes
nine times as long (upsampling by `index_put`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, cat, lerp, nn, stack, where

POOL: dict[int, type[nn.MaxPool2d] | type[nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
"Max pooling by the number of spatial axes."

GPUS = {"cuda"}
"Types of device whose tensors take the deterministic way."


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor lies where PyTorch's own gradients may differ from run to run."""
    return tensor.device.type in GPUS


def doubled(features: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S2"]:
    """The linear interpolation to twice the grid, axis after axis, by weighted neighbours.

    Each value gives two: itself with a quarter of the one before it, and of the one after it.
    Equal to `interpolate(scale_factor=2, mode="bilinear" or "trilinear")` up to rounding.
    """
    # Channels go last, where a channels-last tensor has them in memory: nothing is copied for it.
    features = features.movedim(1, -1)
    for axis in range(1, features.ndim - 1):
        length = features.shape[axis]
        first, last = features.narrow(axis, 0, 1), features.narrow(axis, length - 1, 1)
        before = cat((first, features.narrow(axis, 0, length - 1)), dim=axis)
        after = cat((features.narrow(axis, 1, length - 1), last), dim=axis)
        pair = (lerp(features, before, 0.25), lerp(features, after, 0.25))
        features = stack(pair, dim=axis + 1).flatten(axis, axis + 1)
    return features.movedim(-1, 1)


def halved(features: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S2"]:
    """The maximum of each cell of two values on edge; its gradient goes to the cell's first
    maximum.

    Equal to `max_pool(kernel_size=2)` bit for bit, NaN included, on grids of even size.
    """
    features = features.movedim(1, -1)
    # From the last axis to the first, so that of equal values the first in row-major order wins.
    for axis in reversed(range(1, features.ndim - 1)):
        one, other = features.unflatten(axis, (-1, 2)).unbind(axis + 1)
        features = where((one >= other) | one.isnan(), one, other)
    return features.movedim(-1, 1)


class Upsample(nn.Upsample):
    """`nn.Upsample` to twice the grid; on a GPU, linear modes have a deterministic gradient."""

    def __init__(self, mode: str) -> None:
        super().__init__(scale_factor=2, mode=mode)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, *S) at twice the grid."""
        if on_gpu(features) and self.mode != "nearest":
            return doubled(features)
        return super().forward(features)


class MaxPool(nn.Module):
    """Max pooling to half the grid; on a GPU its gradient is deterministic."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.pool = POOL[dims](2)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, *S) at half the grid."""
        return halved(features) if on_gpu(features) else self.pool(features)


def replace_pools(network: nn.Module, dims: int) -> None:
    """Put `MaxPool` in place of each max pooling by two in a network of another library."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, POOL[dims]) and child.kernel_size == child.stride == 2:
                setattr(module, name, MaxPool(dims))
