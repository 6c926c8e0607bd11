"""The parts of version 1: what is local stays local, the mix starts where it should, cells are true
means, gradients repeat."""

from __future__ import annotations

import pytest
import torch

from mvl.models.fusion import (
    HybridAttention,
    LocalAttention,
    MultiScaleFusion,
    along_axes,
    pooling_matrix,
)

GRIDS = [(4, 6), (3, 4, 5)]


def some_tokens(grid: tuple[int, ...], batch: int = 2, width: int = 8) -> torch.Tensor:
    """Random tokens of a grid."""
    return torch.randn(
        batch, torch.Size(grid).numel(), width, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_local_attention_sees_its_neighbours_alone(grid: tuple[int, ...]) -> None:
    local, tokens = LocalAttention(8, grid), some_tokens(grid).requires_grad_()
    local(tokens).reshape(2, *grid, 8)[(0, *(1,) * len(grid))].sum().backward()
    reached = tokens.grad.abs().sum(-1).reshape(2, *grid) > 0
    expected = torch.zeros(2, *grid, dtype=torch.bool)
    expected[(0, *(slice(0, 3),) * len(grid))] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_mix_starts_balanced_and_can_go_to_either_side(grid: tuple[int, ...]) -> None:
    hybrid, tokens = HybridAttention(8, grid), some_tokens(grid)
    attended = torch.randn_like(tokens)
    assert torch.allclose(
        hybrid(tokens, attended), (attended + hybrid.local(tokens)) / 2, atol=1e-6
    )
    for value, side in ((30.0, attended), (-30.0, hybrid.local(tokens))):
        torch.nn.init.constant_(hybrid.mix, value)
        assert torch.allclose(hybrid(tokens, attended), side, atol=1e-6)


def test_the_mix_is_learned_per_channel() -> None:
    hybrid, tokens = HybridAttention(8, (4, 6)), some_tokens((4, 6))
    hybrid(tokens, torch.randn_like(tokens)).square().sum().backward()
    assert hybrid.mix.shape == (8,)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hybrid.parameters())


def test_cells_are_means_and_the_last_may_be_smaller() -> None:
    assert torch.allclose(
        pooling_matrix(5, 2) @ torch.tensor([1.0, 3, 5, 7, 9]), torch.tensor([2.0, 6, 9])
    )
    assert torch.equal(pooling_matrix(3, 1), torch.eye(3))
    features = torch.arange(32.0).reshape(1, 4, 4, 2)
    pooled = along_axes(features, [pooling_matrix(4, 2)] * 2)
    expected = torch.nn.functional.avg_pool2d(features.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.allclose(pooled, expected)


@pytest.mark.parametrize("grid", [*GRIDS, (1, 2)])
def test_fusion_starts_as_its_last_feature(grid: tuple[int, ...]) -> None:
    fusion, features = MultiScaleFusion(8, grid), [some_tokens(grid) + i for i in range(3)]
    assert torch.equal(fusion(features), features[-1])


def test_each_depth_is_seen_at_its_own_scale() -> None:
    """One changed token changes its own cell and no other: 1, 2 x 2 and 4 x 4 tokens."""
    fusion, grid = MultiScaleFusion(8, (8, 8)), (8, 8)
    torch.nn.init.normal_(fusion.mix.weight)
    for index, edge in enumerate((1, 2, 4)):
        features = [some_tokens(grid, 1) for _ in range(3)]
        before = fusion(features)
        features[index] = features[index].clone()
        features[index][0, 0] += 1
        changed = ((fusion(features) - before).abs().sum(-1) > 1e-6).reshape(8, 8)
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[:edge, :edge] = True
        assert torch.equal(changed, expected)


def test_every_scale_learns_once_the_mix_has_moved() -> None:
    fusion = MultiScaleFusion(8, (3, 4, 5))
    torch.nn.init.normal_(fusion.mix.weight)
    fusion([some_tokens((3, 4, 5)) + i for i in range(3)]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_the_cells_are_made_once_and_kept_out_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fusion, tokens = MultiScaleFusion(8, (4, 6)), some_tokens((4, 6))
    torch.nn.init.ones_(fusion.mix.weight)
    before = fusion([tokens, tokens, tokens])
    monkeypatch.setattr(
        "mvl.models.fusion.pooling_matrix",
        lambda *sizes: pytest.fail("a matrix was made in a forward pass"),
    )
    assert torch.equal(fusion([tokens, tokens, tokens]), before)
    assert not any("pool" in name for name in fusion.state_dict())
    assert {buffer.dtype for buffer in fusion.buffers()} == {torch.float32} and len(
        list(fusion.buffers())
    ) == 4
