"""The ViT: shapes in 2-D and 3-D, patches in order, attention blocks that change nothing, the released size."""

from __future__ import annotations

import pytest
import torch

from mvl.config import Config, ModelConfig, build
from mvl.models import build_system, parameter_counts, vit
from mvl.models.vit import QUERY_BLOCK, ViTBaseline, attention, patchify, unpatchify


@pytest.mark.parametrize(("size", "patch"), [((8, 12), (4, 4)), ((8, 12, 16), (4, 4, 8))])
def test_unpatchify_inverts_patchify(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = torch.randn(2, 3, *size)
    assert torch.equal(unpatchify(patchify(image, patch), size, patch), image)


def test_tokens_are_patches_in_row_major_order() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert patchify(image, (2, 2))[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_query_blocks_do_not_change_attention() -> None:
    q, k, v = torch.randn(3, 1, 2, QUERY_BLOCK + 70, 8, dtype=torch.float64)
    whole = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
    assert torch.allclose(attention(q, k, v), whole, atol=1e-10)


@pytest.mark.parametrize(("size", "classes"), [((16, 24), 1), ((16, 8, 24), 3)])
def test_logits_have_the_image_grid(size: tuple[int, ...], classes: int) -> None:
    model = ModelConfig(patch_size=(8,) * len(size), encoder_layers=1, decoder_layers=1)
    network = ViTBaseline(model, size, num_channels=2, num_classes=classes)
    stages = network.stages(torch.randn(2, 2, *size))
    assert stages["logits"].shape == (2, classes, *size)
    assert list(stages) == ["embedding", "encoder", "decoder", "logits"]


def test_released_size_has_the_released_parameter_count() -> None:
    """paper_facts: 1,161,280 with one unused visual head of 33,280; 4,096 positions at 128 voxels and patch 8."""
    config = build(Config, {"data": {"img_size": [128, 128, 128]}}, "test")
    assert parameter_counts(build_system(config, 1, 1))["total"] == 1_161_280 - 33_280


def test_every_parameter_gets_a_gradient() -> None:
    network = ViTBaseline(ModelConfig(encoder_layers=1, decoder_layers=1), (16, 16, 16), 1, 1)
    network(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_recomputing_the_mlp_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, image = [], torch.randn(1, 1, 16, 16, 16)
    for limit in (10**9, 1):
        monkeypatch.setattr(vit, "RECOMPUTE_FROM", limit)
        torch.manual_seed(0)
        network = ViTBaseline(ModelConfig(encoder_layers=1, decoder_layers=1, dropout_rate=0.1), (16, 16, 16), 1, 1).train()
        network(image).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
