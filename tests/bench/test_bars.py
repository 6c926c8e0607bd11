"""The bench counts what it says; its durations are not tested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mvl.bench import clock, measure
from mvl.core.config import Config, build
from mvl.models.tiled_attention import tiled_attention
from mvl.training.objective import build_loss


def test_matrix_products_are_counted() -> None:
    a, b = torch.randn(20, 30), torch.randn(30, 40)
    assert measure.counted_gflops(lambda: a @ b) == pytest.approx(2 * 20 * 30 * 40 / 1e9)


@pytest.mark.parametrize(
    "kernel",
    [torch.nn.functional.scaled_dot_product_attention, lambda q, k, v: tiled_attention(q, k, v)[0]],
)
def test_attention_counts_two_products_forward_and_four_backward(
    kernel: Callable[..., torch.Tensor],
) -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 16 * 16 * 8 / 1e9

    def attend():
        return kernel(q, k, v)

    assert measure.counted_gflops(attend) == pytest.approx(2 * product)
    assert measure.counted_gflops(lambda: attend().sum().backward()) == pytest.approx(6 * product)


@pytest.mark.parametrize("groups", [1, 6])
def test_a_convolution_counts_once_forward_and_twice_backward(groups: int) -> None:
    layer, x = (
        torch.nn.Conv2d(6, 12, 3, padding=1, groups=groups, bias=False),
        torch.randn(2, 6, 8, 8, requires_grad=True),
    )
    once = 2 * 2 * 8 * 8 * 12 * (6 // groups) * 9 / 1e9
    assert measure.counted_gflops(lambda: layer(x)) == pytest.approx(once)
    assert measure.counted_gflops(lambda: layer(x).sum().backward()) == pytest.approx(3 * once)


def test_a_step_moves_the_weights() -> None:
    settings = {
        "data": {"img_size": [16, 16, 16]},
        "model": {"encoder_layers": 1, "decoder_layers": 1},
    }
    step = measure.training_step(build(Config, settings, "test"), 1)
    step()
    assert clock.best_of(step, 1) > 0 and measure.counted_gflops(step) > 0


def test_the_loss_of_the_bench_is_that_of_training() -> None:
    logits, label = torch.randn(2, 1, 4, 4, 4), (torch.rand(2, 1, 4, 4, 4) > 0.5).float()
    assert measure.dice_bce(logits, label).item() == pytest.approx(
        build_loss(1)(logits, label).item(), rel=1e-6
    )


def test_a_probe_runs_in_a_process_of_its_own_and_its_failure_is_told() -> None:
    assert measure.child("help")["seconds"] > 0
    with pytest.raises(RuntimeError, match="bench probe released failed"):
        measure.child("released", "no-such-clone", 0.0)
