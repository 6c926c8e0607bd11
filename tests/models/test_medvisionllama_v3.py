"""MedVisionLlama v3: stages as in the figure, LoRA starts as a no-op, controls differ in the block
alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvl.core.config import Config, build, merge
from mvl.core.seeds import draw_seed
from mvl.models.build import build_system, frozen_sha256, own_state, parameter_counts

SMALL = {
    "data": {"img_size": [16, 16, 16]},
    "model": {
        "architecture": "medvisionllama_v3",
        "encoder_layers": 1,
        "decoder_layers": 1,
        "dropout_rate": 0.0,
    },
}
SAME = ("pretrained", "random", "norm", "noise", "zero", "identity")
"Kinds that train the same parameters."
IMAGE = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(tiny_llama: Path):
    """Build a small hybrid on the tiny checkpoint, with settings of the model changed."""

    def maker(**settings: object) -> torch.nn.Module:
        block = {"source": str(tiny_llama)} | dict(settings.pop("token_block", {}))
        return build_system(
            build(Config, merge(SMALL, {"model": {**settings, "token_block": block}}), "test"), 1, 1
        )

    return maker


def test_stages_follow_the_papers_figure(make) -> None:
    stages = make().stages(IMAGE)
    assert list(stages) == [
        "embedding",
        "encoder",
        "mapper1",
        "block",
        "mapper2",
        "decoder",
        "logits",
    ]
    assert (
        stages["block"].shape == (2, 8, 48)
        and stages["mapper2"].shape == (2, 8, 64)
        and stages["logits"].shape == (2, 1, 16, 16, 16)
    )


def test_released_order_puts_the_block_first(make) -> None:
    assert list(make(block_position="after_embedding").stages(IMAGE)) == [
        "mapper1",
        "block",
        "mapper2",
        "embedding",
        "encoder",
        "decoder",
        "logits",
    ]


def test_lora_mappers_start_as_their_frozen_random_map(make) -> None:
    mapper = make().mapper1
    tokens = torch.randn(1, 3, 64)
    assert torch.allclose(mapper(tokens), mapper.linear.base_layer(tokens))
    with torch.no_grad():
        mapper.linear.lora_B["default"].weight.fill_(0.1)
    assert not torch.allclose(mapper(tokens), mapper.linear.base_layer(tokens))


def test_what_trains_in_a_mapper(make) -> None:
    lora = {n for n, p in make().mapper1.named_parameters() if p.requires_grad}
    assert lora == {
        "linear.base_layer.bias",
        "linear.lora_A.default.weight",
        "linear.lora_B.default.weight",
    }
    assert [n for n, p in make(mapper="linear").mapper1.named_parameters() if p.requires_grad] == [
        "linear.weight"
    ]


@pytest.mark.parametrize(("r", "pair"), [(2, 20_800), (4, 37_440), (8, 70_720), (16, 137_280)])
def test_mapper_pair_counts_agree_with_the_released_code(r: int, pair: int) -> None:
    """paper_facts 1.4: trainable parameters of the pair 64 -> 4096 -> 64 at each rank; 524,288
    frozen."""
    from mvl.models.adapters import Mapper

    pairs = [Mapper(64, 4096, "lora", r, 1), Mapper(4096, 64, "lora", r, 1)]
    counts = [parameter_counts(mapper) for mapper in pairs]
    assert (
        sum(c["trainable"] for c in counts) == pair and sum(c["frozen"] for c in counts) == 524_288
    )


def test_gradients_reach_the_encoder_through_the_frozen_block(make) -> None:
    network = make(token_block={"residual": False})
    network(IMAGE).square().sum().backward()
    assert (
        network.vit.embed.weight.grad.abs().sum() > 0
        and network.vit.encoder[0].qkv.weight.grad.abs().sum() > 0
    )
    assert all(p.grad is None for n, p in network.named_parameters() if n.startswith("block."))


def test_an_optimiser_step_leaves_frozen_weights_alone(make) -> None:
    network = make()
    before, optimizer = frozen_sha256(network), torch.optim.AdamW(network.parameters(), lr=0.1)
    network(IMAGE).square().sum().backward()
    optimizer.step()
    assert frozen_sha256(network) == before


def test_controls_share_every_other_weight(make) -> None:
    states = [own_state(make(token_block={"kind": kind})) for kind in SAME]
    assert all(set(s) == set(states[0]) for s in states)
    assert all(torch.equal(s[name], states[0][name]) for s in states for name in s)
    baseline = build_system(
        build(Config, merge(SMALL, {"model": {"architecture": "vit_baseline"}}), "test"), 1, 1
    )
    assert all(
        torch.equal(tensor, states[0][f"vit.{name}"])
        for name, tensor in baseline.state_dict().items()
    )


def test_trainable_parameters_match_between_controls(make) -> None:
    counts = {parameter_counts(make(token_block={"kind": kind}))["trainable"] for kind in SAME}
    assert len(counts) == 1


def test_kept_state_leaves_out_the_language_layer(make) -> None:
    assert not any(name.startswith("block.") for name in own_state(make()))
    assert any(
        "lora" in name
        for name in own_state(make(token_block={"lora_targets": ["q_proj"]}))
        if name.startswith("block.")
    )


def test_the_auxiliary_path_is_drawn_per_case_in_training_and_not_gone_in_evaluation(make) -> None:
    """Each case's logits are those with the block or those without it; both happen; the loss is
    their mean in expectation."""
    network, plain = make(auxiliary_path=True), make()
    images = torch.randn(40, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    without = plain.vit(images)
    through = plain(images)
    torch.manual_seed(0)
    logits = network.train()(images)
    taken = [torch.allclose(a, b, atol=1e-5) for a, b in zip(logits, through)]
    passed = [torch.allclose(a, b, atol=1e-5) for a, b in zip(logits, without)]
    assert all(a != b for a, b in zip(taken, passed)) and 10 < sum(taken) < 30
    torch.manual_seed(0)
    assert torch.equal(network(images), logits), "the draw is the loop's seed"
    assert torch.allclose(network.eval()(images), without, atol=1e-6)
    assert torch.allclose(
        network.stages(images)["mapper2"], plain.stages(images)["mapper2"], atol=1e-6
    ), "the block can still be looked at"


def test_permuted_patches_are_put_back_at_the_head(make) -> None:
    """The order shows through the positions alone: with positions in the same order it is gone."""
    network, plain = make(permute_patches=True), make()
    order = network.vit.order
    assert sorted(order.tolist()) == list(range(8)) != order.tolist()
    assert all(
        torch.equal(a, b) for a, b in zip(own_state(network).values(), own_state(plain).values())
    )
    assert not torch.allclose(network(IMAGE), plain(IMAGE), atol=1e-4)
    with torch.no_grad():
        network.vit.positions.copy_(plain.vit.positions[:, order])
    assert torch.allclose(network(IMAGE), plain(IMAGE), atol=1e-5)
    assert torch.allclose(
        network.stages(IMAGE)["encoder"], plain.stages(IMAGE)["encoder"][:, order], atol=1e-5
    )


def test_the_permutation_is_a_function_of_the_seed(make) -> None:
    from mvl.models.vit import patch_order

    assert torch.equal(patch_order(8, 0), make(permute_patches=True).vit.order)
    generator = torch.Generator().manual_seed(draw_seed(5, "patches"))
    with torch.device("meta"):
        assert torch.equal(
            patch_order(64, 5), torch.randperm(64, generator=generator, device="cpu")
        )
    assert torch.equal(patch_order(64, 5), patch_order(64, 5)) and not torch.equal(
        patch_order(64, 5), patch_order(64, 6)
    )


def test_the_block_may_be_all_that_mixes_tokens(make) -> None:
    """With no ViT block a patch's logits depend on other patches through the block alone."""
    changed = IMAGE.clone()
    changed[..., :8, :8, :8] += 1

    def moved(network: torch.nn.Module) -> bool:
        far = (..., slice(8, 16), slice(8, 16), slice(8, 16))
        return not torch.equal(network(IMAGE)[far], network(changed)[far])

    nothing = {"encoder_layers": 0, "decoder_layers": 0}
    assert moved(make(**nothing)) and moved(make(**nothing, token_block={"kind": "attention"}))
    assert not moved(make(**nothing, token_block={"kind": "identity"})) and not moved(
        make(**nothing, token_block={"kind": "norm"})
    )
    vit = build_system(
        build(Config, merge(SMALL, {"model": {"architecture": "vit_baseline", **nothing}}), "test"),
        1,
        1,
    )
    assert not moved(vit)
