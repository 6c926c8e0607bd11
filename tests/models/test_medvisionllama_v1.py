"""MedVisionLlama v1: the two parts switch apart, start without harm, and with both off nothing but
version 3 is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvl.core.config import Config, build, merge
from mvl.models.build import build_system, own_state, parameter_counts

SIZES = [(16, 16), (16, 8, 24)]
PARTS = {
    "plain": (False, False),
    "hybrid": (True, False),
    "fusion": (False, True),
    "full": (True, True),
}


def image_of(size: tuple[int, ...]) -> torch.Tensor:
    """A random image of two cases."""
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(tiny_llama: Path):
    """Build a small version 1 on the tiny checkpoint."""

    def maker(
        size: tuple[int, ...] = (16, 16, 16), parts: str = "full", **settings: object
    ) -> torch.nn.Module:
        hybrid, fusion = PARTS[parts]
        block = {"source": str(tiny_llama)} | dict(settings.pop("token_block", {}))
        model = {
            "architecture": "medvisionllama_v1",
            "hybrid_attention": hybrid,
            "multi_scale_fusion": fusion,
            "mapper": "linear",
            "patch_size": [4] * len(size),
            "hidden_size": 16,
            "mlp_dim": 32,
            "encoder_layers": 2,
            "decoder_layers": 1,
            "dropout_rate": 0.0,
            "token_block": block,
        }
        if settings.get("architecture") == "medvisionllama_v3":
            model |= {"hybrid_attention": False, "multi_scale_fusion": False}
        return build_system(
            build(
                Config, {"data": {"img_size": list(size)}, "model": merge(model, settings)}, "test"
            ),
            1,
            1,
        )

    return maker


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parts", PARTS)
def test_stages_read_like_the_abstract(make, size: tuple[int, ...], parts: str) -> None:
    stages = make(size, parts).stages(image_of(size))
    fused = ["fusion"] if PARTS[parts][1] else []
    assert list(stages) == [
        "embedding",
        "encoder_half",
        "encoder",
        "mapper1",
        "block",
        "mapper2",
        *fused,
        "decoder",
        "logits",
    ]
    assert stages["logits"].shape == (2, 1, *size)


def test_with_both_parts_off_it_is_version_3(make) -> None:
    image = image_of((16, 16, 16))
    assert torch.equal(make(parts="plain")(image), make(architecture="medvisionllama_v3")(image))


def test_what_the_parts_add_leaves_every_other_weight_alone(make) -> None:
    plain = own_state(make(parts="plain"))
    for parts, prefixes in {
        "hybrid": {"hybrid"},
        "fusion": {"fusion"},
        "full": {"hybrid", "fusion"},
    }.items():
        state = own_state(make(parts=parts))
        assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
        assert {name.split(".")[0] for name in state.keys() - plain.keys()} == prefixes


def test_fusion_starts_without_effect_and_hybrid_attention_does_not(make) -> None:
    image = image_of((16, 16, 16))
    plain = make(parts="plain")(image)
    assert torch.equal(make(parts="fusion")(image), plain)
    assert not torch.allclose(make(parts="hybrid")(image), plain)


def test_hybrid_attention_acts_in_encoder_blocks_alone(make) -> None:
    network = make(parts="hybrid")
    assert len(network.hybrid) == len(network.vit.encoder) == 2
    fused = make(parts="fusion", encoder_layers=4).stages(image_of((16, 16, 16)))
    assert not torch.equal(fused["encoder_half"], fused["encoder"])


def test_a_few_steps_train_both_parts_and_no_frozen_weight(make) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        losses, network, image = [], make().train(), image_of((16, 16, 16))
        before = {name: tensor.clone() for name, tensor in network.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=3e-3)
        for _ in range(8):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network(image), (image > 0).float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    finally:
        torch.use_deterministic_algorithms(False)
    still = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert losses[-1] < losses[0]
    assert still == {name for name, p in network.named_parameters() if not p.requires_grad}


def test_block_position_moves_the_language_layer_alone(make) -> None:
    names = list(make(block_position="after_embedding").stages(image_of((16, 16, 16))))
    assert names == [
        "mapper1",
        "block",
        "mapper2",
        "embedding",
        "encoder_half",
        "encoder",
        "fusion",
        "decoder",
        "logits",
    ]


def test_the_parts_cost_few_parameters(make) -> None:
    counts = {parts: parameter_counts(make(parts=parts)) for parts in PARTS}
    assert len({count["frozen"] for count in counts.values()}) == 1
    assert counts["full"]["trainable"] - counts["plain"]["trainable"] == sum(
        counts[parts]["trainable"] - counts["plain"]["trainable"] for parts in ("hybrid", "fusion")
    )
