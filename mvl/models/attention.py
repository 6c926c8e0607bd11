"""Softmax attention by the fastest exact kernel, and what a long sequence keeps for its backward
pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mvl.core.shapes import Tokens
from mvl.models.cpu_bf16 import is_short, short_attention
from mvl.models.deterministic_layers import on_gpu
from mvl.models.tiled_attention import available, tiled_attention

LONG = 2048
"""Tokens from which a block may compute all but attention again in the backward pass, and attention
on a CPU goes tile by tile."""

TILED = (torch.float32, torch.bfloat16)
"Types in which attention of a long sequence on a CPU goes tile by tile."

KEEP_SHARE = 1 / 64
"""Share of a GPU's free memory up to which a long block keeps what its backward pass needs; the
deepest network has 20 blocks."""

KEPT = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.mvl.tiled_attention.default,
]
"""Attention on every device: the only results of a long block that its backward pass does not
compute again."""


def attention(
    query: Float[Tensor, "B H T d"], key: Float[Tensor, "B H S d"], value: Float[Tensor, "B H S d"]
) -> Float[Tensor, "B H T d"]:
    """Softmax attention is computed by PyTorch's fused kernel, or by ours on a CPU for long
    sequences and for short ones in bf16; the results agree up to rounding."""
    long = query.shape[2] >= LONG
    if query.device.type == "cpu" and query.dtype in TILED and long and available():
        # In bf16 too the tiles are float32: PyTorch's kernel for bf16 takes 1.2 times as long,
        # casts counted.
        return tiled_attention(query.float(), key.float(), value.float())[0].to(value.dtype)
    if is_short(query, value):
        return short_attention(query, key, value)
    return functional.scaled_dot_product_attention(query, key, value)


def must_recompute(tokens: Tokens, values_per_token: int) -> bool:
    """Whether a block computes all but attention again in the backward pass.

    It does so for long sequences, and on a GPU only where memory is short. `values_per_token`:
    numbers that the block would keep of a token, at most 4 bytes each.
    """
    if tokens.shape[1] < LONG or tokens.is_meta:  # on the meta device nothing is held
        return False
    if not on_gpu(tokens):
        return True
    return not fits_gpu(4 * tokens.shape[0] * tokens.shape[1] * values_per_token)


@torch.compiler.assume_constant_result
@functools.cache
def fits_gpu(kept_bytes: int) -> bool:
    """Whether a block may keep so many bytes on the GPU in use; asked once for each size, so that
    every step does the same."""
    return torch.cuda.is_available() and kept_bytes <= KEEP_SHARE * torch.cuda.mem_get_info()[0]


def recomputed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The function's result, of which only attention is kept; the backward pass computes the rest
    again."""
    contexts = functools.partial(create_selective_checkpoint_contexts, KEPT)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
