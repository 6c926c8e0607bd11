"""The kinds of a block: each has one place in the lists that the package decides by, and each
builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mvl.core import block_config
from mvl.core.block_config import BARE_KINDS, KINDS, LAYER_KINDS, NATIVE_KINDS, TokenBlockConfig
from mvl.core.config import ConfigError, build
from mvl.core.config_values import CHOICES
from mvl.models.control_blocks import NativeSizes
from mvl.models.token_blocks import LanguageLayer, build_token_block


def test_each_kind_is_in_one_list_and_is_what_a_config_may_say() -> None:
    assert CHOICES["kind"] == KINDS and len(set(KINDS)) == len(KINDS)
    assert set(LAYER_KINDS) | set(NATIVE_KINDS) | set(BARE_KINDS) == set(KINDS)
    with pytest.raises(ConfigError, match=r"did you mean 'noise'"):
        build(TokenBlockConfig, {"kind": "noize"}, "token_block")


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_kind_says_what_it_holds(kind: str, tmp_path: Path) -> None:
    """Only layers need the source's tensors: a folder with sizes alone is enough for the rest,
    nothing at all for native ones."""
    if kind in LAYER_KINDS:
        return
    source = tmp_path / "nowhere"
    if kind in BARE_KINDS:
        source = tmp_path
        (source / "config.json").write_text(
            '{"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 2,'
            ' "num_attention_heads": 4}'
        )
    block = build_token_block(
        TokenBlockConfig(kind=kind, source=str(source)), 0, native=NativeSizes(16, 2, 32, 0.0)
    )
    assert not isinstance(block, LanguageLayer)
    assert block.width == (16 if kind in NATIVE_KINDS else 48)
    assert (sum(p.numel() for p in block.parameters()) > 0) == (kind in NATIVE_KINDS)


def test_every_kind_is_explained_in_the_help() -> None:
    text = (
        Path(block_config.__file__)
        .read_text()
        .split("class TokenBlockConfig")[1]
        .split("source: str")[0]
    )
    assert [kind for kind in KINDS if not re.search(rf"\b{kind}\b", text)] == []
