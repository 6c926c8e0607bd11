"""The cosine of gradients: by hand, by a slow loop, and without a trace in the network."""

import itertools

import pytest
import torch
from torch import nn

from mvl.core.config import DataConfig, ModelConfig
from mvl.datasets import loaders, registry, splits
from mvl.models.vit import ViTBaseline
from mvl.training.gradient_agreement import CASES, encoder_parameters, gradient_cosine, mean_cosine
from mvl.training.objective import build_loss

SIZES = ModelConfig(
    hidden_size=16, mlp_dim=16, encoder_layers=1, decoder_layers=1, dropout_rate=0.5
)


def test_by_hand():
    assert mean_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0]])) == pytest.approx(1)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])) == pytest.approx(-1 / 3)


def test_one_case_pulls_elsewhere_than_another_by_a_slow_loop():
    torch.manual_seed(0)
    network = ViTBaseline(SIZES, (16, 16, 16), 1, 1)
    task = registry.find_task("phantoms")
    cases = splits.load_split(task, 0, 1.0).train
    store = loaders.CaseStore(task, cases, DataConfig(img_size=(16, 16, 16)))
    loss = build_loss(1)
    network.train()
    found = gradient_cosine(network, store, loss, "fp32")
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    network.eval()
    rows = []
    for index in range(CASES):
        network.zero_grad()
        image, label = store.get(index)
        loss(network(image[None]), label[None].float()).backward()
        rows.append(torch.cat([p.grad.flatten() for p in encoder_parameters(network)]))
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(rows, 2)]
    assert found == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
    assert -1 < found < 1


def test_the_decoder_has_no_part_in_it():
    network = ViTBaseline(SIZES, (16, 16, 16), 1, 1)
    chosen = {id(p) for p in encoder_parameters(network)}
    assert not chosen & {
        id(p) for part in (network.decoder, network.head) for p in part.parameters()
    }
    assert isinstance(network.positions, nn.Parameter)
    assert id(network.positions) in chosen
