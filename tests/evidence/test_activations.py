"""Measures with known answers: rank-one and even matrices, perfect and inverted maps, thresholds of
the label's own area, even attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mvl.core.config import ModelConfig
from mvl.evidence import activations
from mvl.evidence.predicted import best_slice
from mvl.models.vit import ViTBaseline

SMALL = ModelConfig(
    patch_size=(4, 4, 4),
    hidden_size=16,
    num_heads=2,
    mlp_dim=16,
    encoder_layers=1,
    decoder_layers=1,
)


def test_a_matrix_of_rank_one_has_effective_rank_0() -> None:
    shares = activations.singular_shares(torch.outer(torch.arange(1.0, 40), torch.randn(24)))
    assert activations.effective_rank(shares) == 0 and activations.lsvr(shares) == 0
    assert shares[0] == 1 and shares[1:].sum() == 0


@pytest.mark.parametrize("n", [3, 32])
def test_equal_singular_values_have_effective_rank_log_n(n: int) -> None:
    shares = activations.singular_shares(7 * torch.linalg.qr(torch.randn(50, n))[0])
    assert activations.effective_rank(shares) == pytest.approx(math.log(n), abs=1e-6)
    assert activations.lsvr(shares) == pytest.approx(math.log(n), abs=1e-6)


def test_shares_are_those_of_the_singular_values() -> None:
    for shape in ((40, 12), (12, 40)):
        tokens = torch.randn(*shape)
        wanted = torch.linalg.svdvals(tokens.double())
        assert np.allclose(activations.singular_shares(tokens), wanted / wanted.sum(), atol=1e-7)
    assert activations.effective_rank(activations.singular_shares(torch.zeros(4, 3))) == 0


def test_the_centred_rank_is_blind_to_a_channel_that_is_equal_everywhere() -> None:
    tokens = torch.randn(30, 8)
    tokens[:, 0] = 1e4
    row = activations.numbers(tokens, np.ones((2, 2), np.float32), np.zeros((2, 2), bool))
    assert row["effective_rank"] < 0.1 < 1.5 < row["effective_rank_centred"] < math.log(8)
    assert (row["tokens"], row["width"]) == (30, 8)


def label() -> np.ndarray:
    mask = np.zeros((8, 8, 8), dtype=bool)
    mask[2:5, 2:5, 2:5] = True
    return mask


def test_a_perfect_map_has_iou_1_and_an_inverted_one_only_under_the_better_sign() -> None:
    noise = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    assert activations.activation_iou(noise + 2 * label(), label()) == (1.0, 1.0)
    assert activations.activation_iou(noise - 2 * label(), label()) == (0.0, 1.0)


def test_the_threshold_marks_as_many_voxels_as_the_label_has() -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.random((8, 8, 8)),
        np.ones((8, 8, 8)),
        rng.integers(0, 3, (8, 8, 8)).astype(float),
    ):
        for count in (0, 1, 27, 512):
            assert activations.highest(values, count).sum() == count
    assert np.flatnonzero(activations.highest(np.ones((4, 4)), 3)).tolist() == [0, 1, 2]
    assert set(np.flatnonzero(activations.highest(np.arange(16.0).reshape(4, 4), 3))) == {
        13,
        14,
        15,
    }


def test_chance_is_what_a_random_map_reaches() -> None:
    rng, mask = np.random.default_rng(0), np.zeros((40, 40, 40), dtype=bool)
    mask[:20, :20, :20] = True
    found = activations.activation_iou(rng.random(mask.shape), mask)[0]
    assert found == pytest.approx(activations.chance_iou(mask.mean()), abs=0.01)


def test_entropy_is_1_for_an_even_map_and_0_for_one_voxel() -> None:
    one = np.zeros((8, 8), np.float32)
    one[3, 3] = 5
    assert (
        activations.entropy(np.ones((8, 8), np.float32)) == pytest.approx(1)
        and activations.entropy(one) == 0
    )
    assert activations.entropy(np.zeros((8, 8), np.float32)) == 1


def test_a_map_is_the_distance_from_the_mean_features_in_the_grids_order() -> None:
    features = torch.zeros(3, 2, 2)
    features[:, 1, 0] = torch.tensor([0.0, 4.0, 0.0])
    cells = activations.activation_map(features + 9)
    assert torch.allclose(cells, torch.tensor([[1.0, 1.0], [3.0, 1.0]]))
    tokens = features.flatten(1).T[None]
    assert torch.equal(activations.as_features(tokens, (2, 2)), features) and torch.equal(
        activations.as_matrix(features[None]), tokens[0]
    )
    assert activations.on_grid(cells, (4, 4))[3, 0] == 3


def test_attention_received_is_even_where_scores_are() -> None:
    network, image = ViTBaseline(SMALL, (8, 8, 12), 1, 1).eval(), torch.randn(1, 8, 8, 12)
    received = activations.attention_received(network, image)
    assert (
        received is not None
        and received.shape == (2, 2, 3)
        and float(received.mean()) == pytest.approx(1, abs=1e-5)
    )
    with torch.no_grad():
        network.decoder[0].qkv.weight[:32].zero_()
        network.decoder[0].qkv.bias[:32].zero_()
    even = activations.attention_received(network, image)
    assert (
        even is not None
        and torch.allclose(even, torch.ones_like(even), atol=1e-5)
        and not torch.allclose(received, even, atol=1e-3)
    )
    assert not network.decoder[0].norm1._forward_hooks
    assert activations.attention_received(nn.Identity(), image) is None


def test_the_slice_is_the_one_with_most_label() -> None:
    mask = label()
    mask[0, 0, 3] = True
    assert best_slice(mask) == 3 and best_slice(mask[..., 0]) == 0
