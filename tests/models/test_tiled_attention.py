"""Attention tile by tile beside PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mvl.models import tiled_attention as tiled
from mvl.models.tiled_attention import tiled_attention

pytestmark = pytest.mark.skipif(not tiled.available(), reason="this build of PyTorch has no oneDNN")


@pytest.mark.parametrize(
    "scale", [1.0, 30.0], ids=["usual scores", "scores beyond the range of exp"]
)
@pytest.mark.parametrize(("queries", "keys", "width"), [(70, 70, 8), (300, 90, 16), (129, 513, 33)])
def test_rounds_no_worse_than_pytorchs_kernel(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, width: int, scale: float
) -> None:
    """Values and gradients beside those in double precision: at most four times the largest error
    of the fused fp32 kernel."""
    monkeypatch.setattr(tiled, "QUERIES", 32)
    monkeypatch.setattr(tiled, "TILE", (64, 48))
    torch.manual_seed(0)
    given = [
        torch.randn(2, n, 3, width).mul(factor).transpose(1, 2)
        for n, factor in ((queries, scale), (keys, scale), (keys, 1), (queries, 1))
    ]

    def results(
        kernel: Callable[..., torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        *inputs, grad = (x.to(dtype).requires_grad_() for x in given)
        out = kernel(*inputs)
        return out, *torch.autograd.grad(out, inputs, grad)

    exact = results(scaled_dot_product_attention, torch.float64)

    def error(kernel):
        return [(a - b).abs().max().item() for a, b in zip(results(kernel, torch.float32), exact)]

    ours, fused = (
        error(lambda *inputs: tiled_attention(*inputs)[0]),
        error(scaled_dot_product_attention),
    )
    assert all(0 < a <= 4 * b for a, b in zip(ours, fused))


def test_the_operator_keeps_pytorchs_rules() -> None:
    """Schema, autograd and shapes without data, as `torch.compile` and `meta` need them."""
    torch.library.opcheck(
        tiled_attention, [torch.randn(1, 2, 20, 8, requires_grad=True) for _ in range(3)]
    )
    query, key, value, grad = torch.randn(4, 1, 2, 20, 8)
    torch.library.opcheck(
        tiled.tiled_attention_backward,
        [grad, query, key, value, *tiled_attention(query, key, value)],
    )
