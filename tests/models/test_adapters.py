"""LoRA goes where it is told, starts as nothing, and leaves the rest frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvl.models.adapters import Mapper, add_lora


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
    with pytest.raises(ValueError, match="'c' is not among the layers"):
        add_lora(nn.ModuleDict({"a": nn.Linear(4, 4)}), ("c",), 2, 1)
