"""The two parts that version 1 of MedVisionLlama names: hybrid attention, and fusion of features at
several scales.

Source: arXiv 2410.02458 v1, abstract: "a Hybrid Attention Mechanism that combines global and local
feature learning" and "a Multi-Scale Fusion Block for aggregating features across different scales".
No equation and no code of them is public: what stands here is the plainest reading.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mvl.core.shapes import Tokens

SCALES = (1, 2, 4)
"Edge of a cell in tokens, from the shallowest feature that is fused to the deepest."


class LocalAttention(nn.Module):
    """Convolutional attention over the token grid: tokens (B, T, D) -> (B, T, D), each from the
    tokens next to it (3 per axis).

    around = depthwise convolution of the tokens; weights = sigmoid(linear(around)), one per token
    and channel; result = linear(weights * around).
    """

    def __init__(self, hidden_size: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(grid)]
        self.around = convolution(hidden_size, hidden_size, 3, padding=1, groups=hidden_size)
        self.weigh = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: Tokens) -> Tokens:
        """What each token's neighbourhood says, weighted by itself."""
        batch, length, width = tokens.shape
        around = self.around(tokens.transpose(1, 2).reshape(batch, width, *self.grid))
        around = around.reshape(batch, width, length).transpose(1, 2)
        return self.out(torch.sigmoid(self.weigh(around)) * around)


class HybridAttention(nn.Module):
    """A ViT block's global self-attention mixed with local attention on the same normalised tokens:
    g * global + (1 - g) * local.

    g = sigmoid of one learned number per channel and starts at 1/2: neither side is preferred.
    """

    def __init__(self, hidden_size: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.local = LocalAttention(hidden_size, grid)
        self.mix = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, tokens: Tokens, attended: Tokens) -> Tokens:
        """`attended` (global) and the local attention of `tokens`, mixed."""
        local = self.local(tokens)
        # Under autocast both sides are bf16 and `lerp` asks the same of its weight.
        return torch.lerp(local, attended, torch.sigmoid(self.mix).to(local.dtype))


def pooling_matrix(length: int, scale: int) -> Float[Tensor, "cells length"]:
    """Means of `scale` neighbours along one axis; the last cell may hold fewer."""
    cells = torch.arange(length) // scale
    return functional.normalize(
        functional.one_hot(cells, math.ceil(length / scale)).T.float(), p=1, dim=1
    )


def along_axes(
    features: Float[Tensor, "B *grid D"], matrices: list[Tensor]
) -> Float[Tensor, "B *cells D"]:
    """Each matrix (m, n) applied to its axis (n) of the grid. Matrix products have a deterministic
    gradient on every device, pooling has not."""
    for axis, matrix in enumerate(matrices, 1):
        # Under autocast a product is bf16, and `tensordot` asks the same of the next matrix.
        features = torch.tensordot(features, matrix.to(features.dtype), dims=([axis], [1])).movedim(
            -1, axis
        )
    return features


class MultiScaleFusion(nn.Module):
    """Features from several depths, each at its own scale, brought to the token grid and mixed:
    tokens (B, T, D) -> (B, T, D).

    The deeper a feature the coarser its cells (1, 2, 4 tokens on edge), as in a pyramid: mean over
    each cell, linear map and GELU there, back to the token grid by repetition. The results are
    concatenated, mixed by one linear map that starts at zero, and added to the last feature.
    """

    def __init__(self, hidden_size: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        self.project = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in SCALES)
        self.mix = nn.Linear(len(SCALES) * hidden_size, hidden_size)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        # Made once, on the device: a CUDA graph cannot copy from the CPU at each step.
        for scale in SCALES[1:]:
            for axis, length in enumerate(grid):
                matrix = pooling_matrix(length, scale)
                self.register_buffer(f"pool{scale}_{axis}", matrix, persistent=False)

    def at_scale(self, tokens: Tokens, scale: int, project: nn.Module) -> Tokens:
        """One feature, seen in cells of `scale` tokens on edge."""
        if scale == 1:
            return functional.gelu(project(tokens))
        pools = [
            self.get_buffer(f"pool{scale}_{axis}").to(tokens.dtype)
            for axis in range(len(self.grid))
        ]
        cells = along_axes(tokens.reshape(tokens.shape[0], *self.grid, -1), pools)
        cells = functional.gelu(project(cells))
        return along_axes(cells, [(pool.T > 0).to(cells) for pool in pools]).reshape(tokens.shape)

    def forward(self, features: list[Tensor]) -> Tokens:
        """The last of `features` (shallow to deep, one per scale), with what all of them say at
        their scales added."""
        seen = [
            self.at_scale(f, scale, project)
            for f, scale, project in zip(features, SCALES, self.project, strict=True)
        ]
        return features[-1] + self.mix(torch.cat(seen, dim=-1))
