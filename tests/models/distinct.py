"""Which systems are networks of their own: those that differ in weights, labels or a rank alone are
one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mvl.core.block_config import LAYER_KINDS, TokenBlockConfig
from mvl.core.config import Config


def network_words(config: Config) -> str:
    """The settings of the model that decide which operators it runs."""
    model, block, plain = config.model, config.model.token_block, TokenBlockConfig()
    if block.kind in LAYER_KINDS:
        block = replace(block, kind=plain.kind)
    same_source = replace(block, source=plain.source, layer=plain.layer, lora_r=plain.lora_r)
    return repr(replace(model, token_block=same_source, r=1, lora_alpha=1))


def distinct(names: list[str], config_of: Callable[[str], Config]) -> list[str]:
    """The first system of each network."""
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(network_words(config_of(name)), name)
    return list(first.values())
