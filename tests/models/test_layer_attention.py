"""Attention block by block is the plain attention of transformers, and holds no square of the
tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, Gemma2Config, LlamaConfig, MistralConfig

from mvl.models import deterministic_layers, layer_attention
from mvl.models.layer_attention import block_attention, choose_attention, grouped_attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("softcap", "window"), [(None, None), (3.0, None), (None, 4), (3.0, 4), (None, 99)]
)
def test_blocks_equal_the_whole(
    causal: bool, softcap: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_attention, "QUERY_BLOCK", 5)
    query, key, value = (
        torch.randn(2, 4, 13, 8),
        torch.randn(2, 2, 13, 8),
        torch.randn(2, 2, 13, 8, requires_grad=True),
    )
    module = nn.Module()
    module.num_key_value_groups = 2
    ours, _ = block_attention(module, query, key, value, None, 0.3, softcap, window, causal)
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    back = torch.arange(13)[:, None] - torch.arange(13)
    seen = (back >= 0) & (back < (window or 13)) if causal else torch.ones(13, 13, dtype=torch.bool)
    whole = (
        scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    ).transpose(1, 2)
    assert torch.allclose(ours, whole, atol=1e-5)
    weight = torch.randn_like(whole)
    gradients = [torch.autograd.grad((out * weight).sum(), value)[0] for out in (ours, whole)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_what_is_kept_for_the_backward_pass_grows_with_the_tokens_alone() -> None:
    def kept(length: int) -> int:
        sizes: list[int] = []
        query, key, value = (torch.randn(1, 1, length, 4, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            block_attention(nn.Module(), query, key, value, None, 1.0, 5.0)
        return max(sizes, default=0)

    assert kept(2048) <= 2048 * 4


def test_the_fused_kernel_is_kept_where_it_will_do() -> None:
    assert choose_attention(LlamaConfig(), True) == choose_attention(BertConfig(), False) == "sdpa"
    assert (
        choose_attention(LlamaConfig(num_attention_heads=8, num_key_value_heads=2), True)
        == layer_attention.GROUPED
    )
    assert choose_attention(MistralConfig(sliding_window=8), False) == layer_attention.GROUPED
    assert (
        choose_attention(MistralConfig(sliding_window=8), True)
        == choose_attention(Gemma2Config(), False)
        == layer_attention.NAME
    )


@pytest.mark.parametrize("causal", [True, False])
def test_keys_and_values_are_repeated_in_fp32_on_a_gpu_alone(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watched(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **settings: object
    ) -> torch.Tensor:
        seen.append((key.shape[1], bool(settings.get("enable_gqa"))))
        return kernel(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(layer_attention, "scaled_dot_product_attention", watched)
    module = nn.Module()
    module.num_key_value_groups = 2
    query, key, value = torch.randn(2, 4, 13, 8), torch.randn(2, 2, 13, 8), torch.randn(2, 2, 13, 8)

    def attend(dtype):
        return grouped_attention(
            module, *(x.to(dtype) for x in (query, key, value)), None, 0.3, causal
        )[0]

    on_cpu = attend(torch.float32)
    monkeypatch.setattr(deterministic_layers, "GPUS", {"cpu"})
    assert torch.allclose(attend(torch.float32), on_cpu, atol=1e-6)
    attend(torch.bfloat16)
    assert seen == [(2, True), (4, False), (2, True)]
