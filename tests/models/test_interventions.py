"""Each knock-out takes away what it says and nothing else; sizes are those computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import Config, build, merge
from mvl.models.build import build_system
from mvl.models.control_blocks import TokenBlock
from mvl.models.interventions import (
    INTERVENTIONS,
    Intervened,
    intervened_block,
    replaced,
    sizes,
    with_redrawn_weights,
)
from mvl.models.token_blocks import build_token_block

TOKENS = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def block(tiny_llama: Path) -> TokenBlock:
    return build_token_block(TokenBlockConfig(source=str(tiny_llama)), 0).eval()


def test_what_each_intervention_puts_in_the_place_of_h(block: TokenBlock) -> None:
    h = block.branch(TOKENS)
    made = {name: intervened_block(block, name, 0) for name in INTERVENTIONS}
    out = {name: module(TOKENS) for name, module in made.items()}
    assert (
        torch.equal(out["as_trained"], block(TOKENS))
        and torch.equal(out["zero"], TOKENS)
        and torch.equal(out["no_block"], TOKENS)
    )
    assert torch.allclose(out["mean"], TOKENS + h.mean(1, keepdim=True), atol=1e-6)
    alone = torch.stack(
        [torch.cat([block.branch(token[None, None])[0] for token in case]) for case in TOKENS]
    )
    assert torch.allclose(out["attention_off"], TOKENS + alone, atol=1e-5)
    assert not torch.allclose(out["attention_off"], out["as_trained"], atol=1e-3)


def test_tokens_are_shuffled_for_h_and_stay_in_order_for_x(block: TokenBlock) -> None:
    """The layer has no positions, so that h of shuffled tokens is h in the shuffled order."""
    h, shuffled = (
        block.branch(TOKENS),
        intervened_block(block, "shuffled_tokens", 0)(TOKENS) - TOKENS,
    )
    order = [int((h[0] - token).norm(dim=1).argmin()) for token in shuffled[0]]
    assert sorted(order) == list(range(7)) != order and torch.allclose(
        shuffled, h[:, order], atol=1e-4
    )


@pytest.mark.parametrize("kind", ["pretrained", "random_matched", "shuffled"])
def test_weights_are_redrawn_and_the_block_itself_is_left_alone(
    tiny_llama: Path, kind: str
) -> None:
    """A block that is random itself gets other values: its own seed would give the same ones."""
    block = build_token_block(TokenBlockConfig(source=str(tiny_llama), kind=kind), 0)
    before = {name: p.clone() for name, p in block.named_parameters()}
    shuffled, random = (
        with_redrawn_weights(block, way, 0) for way in ("shuffled", "random_matched")
    )
    assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())
    for name, old in before.items():
        new, drawn = shuffled.get_parameter(name), random.get_parameter(name)
        assert torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        if old.dim() == 2:
            assert not torch.equal(new, old) and (drawn - old).abs().mean() > 0.3 * old.std()
            assert (
                abs(drawn.std() / old.std() - 1) < 0.1
                and abs(drawn.mean() - old.mean()) < 0.1 * old.std()
            )


def test_a_block_without_residual_is_its_own_part(tiny_llama: Path) -> None:
    block = build_token_block(TokenBlockConfig(source=str(tiny_llama), residual=False), 0)
    assert torch.equal(intervened_block(block, "zero", 0)(TOKENS), torch.zeros_like(TOKENS))
    assert torch.equal(intervened_block(block, "as_trained", 0)(TOKENS), block.branch(TOKENS))


def test_sizes_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    h = torch.tensor([[4.0, -3.0], [0.0, -2.0]])
    found = sizes(x, h)
    assert found["input_norm"] == pytest.approx((5 + 1) / 2) and found[
        "branch_norm"
    ] == pytest.approx((5 + 2) / 2)
    assert found["cosine"] == pytest.approx((0 - 1) / 2)
    # means (1.5, 2.5) and (2, -2.5): each token is (1.5, 1.5), or (2, -0.5), away from it
    assert found["variation_ratio"] == pytest.approx(math.sqrt(4 + 0.25) / math.sqrt(2 * 1.5**2))


def test_sizes_where_nothing_varies_or_is_there() -> None:
    same = torch.ones(3, 2)
    assert math.isnan(sizes(same, torch.randn(3, 2))["variation_ratio"])
    nothing = sizes(torch.randn(3, 2), torch.zeros(3, 2))
    assert nothing["branch_norm"] == nothing["variation_ratio"] == nothing["cosine"] == 0


def test_sizes_are_noted_of_the_replaced_branch_one_row_a_case(block: TokenBlock) -> None:
    as_trained, mean = (Intervened(block, kind, 0) for kind in ("as_trained", "mean"))
    as_trained(TOKENS)
    mean(TOKENS)
    assert as_trained.noted == [sizes(x, h) for x, h in zip(TOKENS, block.branch(TOKENS))]
    assert mean.noted[0]["variation_ratio"] < 1e-6 < as_trained.noted[0]["variation_ratio"]


@pytest.mark.parametrize("architecture", ["medvisionllama_v3", "llm4seg"])
def test_the_network_is_as_it_was_afterwards_and_no_block_goes_past_the_mappers(
    architecture: str, tiny_llama: Path
) -> None:
    small = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "channels": [4, 8],
        "depths": [1, 1],
        "kernel_sizes": [3, 3],
    }
    values = {
        "data": {"img_size": [16, 16]},
        "model": {
            **small,
            "patch_size": [8, 8],
            "architecture": architecture,
            "token_block": {"source": str(tiny_llama)},
        },
    }
    network, image = (
        build_system(build(Config, merge(values), "test"), 1, 1).eval(),
        torch.randn(1, 1, 16, 16),
    )
    before, names = network(image), list(network.state_dict())
    with replaced(network, torch.nn.Identity(), no_mappers=True):
        stages = network.stages(image)
        start = (
            stages["encoder"]
            if architecture == "medvisionllama_v3"
            else stages["bottleneck"].flatten(2).transpose(1, 2)
        )
        assert torch.equal(stages["mapper2"], start)
    assert torch.equal(network(image), before) and list(network.state_dict()) == names
