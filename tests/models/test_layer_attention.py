"""Attention block by block is the plain attention of transformers, and holds no square of the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, LlamaConfig, MistralConfig

from mvl.models import layer_attention
from mvl.models.layer_attention import block_attention, choose_attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (3.0, None), (None, 4), (3.0, 4), (None, 99)])
def test_blocks_equal_the_whole(causal: bool, softcap: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_attention, "QUERY_BLOCK", 5)
    query, key, value = torch.randn(2, 4, 13, 8), torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 8, requires_grad=True)
    module = nn.Module()
    module.num_key_value_groups = 2
    ours, _ = block_attention(module, query, key, value, None, 0.3, softcap, window, causal)
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    back = torch.arange(13)[:, None] - torch.arange(13)
    seen = (back >= 0) & (back < (window or 13)) if causal else torch.ones(13, 13, dtype=torch.bool)
    whole = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    assert torch.allclose(ours, whole, atol=1e-5)
    weight = torch.randn_like(whole)
    gradients = [torch.autograd.grad((out * weight).sum(), value)[0] for out in (ours, whole)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_what_is_kept_for_the_backward_pass_grows_with_the_tokens_alone() -> None:
    def kept(length: int) -> int:
        sizes: list[int] = []
        query, key, value = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            block_attention(nn.Module(), query, key, value, None, 1.0, 5.0)
        return max(sizes, default=0)

    assert kept(2048) <= 2048 * 4


def test_the_fused_kernel_is_kept_where_it_will_do() -> None:
    assert choose_attention(LlamaConfig(), True) == "sdpa"
    assert choose_attention(MistralConfig(sliding_window=8), False) == "sdpa"
    assert choose_attention(MistralConfig(sliding_window=8), True) == choose_attention(Gemma2Config(), False) == layer_attention.NAME
