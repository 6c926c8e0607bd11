"""Second, plain implementations of the networks' layers, written from the papers' equations with
sums, products and elementary functions; the layers of `torch.nn` are not used.

Each takes a network's own parameters, so that values and gradients can be compared, in double
precision and with every trained weight moved away from where it starts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mvl.core.config import Config, build
from mvl.models.build import build_system

Parameters = Iterator[Tensor]
"Parameters in the order in which the equations name them: weight, then bias; layer by layer."

EPSILON = 1e-5
"What LayerNorm and BatchNorm add to a variance."


def parameters_of(module: nn.Module) -> Parameters:
    """The parameters of a module, in order."""
    return iter(list(module.parameters()))


def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution's share below x."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b, over the last axis."""
    product = torch.einsum("...i,oi->...o", x, weight)
    return product if bias is None else product + bias


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Each token less its mean, over its standard deviation."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + EPSILON).sqrt() * gain + bias


def rms_norm(x: Tensor, gain: Tensor | float, epsilon: float) -> Tensor:
    """Each token over its root mean square."""
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * gain


def softmax(scores: Tensor) -> Tensor:
    """Exponentials over their sum."""
    powers = (scores - scores.max(-1, keepdim=True).values.detach()).exp()
    return powers / powers.sum(-1, keepdim=True)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * d) as (B, heads, T, d)."""
    return torch.stack(x.chunk(heads, dim=-1), dim=1)


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of (B, heads, T, d), heads side by side: (B, T, heads * d)."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    if causal:
        later = torch.ones_like(scores[0, 0]).triu(1) > 0
        scores = scores.masked_fill(later, -math.inf)
    mixed = torch.einsum("bhqk,bhkd->bhqd", softmax(scores), value)
    return torch.cat(mixed.unbind(1), dim=-1)


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary positions of (B, heads, T, d): pair (i, i + d/2) of token t turns t / base^(2i/d)."""
    half = x.shape[-1] // 2
    rate = base ** (-torch.arange(half, dtype=x.dtype) * 2 / x.shape[-1])
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * rate
    first, second = x[..., :half], x[..., half:]
    turned = (
        first * angle.cos() - second * angle.sin(),
        second * angle.cos() + first * angle.sin(),
    )
    return torch.cat(turned, dim=-1)


