"""Exact softmax attention of long sequences on a CPU, tile by tile, with oneDNN's matrix products.

Source: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2; forward tiles span all keys, so
that no running maximum is needed. Why not PyTorch's fused kernel: on a CPU it multiplies by MKL,
which reaches 100 GFLOP/s on one core of AMD Zen 5 where oneDNN, in PyTorch too, reaches 217 (1024 x
1024, fp32, PyTorch 2.13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

QUERIES = 128
"Queries per tile of the forward pass: their scores with 4,096 keys fill 2 MB."

TILE = (512, 1024)
"Queries and keys per tile of the backward pass."


def product(
    rows: Float[Tensor, "m d"],
    columns: Float[Tensor, "n d"],
    bias: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "m n"]:
    """`rows @ columns.T + bias` by oneDNN; `columns` must be contiguous, or it takes a thousand
    times as long."""
    return torch.ops.mkldnn._linear_pointwise(rows, columns, bias, "none", [], "")


def available() -> bool:
    """Whether this build of PyTorch has the product: the operator is internal to PyTorch, and not
    on every platform."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def transposed(tensor: Float[Tensor, "T d"], size: int) -> list[Float[Tensor, "d t"]]:
    """Tiles of `size` rows, transposed, each contiguous."""
    return [tile.t().contiguous() for tile in tensor.split(size)]


def attend(
    query: Float[Tensor, "T d"],
    key: Float[Tensor, "S d"],
    value: Float[Tensor, "S d"],
    out: Float[Tensor, "T d"],
    lse: Float[Tensor, " T"],
) -> None:
    """One head: fills `out`, and `lse` with the log2 of each query's sum of `exp2(scores)`. `query`
    is scaled, for scores in log2 units."""
    value = value.t().contiguous()
    for q, attended, log_total in zip(*(x.split(QUERIES) for x in (query, out, lse))):
        scores = product(q, key)
        peak = scores.amax(1, keepdim=True)
        total = scores.sub_(peak).exp2_().sum(1, keepdim=True)
        torch.div(product(scores, value), total, out=attended)
        log_total.copy_((peak + total.log2()).squeeze(1))


def attend_backward(
    query: Float[Tensor, "T d"],
    key: Float[Tensor, "S d"],
    value: Float[Tensor, "S d"],
    grad: Float[Tensor, "T d"],
    lse: Float[Tensor, " T"],
    delta: Float[Tensor, " T"],
    *grads: Tensor,
) -> None:
    """One head: adds the gradients of query, key and value to `grads`, the first two still to be
    scaled. `delta`: the sum of `grad * out` over d."""
    queries, keys = TILE
    tiles = [
        *zip(
            *(x.split(queries) for x in (query, grad, -lse, -delta, grads[0])),
            transposed(query, queries),
            transposed(grad, queries),
        )
    ]
    for k, v, dk, dv in zip(*(x.split(keys) for x in (key, value, *grads[1:]))):
        for q, g, shift, drop, dq, q_t, g_t in tiles:
            weights = product(k, q, shift).exp2_()
            dv += product(weights, g_t)
            scores = product(v, g, drop).mul_(weights)
            dk += product(scores, q_t)
            dq.addmm_(scores.t(), k)


def heads(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors (B, H, ...), head after head."""
    return zip(*(x.flatten(0, 1) for x in tensors))


@torch.library.custom_op(
    "mvl::tiled_attention",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)",
)
def tiled_attention(
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B H S d"],
    value: Float[Tensor, "B H S d"],
) -> tuple[Float[Tensor, "B H T d"], Float[Tensor, "B H T"]]:
    """Softmax attention, fp32, and the log2 of each query's sum of `exp2(scores)`, which the
    backward pass needs."""
    query, key, value = (x.contiguous() for x in (query, key, value))
    out, lse = torch.empty_like(query), query.new_empty(query.shape[:3])
    scaled = query * (math.log2(math.e) / math.sqrt(query.shape[3]))
    for head in heads(scaled, key, value, out, lse):
        attend(*head)
    return out, lse


@torch.library.custom_op(
    "mvl::tiled_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse) -> (Tensor,"
        " Tensor, Tensor)"
    ),
)
def tiled_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    delta = (grad * out).sum(3)
    grad, query, key, value = (x.contiguous() for x in (grad, query, key, value))
    scale = 1 / math.sqrt(query.shape[3])
    scaled = query * (scale * math.log2(math.e))
    grad_query = query.new_zeros(query.mT.shape).mT  # transposed, where `addmm_` is faster
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for head in heads(scaled, key, value, grad, lse, delta, grad_query, grad_key, grad_value):
        attend_backward(*head)
    return grad_query.contiguous().mul_(scale), grad_key.mul_(math.log(2)), grad_value


def keep(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the backward pass needs."""
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


tiled_attention.register_autograd(
    lambda ctx, grad, _: tiled_attention_backward(grad, *ctx.saved_tensors), setup_context=keep
)
tiled_attention.register_fake(
    lambda query, key, value: (query.new_empty(query.shape), query.new_empty(query.shape[:3]))
)
tiled_attention_backward.register_fake(
    lambda grad, query, key, value, out, lse: tuple(
        x.new_empty(x.shape) for x in (query, key, value)
    )
)
