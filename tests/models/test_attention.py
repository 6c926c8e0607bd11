"""Attention takes the kernel that suits the length and the type, and every way gives the same."""

from __future__ import annotations

import pytest
import torch

from mvl.models import attention


def test_only_long_sequences_go_tile_by_tile_and_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    went: list[torch.Tensor] = []
    monkeypatch.setattr(attention, "tiled_attention", lambda q, k, v: went.append(q) or (q, q))
    monkeypatch.setattr(attention, "available", lambda: True)
    for length, dtype in (
        (attention.LONG - 1, torch.float32),
        (attention.LONG, torch.float32),
        (attention.LONG, torch.bfloat16),
        (attention.LONG, torch.float64),
    ):
        assert attention.attention(*torch.randn(3, 1, 1, length, 4, dtype=dtype)).dtype == dtype
    assert [(len(q[0, 0]), q.dtype) for q in went] == [(attention.LONG, torch.float32)] * 2


def test_long_attention_in_bf16_and_its_gradient_are_right() -> None:
    if not attention.available():
        pytest.skip("this build of PyTorch has no oneDNN")
    half = [x.requires_grad_() for x in torch.randn(3, 1, 2, attention.LONG, 4).bfloat16()]
    exact = [x.detach().float().requires_grad_() for x in half]
    found, wanted = (
        attention.attention(*half),
        torch.nn.functional.scaled_dot_product_attention(*exact),
    )
    assert torch.allclose(found.float(), wanted, rtol=0.01, atol=1e-3)
    found.backward(torch.ones_like(found))
    wanted.backward(torch.ones_like(wanted))
    for x, y in zip(half, exact, strict=True):
        assert x.grad is not None and y.grad is not None
        assert torch.allclose(x.grad.float(), y.grad, rtol=0.02, atol=1e-3)
