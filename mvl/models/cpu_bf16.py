"""Operators that PyTorch runs slowly in bf16 on a CPU, by faster ways, and one that it gets wrong;
every other type and device takes PyTorch's own.

Measured on one core of AMD EPYC Zen 4 (AVX512-BF16), PyTorch 2.13, forward and backward: attention
of 2 x 9 x 175 x 64 takes 15.6 ms fused and 3.9 ms here (8.7 ms fused in fp32); GELU of 8.4 million
values of a channels-last image takes 19.1 ms and 10.7 ms here; the weight gradient of a 7x7
depthwise convolution of 8 x 128 x 16 x 16 takes 6.3 ms and 2.6 ms here.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from mvl.models.deterministic_layers import on_gpu

SHORT = 512
"Tokens up to which attention holds all its scores: 2 bytes for each head, query and key."

LEAST_KERNEL = 5
"Edge of a depthwise kernel from which its weight gradient is taken by matrix products."

LARGEST_GRID = 64
"Edge of a grid up to which it is: the products pair all columns of a row, near or far."


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
    return _ShortAttention.apply(
        query.to(value.dtype), key.to(value.dtype), value, scale, is_causal
    )


class _ShortAttention(torch.autograd.Function):
    """The attention of heads (B, H, T, d) in their own type, and its gradient.

    As one operator it leaves out the copies and the bookkeeping of its parts' gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, is_causal: bool
    ) -> Tensor:
        scaled = query.flatten(0, 1) * scale
        key, flat = key.flatten(0, 1), value.flatten(0, 1)
        scores = torch.bmm(scaled, key.transpose(1, 2))
        if is_causal:
            later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        # PyTorch's softmax from bf16 to bf16 takes 1.5 times as long as this one and the cast.
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        ctx.save_for_backward(scaled, key, flat, weights)
        ctx.scale = scale
        return torch.bmm(weights, flat).unflatten(0, value.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, weights = ctx.saved_tensors
        heads, grad = grad.shape[:2], grad.flatten(0, 1)
        to_value = torch.bmm(weights.transpose(1, 2), grad)
        to_weights = torch.bmm(grad, value.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_query = torch.bmm(to_scores, key).mul_(ctx.scale)
        to_key = torch.bmm(to_scores.transpose(1, 2), scaled)
        return *(part.unflatten(0, heads) for part in (to_query, to_key, to_value)), None, None


class GELU(nn.GELU):
    """`nn.GELU` of images; in bf16 on a CPU a channels-last one is seen as rows of channels.

    oneDNN's GELU takes tensors that are contiguous in their own order of axes alone.
    """

    def forward(self, features: Tensor) -> Tensor:
        """The GELU of features (B, C, *S), in their own memory layout."""
        if not on_cpu_in_bf16(features):
            return super().forward(features)
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)


def by_channel(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "C H B W"]:
    """A copy with the channels first, in memory too; fast from channels-last."""
    batch, channels, height, width = features.shape
    flat = features.movedim(1, -1).reshape(-1, channels)
    return flat.t().contiguous().view(channels, batch, height, width).transpose(1, 2)


def depthwise_weight_gradient(
    features: Float[Tensor, "B C H W"], grad: Float[Tensor, "B C H W"], edge: int
) -> Float[Tensor, "C 1 k k"]:
    """The gradient of a depthwise kernel of odd `edge` whose convolution keeps the grid.

    For each row of the kernel and each channel, one matrix product sums, over cases and image rows,
    each column of the gradient times each column of the features; the kernel's columns lie on the
    diagonals of that matrix. oneDNN's own way takes two to four times as long for large kernels.
    """
    batch, channels, height, width = features.shape
    margin = edge // 2
    wide = width + 2 * margin
    rows = pad(by_channel(features), (margin, margin, 0, 0, margin, margin)).contiguous()
    columns = by_channel(grad).reshape(channels, height * batch, width).transpose(1, 2)
    shifted = (rows[:, i : i + height].view(channels, -1, wide) for i in range(edge))
    products = torch.stack([torch.bmm(columns, part) for part in shifted], dim=1)
    step = width * wide
    strides = (edge * step, step, 1, wide + 1)
    return products.as_strided((channels, edge, edge, width), strides).sum(3).unsqueeze(1)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution that keeps the grid, with the weight gradient above."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        channels, edge = weight.shape[0], weight.shape[2]
        return conv2d(features, weight, bias, padding=edge // 2, groups=channels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, weight = ctx.saved_tensors
        channels, edge = weight.shape[0], weight.shape[2]
        # To the features goes the same convolution of the gradient, its kernel turned by 180
        # degrees.
        to_features = conv2d(grad, weight.flip(2, 3), padding=edge // 2, groups=channels)
        to_weight = depthwise_weight_gradient(features, grad, edge)
        return to_features, to_weight, grad.sum((0, 2, 3))


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` that keeps the grid; in bf16 on a CPU a large kernel has its own
    gradient."""

    def forward(self, features: Tensor) -> Tensor:
        """The features (B, C, H, W), convolved channel by channel."""
        large = self.weight.shape[2] >= LEAST_KERNEL
        small = max(features.shape[2:]) <= LARGEST_GRID
        if self.bias is None or not (large and small and on_cpu_in_bf16(features)):
            return super().forward(features)
        kind = features.dtype
        return _Depthwise.apply(features, self.weight.to(kind), self.bias.to(kind))


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`; on a CPU a kernel that is longer than the grid's first axis computes in float32.

    There the bf16 weight gradient of PyTorch 2.13 (oneDNN, AVX512-BF16) is garbage: a kernel of 3
    on a grid of 2x4x2 gave what lay in memory before, and kernels of 7 broke the heap.
    """

    def forward(self, features: Tensor) -> Tensor:
        """The features (B, C, *S), convolved."""
        extent = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        if features.device.type != "cpu" or features.shape[2] >= extent:
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.to(self.weight.dtype))


def replace_convolutions(network: nn.Module) -> nn.Module:
    """Give every `nn.Conv3d` of a network, a library's too, the way above; returns the network."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Conv3d
    return network
