"""LLM4Seg: stages as in the figure, the paper's added parameters, frozen layers that stay and
trained ones that move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mvl.core.block_config import KINDS, LAYER_KINDS
from mvl.core.config import Config, build, load_config, merge, named
from mvl.models.build import (
    build_system,
    count_parameters,
    frozen_sha256,
    own_state,
    parameter_counts,
)

SMALL = {
    "data": {"img_size": [16, 16]},
    "model": {
        "architecture": "llm4seg",
        "channels": [4, 6, 8],
        "depths": [1, 1, 1],
        "kernel_sizes": [3, 3, 5],
    },
}
BLOCK = {"residual": False, "final_norm": "none"}
IMAGE = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(tiny_llama: Path):
    """Build a small LLM4Seg on the tiny checkpoint, with settings of its block changed."""

    def maker(size: tuple[int, ...] = (16, 16), **block: object) -> nn.Module:
        config = merge(
            SMALL,
            {
                "data": {"img_size": list(size)},
                "model": {"token_block": {"source": str(tiny_llama), **BLOCK, **block}},
            },
        )
        return build_system(build(Config, config, "test"), 1, 1)

    return maker


def train(network: nn.Module, steps: int = 1) -> None:
    """Optimiser steps on whatever trains."""
    optimizer = torch.optim.SGD(
        [p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    for _ in range(steps):
        optimizer.zero_grad()
        network(IMAGE).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("size", [(16, 8), (16, 8, 8)], ids=["2-D", "3-D"])
def test_stages_follow_the_papers_figure(make, size: tuple[int, ...]) -> None:
    stages = make(size).stages(torch.randn(2, 1, *size))
    assert list(stages) == [
        "encoder1",
        "encoder2",
        "bottleneck",
        "mapper1",
        "block",
        "mapper2",
        "decoder2",
        "decoder1",
        "logits",
    ]
    tokens = stages["bottleneck"].shape[2:].numel()
    assert stages["mapper1"].shape == stages["block"].shape == (2, tokens, 48) and stages[
        "mapper2"
    ].shape == (2, tokens, 8)
    assert stages["logits"].shape == (2, 1, *size)


def test_tokens_are_the_bottleneck_in_row_major_order(make) -> None:
    network = make().eval()
    stages = network.stages(IMAGE)
    one = stages["bottleneck"][:, :, 1, 2]
    assert torch.allclose(network.mapper1(one), stages["mapper1"][:, 1 * 4 + 2], atol=1e-6)
    # mappers that undo each other: the decoder sees the bottleneck itself, voxel by voxel
    with torch.no_grad():
        network.block = nn.Identity()
        weight = torch.eye(48, 8)
        network.mapper1.weight.copy_(weight), network.mapper2.weight.copy_(weight.T)
        network.mapper1.bias.zero_(), network.mapper2.bias.zero_()
    assert torch.allclose(network(IMAGE), network.cnn(IMAGE), atol=1e-6)


@pytest.mark.parametrize(
    ("backbone", "widths", "added"),
    [
        ("cmunext", [16, 32, 128, 160, 256], 1_050_880),
        ("unet", [64, 128, 256, 512, 1024], 4_197_376),
    ],
)
def test_added_parameters_agree_with_the_paper(
    tmp_path: Path, backbone: str, widths: list[int], added: int
) -> None:
    """The paper says +1.05 M and +4.19 M with Llama-3.2-1B, whose width is 2048."""
    settings = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    model = {
        "architecture": "llm4seg",
        "backbone": backbone,
        "channels": widths,
        "token_block": {"kind": "identity", "source": str(tmp_path)},
    }

    def count(architecture):
        return count_parameters(
            build(
                Config,
                {
                    "data": {"img_size": [256, 256]},
                    "model": {**model, "architecture": architecture},
                },
                "test",
            ),
            3,
            1,
        )

    assert count("llm4seg")["trainable"] - count("cnn")["trainable"] == added


def test_gradients_reach_the_encoder_through_the_frozen_block(make) -> None:
    network = make()
    stages = network.stages(IMAGE)
    stages["mapper2"].square().sum().backward()
    assert all(
        p.grad.abs().sum() > 0
        for n, p in network.cnn.encoder.named_parameters()
        if n.endswith("0.weight")
    )
    assert network.mapper1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.block.parameters())


@pytest.mark.parametrize("kind", ["pretrained", "xavier"])
def test_frozen_stays_and_trained_moves(make, kind: str) -> None:
    frozen = make(kind=kind)
    before = frozen_sha256(frozen)
    train(frozen)
    assert frozen_sha256(frozen) == before and not any(
        n.startswith("block.") for n in own_state(frozen)
    )
    trained = make(kind=kind, trainable=True)
    start = {n: p.detach().clone() for n, p in trained.block.named_parameters()}
    train(trained)
    assert all(
        not torch.equal(p, start[n])
        for n, p in trained.block.named_parameters()
        if n.endswith("proj.weight")
    )
    assert parameter_counts(trained)["frozen"] == 0 and any(
        n.startswith("block.") for n in own_state(trained)
    )


def test_the_layer_index_is_honoured(make) -> None:
    """The released code parses --layer and ignores it."""

    def q(**block):
        return make(**block).block.layer.self_attn.q_proj.weight

    assert not torch.equal(q(layer=0), q(layer=1)) and torch.equal(q(layer=2), q(layer=-1))


def test_without_residual_a_dead_block_leaves_nothing(make) -> None:
    network = make().eval()
    with torch.no_grad():
        network.mapper2.weight.zero_()
    other = IMAGE.flip(0)
    assert torch.equal(network.stages(IMAGE)["mapper2"], network.stages(other)["mapper2"])
    around, through = make(residual=True).eval().stages(IMAGE), make().eval().stages(IMAGE)
    assert torch.allclose(around["block"] - through["block"], through["mapper1"], atol=1e-5)


def test_released_mask_and_positions_change_the_block(make) -> None:
    plain, released = (
        make().eval().stages(IMAGE),
        make(causal_mask=True, released_positions=True).eval().stages(IMAGE),
    )
    assert torch.equal(plain["mapper1"], released["mapper1"]) and not torch.allclose(
        plain["block"], released["block"], atol=1e-4
    )


def test_with_and_without_a_block_the_cnn_starts_alike(make) -> None:
    plain = build_system(
        build(Config, merge(SMALL, {"model": {"architecture": "cnn"}}), "test"), 1, 1
    )
    for network in (make(), make(kind="xavier"), make(kind="identity")):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                plain.state_dict().values(), network.cnn.state_dict().values(), strict=True
            )
        )
    assert all(
        torch.equal(a, b)
        for a, b in zip(make().mapper1.parameters(), make(kind="xavier").mapper1.parameters())
    )


@pytest.mark.parametrize(
    "block", [{}, {"kind": "xavier"}, {"trainable": True}], ids=["frozen", "random", "trained"]
)
def test_what_a_run_keeps_gives_the_same_prediction(make, block: dict[str, object]) -> None:
    from mvl.training.trained import load_own_state

    network = make(**block)
    train(network, 2)
    again = make(**block)
    load_own_state(again, {n: t.clone() for n, t in own_state(network).items()})
    assert torch.equal(again.eval()(IMAGE), network.eval()(IMAGE))


SYSTEMS = """cmunext unet_plain llm4seg llm4seg_t llm4seg_random llm4seg_random_t llm4seg_released
llm4seg_identity llm4seg_mlp llm4seg_unet llm4seg_llama llm4seg_deepseek llm4seg_shuffled
llm4seg_random_matched llm4seg_attention llm4seg_transformer""".split()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_yaml_is_the_papers_recipe(name: str) -> None:
    who, block = named("systems", name), load_config("quick", "phantoms", name).model.token_block
    assert who["data"] == {"img_size": [256, 256], "augmentation": "flip_rot90"}
    assert who["train"] == {
        "train_epochs": 300,
        "batch_size": 8,
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "poly",
        "loss": "bce_dice",
        "grad_clip": 0.0,
    }
    if name.startswith("llm4seg"):
        assert not block.residual and (block.kind not in LAYER_KINDS or block.final_norm == "none")
        assert block.trainable == name.endswith("_t") and (block.kind == "xavier") == (
            "_random" in name and not name.endswith("matched")
        )
        assert (
            block.kind == name.removeprefix("llm4seg_")
            or name.removeprefix("llm4seg_") not in KINDS
            or block.kind == "xavier"
        )
        assert block.causal_mask == block.released_positions == name.endswith("_released")
