"""The ways that are made for GPUs give what PyTorch's own operators give: values and gradients;
CPUs keep PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvl.models import deterministic_layers
from mvl.models.deterministic_layers import MaxPool, Upsample, doubled, halved, replace_pools
from mvl.training.objective import BCEDice, build_loss, cross_entropy

SHAPES = {2: (2, 3, 6, 4), 3: (2, 3, 4, 6, 2)}


def features(dims: int, channels_last: bool = False) -> torch.Tensor:
    """Seeded noise that takes a gradient."""
    values = torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(0))
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    return (values.contiguous(memory_format=layout) if channels_last else values).requires_grad_()


def gradient(out: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The gradient of a seeded weighted sum of `out`."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * weight).sum(), features)[0]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_doubling_is_linear_interpolation(dims: int, mode: str, channels_last: bool) -> None:
    x = features(dims, channels_last)
    ours, theirs = doubled(x), nn.functional.interpolate(x, scale_factor=2, mode=mode)
    assert torch.allclose(ours, theirs, rtol=0, atol=5e-7)
    # a sum of up to 64 values
    assert torch.allclose(gradient(ours, x), gradient(theirs, x), rtol=0, atol=2e-6)
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    assert not channels_last or ours.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dims", [2, 3])
def test_halving_is_max_pooling_bit_for_bit(dims: int) -> None:
    # Rounding makes ties, whose gradient goes to one value alone.
    x = features(dims).detach().mul(2).round().requires_grad_()
    pool = deterministic_layers.POOL[dims](2)
    assert torch.equal(halved(x), pool(x))
    assert torch.equal(gradient(halved(x), x), gradient(pool(x), x))
    for place in range(2 * 4):
        holed = x.detach().clone()
        holed.view(-1)[place] = torch.nan
        assert torch.equal(halved(holed).isnan(), pool(holed).isnan())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", [cross_entropy, BCEDice(), build_loss(3)])
def test_cross_entropy_is_the_same_on_a_gpu(
    loss: nn.Module, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(
        2, classes, 4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    label = torch.arange(48).reshape(2, 1, 4, 6).remainder(classes).float()
    on_cpu = loss(logits, label)
    with monkeypatch.context() as patch:
        patch.setattr(deterministic_layers, "GPUS", {"cpu"})
        on_gpu = loss(logits, label)
    assert torch.allclose(on_gpu, on_cpu, rtol=0, atol=5e-7)
    gradients = [
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (on_gpu, on_cpu)
    ]
    assert torch.allclose(*gradients, rtol=0, atol=5e-7)


def operators(action) -> list[str]:  # type: ignore[no-untyped-def]
    """Names of the operators that `action` runs."""
    with torch.profiler.profile() as profile:
        action()
    return [event.name for event in profile.events()]


def test_a_cpu_keeps_pytorchs_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = features(3), torch.zeros(2, 1, 4, 6, 2)

    def every() -> None:
        Upsample("trilinear")(x)
        MaxPool(3)(x)
        cross_entropy(x, label)

    own = {"aten::upsample_trilinear3d", "aten::max_pool3d_with_indices", "aten::nll_loss_nd"}
    assert own <= set(operators(every))
    monkeypatch.setattr(deterministic_layers, "GPUS", {"cpu"})
    assert not own & set(operators(every))


def test_a_nearest_neighbour_is_pytorchs_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deterministic_layers, "GPUS", {"cpu"})
    x = features(2)
    assert torch.equal(
        Upsample("nearest")(x), nn.functional.interpolate(x, scale_factor=2, mode="nearest")
    )


def test_only_pools_by_two_are_replaced() -> None:
    network = nn.Sequential(
        nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(2)), nn.MaxPool2d(3), nn.MaxPool3d(2)
    )
    replace_pools(network, 2)
    assert isinstance(network[0], MaxPool) and isinstance(network[1][0], MaxPool)
    assert isinstance(network[2], nn.MaxPool2d) and isinstance(network[3], nn.MaxPool3d)