def llama_layer(
    x: Tensor,
    layer: nn.Module,
    heads: int,
    groups: int,
    epsilon: float,
    causal: bool = False,
    base: float | None = None,
) -> Tensor:
    """One layer of Llama: x + attention(norm x), then x + down(silu(gate norm x) * up norm x).

    Source: arXiv 2302.13971 (RMSNorm first, SwiGLU), arXiv 2305.13245 (grouped heads).
    """
    w = dict(layer.named_parameters())
    normed = rms_norm(x, w["input_layernorm.weight"], epsilon)
    query = heads_of(linear(normed, w["self_attn.q_proj.weight"]), heads)
    key, value = (
        heads_of(linear(normed, w[f"self_attn.{name}_proj.weight"]), groups) for name in "kv"
    )
    if base is not None:
        query, key = rotate(query, base), rotate(key, base)
    each = [index * groups // heads for index in range(heads)]
    x = x + linear(
        attend(query, key[:, each], value[:, each], causal), w["self_attn.o_proj.weight"]
    )
    normed = rms_norm(x, w["post_attention_layernorm.weight"], epsilon)
    gate = linear(normed, w["mlp.gate_proj.weight"])
    hidden = gate / (1 + (-gate).exp()) * linear(normed, w["mlp.up_proj.weight"])
    return x + linear(hidden, w["mlp.down_proj.weight"])


def places_of_patches(img_size: Sequence[int], size: Sequence[int]) -> list[tuple[slice, ...]]:
    """Where each patch lies in an image, the last axis running fastest."""
    starts = [range(0, length, edge) for length, edge in zip(img_size, size, strict=True)]
    corners = itertools.product(*starts)
    return [
        tuple(slice(c, c + edge) for c, edge in zip(corner, size, strict=True))
        for corner in corners
    ]


def patches(image: Tensor, size: Sequence[int]) -> Tensor:
    """Tokens (B, T, C * voxels) of an image (B, C, *S), patch by patch."""
    places = places_of_patches(image.shape[2:], size)
    return torch.stack([image[(..., *place)].flatten(1) for place in places], dim=1)


def image_of(tokens: Tensor, img_size: Sequence[int], size: Sequence[int]) -> Tensor:
    """The image (B, K, *S) whose patches are the tokens (B, T, K * voxels)."""
    channels = tokens.shape[2] // math.prod(size)
    image = tokens.new_zeros(tokens.shape[0], channels, *img_size)
    for token, place in zip(tokens.unbind(1), places_of_patches(img_size, size), strict=True):
        image[(..., *place)] = token.reshape(-1, channels, *size)
    return image


def convolve(x: Tensor, weight: Tensor, bias: Tensor, groups: int = 1) -> Tensor:
    """Convolution of (B, C, *S) that keeps the grid; outside there are zeros."""
    edges, spatial = weight.shape[2:], x.shape[2:]
    padding = [n for edge in reversed(edges) for n in (edge // 2, edge // 2)]
    padded = nn.functional.pad(x, padding)
    out = []
    for own, kernel in zip(padded.chunk(groups, dim=1), weight.chunk(groups, dim=0), strict=True):
        total: Tensor | float = 0.0
        for offset in itertools.product(*map(range, edges)):
            seen = own[(..., *(slice(o, o + s) for o, s in zip(offset, spatial, strict=True)))]
            total = total + torch.einsum("bi...,oi->bo...", seen, kernel[(..., *offset)])
        out.append(total)
    return torch.cat(out, dim=1) + bias.reshape(1, -1, *[1] * len(spatial))


def batch_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Each channel less its mean over cases and places, over its standard deviation."""
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / (variance + EPSILON).sqrt() * gain.reshape(shape) + bias.reshape(shape)


def relu(x: Tensor) -> Tensor:
    """x where it is above 0, else 0."""
    return x * (x > 0)


def halve(x: Tensor) -> Tensor:
    """The largest of each 2 x 2 (x 2) places."""
    for axis in range(2, x.ndim):
        even = x.index_select(axis, torch.arange(0, x.shape[axis], 2))
        odd = x.index_select(axis, torch.arange(1, x.shape[axis], 2))
        x = torch.where(even >= odd, even, odd)
    return x


def double(x: Tensor, smooth: bool) -> Tensor:
    """Twice the grid: each place repeated, or (`smooth`) 3/4 of it and 1/4 of the one beside it."""
    for axis in range(2, x.ndim):
        first, second = x, x
        if smooth:
            index, last = torch.arange(x.shape[axis]), x.shape[axis] - 1
            before = x.index_select(axis, (index - 1).clamp(min=0))
            after = x.index_select(axis, (index + 1).clamp(max=last))
            first, second = (3 * x + before) / 4, (3 * x + after) / 4
        x = torch.stack((first, second), dim=axis + 1).flatten(axis, axis + 1)
    return x


def conv_norm_relu(x: Tensor, w: Parameters) -> Tensor:
    """ReLU(BN(convolution))."""
    return relu(batch_norm(convolve(x, next(w), next(w)), next(w), next(w)))


def conv_gelu_norm(x: Tensor, w: Parameters, groups: int = 1) -> Tensor:
    """BN(GELU(convolution))."""
    return batch_norm(gelu(convolve(x, next(w), next(w), groups)), next(w), next(w))


def cmunext_stage(x: Tensor, w: Parameters, depth: int) -> Tensor:
    """f1 = BN(GELU(depthwise f)) + f; f2 = BN(GELU(pointwise f1)); f3 = BN(GELU(pointwise f2)).

    After `depth` of them comes a 3x3 convolution to the next width.
    Source: arXiv 2308.01239, equation 1.
    """
    for _ in range(depth):
        x = conv_gelu_norm(x, w, groups=x.shape[1]) + x
        x = conv_gelu_norm(conv_gelu_norm(x, w), w)
    return conv_norm_relu(x, w)


def skip_fusion(skip: Tensor, x: Tensor, w: Parameters) -> Tensor:
    """Skip and features, each convolved alone (two groups), then pointwise to 4 widths and back.

    Source: arXiv 2308.01239, skip-fusion block.
    """
    both = conv_gelu_norm(torch.cat((skip, x), dim=1), w, groups=2)
    return conv_gelu_norm(conv_gelu_norm(both, w), w)


TINY_HEADS, TINY_GROUPS, TINY_EPSILON, TINY_BASE = 4, 2, 1e-5, 500.0
"What `tiny_llama` (conftest.py) is made with."
DOUBLE, SINGLE = 1e-11, 2e-6
"""Largest difference, as a share of the largest value. transformers' RMSNorm computes in single
precision whatever it is given."""
SMALLEST = 1e-3
"""A largest gradient below this counts as this: a bias before a norm has no gradient but
rounding."""


def moved(network: nn.Module) -> nn.Module:
    """The network in double precision, what it trains moved: a start at 0 or 1 hides nothing."""
    generator = torch.Generator().manual_seed(1)
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
                )
    return network


def picture(*shape: int) -> Tensor:
    """Seeded noise in double precision, whose gradient is compared too."""
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(2), dtype=torch.double, requires_grad=True
    )


def assert_equal(
    network: nn.Module,
    reference: Callable[[Tensor], Tensor],
    image: Tensor,
    rounding: float = DOUBLE,
) -> None:
    """Both give the same values, and the same gradients of a random weighing of them."""
    trained = [p for p in network.parameters() if p.requires_grad]
    names = ["input", *(n for n, p in network.named_parameters() if p.requires_grad)]
    ours, theirs = network(image), reference(image)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=rounding * float(theirs.abs().max()))
    weighing = torch.randn(
        ours.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double
    )
    pair = [
        torch.autograd.grad((out * weighing).sum(), [image, *trained]) for out in (ours, theirs)
    ]
    for name, mine, other in zip(names, *pair, strict=True):
        scale = float(other.abs().max())
        assert float((mine - other).abs().max()) <= 10 * rounding * max(scale, SMALLEST), name


def system(
    model: dict[str, object], size: tuple[int, ...], channels: int = 2, classes: int = 3
) -> nn.Module:
    """A network of the package, moved."""
    config = build(Config, {"data": {"img_size": list(size)}, "model": model}, "test")
    return moved(build_system(config, channels, classes))


def language_block(block: nn.Module, x: Tensor, settings: dict[str, object]) -> Tensor:
    """The tiny checkpoint's layer, its final norm (gain 1, loaded, or none), a residual."""
    base = TINY_BASE if settings.get("rotary") else None
    causal = bool(settings.get("causal_mask"))
    hidden = llama_layer(x, block.layer, TINY_HEADS, TINY_GROUPS, TINY_EPSILON, causal, base)
    norm = settings.get("final_norm", "unit")
    if norm != "none":
        hidden = rms_norm(hidden, 1.0 if norm == "unit" else block.norm.weight, TINY_EPSILON)
    return hidden + x if settings.get("residual", True) else hidden
