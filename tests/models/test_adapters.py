"""LoRA goes where it is told, starts as nothing, and leaves the rest frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import ModelConfig
from mvl.models.adapters import Mapper, add_lora, build_mappers


@pytest.mark.parametrize("kind", ["lora", "linear"])
def test_a_mapper_changes_the_width(kind: str) -> None:
    assert Mapper(6, 10, kind, 2, 1)(torch.randn(1, 3, 6)).shape == (1, 3, 10)


def test_the_scale_is_alpha_over_r() -> None:
    torch.manual_seed(0)
    mapper, tokens = Mapper(6, 6, "lora", 4, 1), torch.randn(1, 3, 6)
    with torch.no_grad():
        mapper.linear.lora_B["default"].weight.normal_()
    update = (
        tokens @ mapper.linear.lora_A["default"].weight.T @ mapper.linear.lora_B["default"].weight.T
    )
    assert torch.allclose(mapper(tokens), mapper.linear.base_layer(tokens) + update / 4, atol=1e-5)


def test_named_layers_get_adapters_and_the_rest_is_frozen() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    add_lora(layers, ("b",), 2, 1)
    assert {name.split(".")[0] for name, p in layers.named_parameters() if p.requires_grad} == {"b"}
    added = layers["b"]
    assert (added.r["default"], added.lora_alpha["default"], added.scaling["default"]) == (
        2,
        1,
        0.5,
    )
    assert isinstance(added.lora_dropout["default"], nn.Identity)
    inner = nn.ModuleDict({"x": nn.ModuleDict({"z": nn.Linear(4, 4), "a": nn.Linear(4, 4)})})
    with pytest.raises(ValueError) as caught:
        add_lora(inner, ("z", "d", "c"), 2, 1)
    assert str(caught.value) == "LoRA target 'c' is not among the layers a, z"


@pytest.mark.parametrize("kind", ["lora", "linear"])
def test_mappers_lead_to_the_blocks_width_and_back(kind: str) -> None:
    model = ModelConfig(hidden_size=6, mapper=kind, r=3, lora_alpha=2)
    first, second = build_mappers(model, 10)
    for mapper, (width, out) in ((first, (6, 10)), (second, (10, 6))):
        trained = {n: p.shape for n, p in mapper.named_parameters() if p.requires_grad}
        if kind == "linear":
            assert trained == {"linear.weight": (out, width)}
        else:
            assert trained == {
                "linear.base_layer.bias": (out,),
                "linear.lora_A.default.weight": (3, width),
                "linear.lora_B.default.weight": (out, 3),
            }
            assert mapper.linear.scaling["default"] == 2 / 3
    native = replace(model, token_block=TokenBlockConfig(kind="attention"))
    assert [type(mapper) for mapper in build_mappers(native, 6)] == [nn.Identity] * 2
