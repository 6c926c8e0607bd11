"""The ways that bf16 takes on a CPU are PyTorch's up to rounding, and fp32 never takes them; norms sum in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mvl.models import cpu_bf16, layer_attention, vit


def heads(count: int, length: int, seed: int) -> Tensor:
    """Vectors of width 16 for some heads, in values that bf16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, length, 16, generator=generator).bfloat16()


@pytest.mark.parametrize("causal", [False, True])
def test_short_attention_and_its_gradient_are_those_of_the_fused_kernel(causal: bool) -> None:
    inputs = [heads(3, 33, seed) for seed in range(3)]
    ours = [x.clone().requires_grad_() for x in inputs]
    exact = [x.float().requires_grad_() for x in inputs]
    found = cpu_bf16.short_attention(*ours, is_causal=causal)
    wanted = scaled_dot_product_attention(*exact, is_causal=causal)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, rtol=0.02, atol=0.02)
    found.float().square().sum().backward()
    wanted.square().sum().backward()
    for x, y in zip(ours, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad.float(), y.grad, rtol=0.05, atol=0.05)


def test_the_scale_is_the_callers() -> None:
    query, key, value = (heads(1, 9, seed) for seed in range(3))
    found = cpu_bf16.short_attention(query, key, value, scale=1.0)
    wanted = scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=1.0)
    assert torch.allclose(found.float(), wanted, rtol=0.05, atol=0.05)


def test_only_short_bf16_sequences_on_a_cpu_go_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def spy(query: Tensor, key: Tensor, value: Tensor, *settings: object) -> Tensor:
        taken.append((query.shape[2], key.shape[1]))
        return query

    monkeypatch.setattr(vit, "short_attention", spy)
    monkeypatch.setattr(layer_attention, "short_attention", spy)
    module = nn.Module()
    module.num_key_value_groups = 3
    for length, dtype in ((8, torch.bfloat16), (8, torch.float32), (cpu_bf16.SHORT + 1, torch.bfloat16)):
        query, shared = heads(3, length, 0).to(dtype), heads(1, length, 1).to(dtype)
        vit.attention(query, query, query)
        layer_attention.grouped_attention(module, query, shared, shared, None)
    assert taken == [(8, 3), (8, 3)]
    # Rotary positions promote query and key to fp32, which decides nothing.
    query, shared = heads(3, 8, 0), heads(1, 8, 1)
    layer_attention.grouped_attention(module, query.float(), shared.float(), shared, None)
    assert taken[2:] == [(8, 3)]


def test_gelu_of_an_image_keeps_its_layout_and_in_fp32_its_bits() -> None:
    image = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    image = image.contiguous(memory_format=torch.channels_last)
    ours, plain = cpu_bf16.GELU(), nn.GELU()
    assert torch.equal(ours(image), plain(image))
    half = ours(image.bfloat16())
    assert half.dtype == torch.bfloat16 and half.is_contiguous(memory_format=torch.channels_last)
    # bf16 has 8 bits: half a unit in the last place is 2 ** -9 of the value.
    assert torch.allclose(half.float(), plain(image.bfloat16().float()), rtol=2**-8, atol=1e-4)


def test_gelu_goes_to_onednn_as_contiguous_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    contiguous = []
    real = nn.GELU.forward
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: contiguous.append(x.is_contiguous()) or real(self, x))
    image = torch.randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    cpu_bf16.GELU()(image.bfloat16())
    assert contiguous == [True]


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4096, affine=False), nn.LayerNorm(4096), LlamaRMSNorm(4096)], ids=lambda norm: type(norm).__name__)
def test_a_norm_sums_in_float32_under_autocast(norm: nn.Module) -> None:
    """In bf16 a sum of 4,096 values near 10 stands still at 4,096: the spread of 0.1 around it would be lost."""
    values = 10 + 0.1 * torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    values = values.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(values)
    assert torch.allclose(found.float(), norm(values.float()), rtol=2**-7, atol=0.02)
    assert {tensor.dtype for tensor in norm.state_dict().values() if tensor.is_floating_point()} <= {torch.float32}
