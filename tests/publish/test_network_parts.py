"""The parts that are drawn are the network's own: every parameter once, shapes of a real forward
pass, order and residual as configured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvl.core.config import Config, load_config
from mvl.models.build import parameter_counts
from mvl.models.describe import listed_parameters, system_config
from mvl.models.vit import ViTBaseline
from mvl.publish.network_parts import PartsError, plan
from mvl.publish.network_shapes import make_network, stage_shapes


def with_block(config: Config, **changes: object) -> Config:
    return replace(
        config,
        model=replace(config.model, token_block=replace(config.model.token_block, **changes)),
    )


def small(system: str) -> Config:
    """A system of the study that runs everything, its ViT cut to one block on each side."""
    config = load_config(
        "smoke", "shapes" if system.startswith(("llm4seg", "cmunext")) else "phantoms", system
    )
    return replace(config, model=replace(config.model, encoder_layers=1, decoder_layers=1))


@pytest.mark.parametrize(
    "system",
    [
        "vit_baseline",
        "medvisionllama_v3",
        "medvisionllama_v1",
        "medvisionllama_v3_lora_block",
        "llm4seg",
        "cmunext",
    ],
)
def test_every_parameter_is_in_one_part(system: str) -> None:
    config = small(system)
    network = make_network(config)
    found = plan(network, config.data.img_size, config)
    counts = parameter_counts(network)
    assert (sum(p.trained for p in found.parts), sum(p.frozen for p in found.parts)) == (
        counts["trainable"],
        counts["frozen"],
    )
    assert (
        found.keys[0] == "input"
        and found.keys[-1] == "output"
        and all(part.shape for part in found.parts)
    )


@pytest.mark.parametrize("system", ["medvisionllama_v3", "llm4seg", "medvisionllama_v3_minilm"])
def test_the_stand_in_has_the_recorded_counts(system: str) -> None:
    counts = parameter_counts(make_network(system_config(system)))
    assert (f"{counts['trainable']:,}", f"{counts['frozen']:,}") == listed_parameters(system)


def test_the_residual_is_there_when_it_is_on() -> None:
    config = small("medvisionllama_v3")
    assert plan(make_network(config)).around == (("residual", "block", "block"),)
    assert plan(make_network(with_block(config, residual=False))).around == ()


def test_after_embedding_moves_the_block() -> None:
    config = small("medvisionllama_v3")
    assert plan(make_network(config)).keys == [
        "input",
        "embedding",
        "encoder",
        "mapper1",
        "block",
        "mapper2",
        "decoder",
        "head",
        "output",
    ]
    early = replace(config, model=replace(config.model, block_position="after_embedding"))
    assert plan(make_network(early)).keys == [
        "input",
        "patches",
        "mapper1",
        "block",
        "mapper2",
        "positions",
        "encoder",
        "decoder",
        "head",
        "output",
    ]


def test_words_say_what_the_modules_are() -> None:
    config = small("medvisionllama_v3")
    words = {
        part.key: f"{part.title} {part.detail}"
        for part in plan(make_network(config), config=config).parts
    }
    assert (
        "Frozen LLM block" in words["block"]
        and "smollm2-135m, layer -1, pretrained" in words["block"]
        and "no mask" in words["block"]
    )
    assert "LoRA rank 4" in words["mapper1"] and "64 → 576" in words["mapper1"]
    other = with_block(
        replace(config, model=replace(config.model, mapper="linear")),
        trainable=True,
        causal_mask=True,
        kind="random",
    )
    words = {
        part.key: f"{part.title} {part.detail}"
        for part in plan(make_network(other), config=other).parts
    }
    assert (
        "Trained LLM block" in words["block"]
        and "random, as before training" in words["block"]
        and "causal mask" in words["block"]
    )
    assert "LoRA" not in words["mapper1"]
    nothing = with_block(config, kind="identity")
    assert next(p for p in plan(make_network(nothing)).parts if p.key == "block").title.startswith(
        "Nothing"
    )


def test_version_1_has_its_two_parts() -> None:
    found = plan(make_network(small("medvisionllama_v1")))
    assert "hybrid attention" in found.parts[2].title
    assert (
        found.keys.index("fusion") == found.keys.index("mapper2") + 1
        and ("skip", "encoder", "fusion") in found.around
    )


def test_shapes_are_those_of_a_forward_pass_and_the_network_stays_as_it_is() -> None:
    config = small("vit_baseline")
    network = ViTBaseline(config.model, (16, 16, 16), 2, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shapes = stage_shapes(network, (2, 16, 16, 16))
    real = network.stages(torch.randn(1, 2, 16, 16, 16))
    assert {name: shapes[name] for name in real} == {
        name: tuple(tensor.shape[1:]) for name, tensor in real.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert plan(network).parts[-1].shape == (3, 16, 16, 16)


def test_what_cannot_be_drawn_is_named() -> None:
    with pytest.raises(PartsError, match="Linear has no drawing"):
        plan(nn.Linear(1, 1))
    with pytest.raises(PartsError, match="img_size"):
        plan(make_network(small("cmunext")))
    network = make_network(small("vit_baseline"))
    network.register_parameter("stray", nn.Parameter(torch.zeros(7)))
    with pytest.raises(PartsError, match="accounts for"):
        plan(network)
