"""Attention inside a language layer where PyTorch's fused kernels have no word for it.

Soft-capped scores and sliding windows go block by block. Grouped heads in fp32 on a GPU have their
keys and values repeated, and so have short sequences in bf16 on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from mvl.models.cpu_bf16 import is_short, short_attention
from mvl.models.deterministic_layers import on_gpu

NAME = "query_blocks"
"Under which transformers' layers find `block_attention`."

GROUPED = "grouped_heads"
"Under which they find `grouped_attention`."

QUERY_BLOCK = 512
"Queries per block: scores of T tokens take 512 x T values, never T x T."


def choose_attention(config: PreTrainedConfig, causal_mask: bool) -> str:
    """`sdpa`, or ours where the config caps scores, masks all but a window of earlier tokens, or
    shares keys among heads."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    windowed = causal_mask and getattr(config, "sliding_window", None) is not None
    if capped or windowed:
        return NAME
    heads = config.num_attention_heads
    return "sdpa" if getattr(config, "num_key_value_heads", heads) in (heads, None) else GROUPED


def needs_repeat(query: Tensor) -> bool:
    """Whether grouped heads must be repeated for a fused kernel to take them.

    On a GPU the flash and cuDNN kernels refuse fp32, and the memory-efficient one refuses grouped
    heads: what is left would hold the scores of all tokens with all others, 8.6 GB a case at 128
    voxels on edge and 32 heads.
    """
    return on_gpu(query) and query.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")


def grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B G T d"],
    value: Float[Tensor, "B G T d"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "B T H d"], None]:
    """transformers' call of PyTorch's fused attention, in which a group of heads has one key and
    one value.

    Where `is_causal` is not said, the layer's own default holds, as in transformers.
    """
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    short = is_short(query, value)
    if attention_mask is not None or not (short or needs_repeat(query)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if short:
        return short_attention(query, key, value, scaling, is_causal).transpose(1, 2), None
    return (
        scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=is_causal
        ).transpose(1, 2),
        None,
    )


def block_attention(
    module: nn.Module,
    query: Float[Tensor, "B H T d"],
    key: Float[Tensor, "B G T d"],
    value: Float[Tensor, "B G T d"],
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool = False,
    **settings: Any,
) -> tuple[Float[Tensor, "B T H d"], None]:
    """Attention with capped scores or a causal window; scores are computed again in the backward
    pass, not kept.

    Without the causal mask there is no window either: every token sees every token.
    """
    length = query.shape[2]
    window = (
        sliding_window
        if is_causal and sliding_window is not None and sliding_window < length
        else None
    )
    if softcap is None and window is None:
        return grouped_attention(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    blocks = []
    for begin in range(0, length, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, length)
        first = max(0, begin - window + 1) if window else 0
        last = end if is_causal else length
        seen = key[:, :, first:last], value[:, :, first:last]
        blocks.append(
            checkpoint(
                _attend,
                query[:, :, begin:end],
                *seen,
                scaling,
                softcap,
                begin - first if is_causal else None,
                window,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(blocks, dim=2).transpose(1, 2), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    offset: int | None,
    window: int | None,
) -> Tensor:
    """One block; query i stands at key `offset` + i, and sees it and the `window` - 1 before it
    (None: all before; offset None: all)."""
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if offset is not None:
        back = (
            torch.arange(query.shape[2], device=query.device)[:, None]
            + offset
            - torch.arange(key.shape[2], device=query.device)
        )
        hidden = back < 0 if window is None else (back < 0) | (back >= window)
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value


AttentionInterface.register(NAME, block_attention)
AttentionInterface.register(GROUPED, grouped_attention)
