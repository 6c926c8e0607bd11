"""The bench counts what it says; its durations are not tested."""

from __future__ import annotations

import pytest
import torch

from mvl import bench


def test_matrix_products_are_counted() -> None:
    a, b = torch.randn(20, 30), torch.randn(30, 40)
    assert bench.counted_gflops(lambda: a @ b) == pytest.approx(2 * 20 * 30 * 40 / 1e9)


def test_attention_counts_two_products_forward_and_four_backward() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 16 * 16 * 8 / 1e9
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert bench.counted_gflops(attend) == pytest.approx(2 * product)
    assert bench.counted_gflops(lambda: attend().sum().backward()) == pytest.approx(6 * product)


def test_a_step_moves_the_weights() -> None:
    settings = {"data": {"img_size": [16, 16, 16]}, "model": {"encoder_layers": 1, "decoder_layers": 1}}
    step = bench.training_step("vit_baseline", settings, 1)
    step()
    assert bench.best_of(step, 1) > 0 and bench.counted_gflops(step) > 0


def test_a_probe_runs_in_a_process_of_its_own_and_its_failure_is_told() -> None:
    assert bench.child("help")["seconds"] > 0
    with pytest.raises(RuntimeError, match="bench probe released failed"):
        bench.child("released", "no-such-clone", 0.0)
