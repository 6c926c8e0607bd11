"""The ways that bf16 takes on a CPU are PyTorch's up to rounding, and fp32 never takes them; norms
sum in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mvl.models import attention, cpu_bf16, layer_attention


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


def test_attention_of_a_short_bf16_sequence_is_that_of_fp32() -> None:
    query, key, value = (heads(3, 8, seed).to(torch.bfloat16) for seed in range(3))
    wanted = scaled_dot_product_attention(query.float(), key.float(), value.float())
    found = attention.attention(query, key, value)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, rtol=0.05, atol=0.05)


def test_only_short_bf16_sequences_on_a_cpu_go_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def spy(query: Tensor, key: Tensor, value: Tensor, *settings: object) -> Tensor:
        taken.append((query.shape[2], key.shape[1]))
        return query

    monkeypatch.setattr(attention, "short_attention", spy)
    monkeypatch.setattr(layer_attention, "short_attention", spy)
    module = nn.Module()
    module.num_key_value_groups = 3
    for length, dtype in (
        (8, torch.bfloat16),
        (8, torch.float32),
        (cpu_bf16.SHORT + 1, torch.bfloat16),
    ):
        query, shared = heads(3, length, 0).to(dtype), heads(1, length, 1).to(dtype)
        attention.attention(query, query, query)
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
    monkeypatch.setattr(
        nn.GELU, "forward", lambda self, x: contiguous.append(x.is_contiguous()) or real(self, x)
    )
    image = torch.randn(2, 5, 6, 7).contiguous(memory_format=torch.channels_last)
    cpu_bf16.GELU()(image.bfloat16())
    assert contiguous == [True]


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4096, affine=False), nn.LayerNorm(4096), LlamaRMSNorm(4096)],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_sums_in_float32_under_autocast(norm: nn.Module) -> None:
    """In bf16 a sum of 4,096 values near 10 stands still at 4,096: the spread of 0.1 around it
    would be lost."""
    values = 10 + 0.1 * torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    values = values.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(values)
    assert torch.allclose(found.float(), norm(values.float()), rtol=2**-7, atol=0.02)
    assert {
        tensor.dtype for tensor in norm.state_dict().values() if tensor.is_floating_point()
    } <= {torch.float32}


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradient_of_short_attention_is_right_in_double_precision(causal: bool) -> None:
    """Where bf16's rounding hides nothing; the softmax rounds to float32."""
    ours = [heads(3, 17, seed).double().requires_grad_() for seed in range(3)]
    exact = [x.detach().requires_grad_() for x in ours]
    weights = heads(3, 17, 3).double()
    found = cpu_bf16.short_attention(*ours, scale=0.3, is_causal=causal)
    wanted = scaled_dot_product_attention(*exact, scale=0.3, is_causal=causal)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for x, y in zip(ours, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def depthwise(edge: int, grid: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Features, kernel, bias of a depthwise convolution and the gradient of its result."""
    generator = torch.Generator().manual_seed(edge)
    shapes = [(3, 6, *grid), (6, 1, edge, edge), (6,), (3, 6, *grid)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    image = drawn[0].contiguous(memory_format=torch.channels_last)
    return [x.to(dtype) for x in (image, *drawn[1:])]


@pytest.mark.parametrize("edge", [3, 5, 7])
@pytest.mark.parametrize("grid", [(8, 8), (4, 11)])
def test_the_gradients_of_a_depthwise_convolution_are_right_in_double_precision(
    edge: int, grid: tuple[int, int]
) -> None:
    image, kernel, bias, grad = depthwise(edge, grid, torch.float64)
    ours = [x.clone().requires_grad_() for x in (image, kernel, bias)]
    exact = [x.clone().requires_grad_() for x in (image, kernel, bias)]
    found = cpu_bf16._Depthwise.apply(*ours)
    wanted = conv2d(*exact, padding=edge // 2, groups=6)
    assert torch.equal(found, wanted)
    found.backward(grad)
    wanted.backward(grad)
    for x, y in zip(ours, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad, y.grad, rtol=1e-10, atol=1e-10)


def layer_of(kernel: Tensor, bias: Tensor, kind: type[nn.Conv2d]) -> nn.Conv2d:
    """A depthwise layer of that kernel and bias."""
    layer = kind(6, 6, kernel.shape[2], padding=kernel.shape[2] // 2, groups=6)
    layer.load_state_dict({"weight": kernel, "bias": bias})
    return layer


def test_a_depthwise_layer_in_fp32_has_the_bits_of_pytorchs_and_in_bf16_its_gradients() -> None:
    image, kernel, bias, grad = depthwise(7, (8, 8), torch.float32)
    found = {}
    for kind in (nn.Conv2d, cpu_bf16.DepthwiseConv2d):
        for dtype in (torch.float32, torch.bfloat16):
            layer = layer_of(kernel, bias, kind)
            seen = image.detach().clone().to(dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = layer(seen)
            out.backward(grad.to(out.dtype))
            assert (
                seen.grad is not None and layer.weight.grad is not None and layer.bias is not None
            )
            found[kind, dtype] = [out, seen.grad, layer.weight.grad, layer.bias.grad]
    plain, ours = (found[kind, torch.float32] for kind in (nn.Conv2d, cpu_bf16.DepthwiseConv2d))
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))
    for x, y in zip(found[cpu_bf16.DepthwiseConv2d, torch.bfloat16], plain, strict=True):
        assert torch.allclose(x.float(), y, rtol=0.02, atol=0.02 * y.abs().max().item())


def test_only_a_large_kernel_on_a_small_grid_in_bf16_has_its_own_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    real = cpu_bf16.depthwise_weight_gradient
    monkeypatch.setattr(
        cpu_bf16,
        "depthwise_weight_gradient",
        lambda x, grad, edge: taken.append((edge, x.shape[2])) or real(x, grad, edge),
    )
    for edge, size, dtype in (
        (7, 8, torch.bfloat16),
        (7, 8, torch.float32),
        (3, 8, torch.bfloat16),
        (5, cpu_bf16.LARGEST_GRID + 1, torch.bfloat16),
        (5, 8, torch.bfloat16),
    ):
        image, kernel, bias, _ = depthwise(edge, (size, 8), dtype)
        layer = layer_of(kernel, bias, cpu_bf16.DepthwiseConv2d)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            layer(image).sum().backward()
    assert taken == [(7, 8), (5, 8)]


def occupied(value: float) -> None:
    """Leave memory behind whose next user finds `value` where it writes nothing."""
    del [torch.full((size,), value) for size in (1_000, 27 * 16 * 16, 2 * 27 * 16 * 16, 500_000)][:]


@pytest.mark.parametrize("grid", [(2, 4, 2), (1, 3, 3), (3, 4, 3)])
def test_a_kernel_longer_than_the_grid_has_the_gradient_of_fp32(grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = cpu_bf16.replace_convolutions(nn.Sequential(nn.Conv3d(16, 16, 3, padding=1)))
    image, grad = torch.randn(2, 2, 16, *grid).bfloat16().float()
    found = []
    for enabled in (True, False):
        occupied(1e22)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(image)
        occupied(1e22)
        network.zero_grad()
        out.backward(grad.to(out.dtype))
        weight = network[0].weight.grad
        assert weight is not None
        found.append((out.detach().float(), weight.clone()))
    for ours, exact in zip(*found, strict=True):
        assert torch.allclose(ours, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


def test_only_a_kernel_longer_than_the_grid_leaves_bf16() -> None:
    layer = cpu_bf16.replace_convolutions(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1, dilation=1)))
    with torch.autocast("cpu", torch.bfloat16):
        kinds = [layer(torch.zeros(1, 1, size, 4, 4)).dtype for size in (1, 2, 3, 4)]
    assert kinds == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
