"""Every family's block is the model's own layer: fed with the hidden state before a layer, it gives
the hidden state after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import ConfigError
from mvl.models.token_blocks import build_token_block
from mvl.weights import families
from mvl.weights.families import (
    FAMILIES,
    SourceError,
    embedding_scale,
    is_embedding,
    layer_name,
    make_config,
    norm_name,
    wanted,
)
from mvl.weights.sources import load_config, load_rows

AS_TRAINED = TokenBlockConfig(residual=False, causal_mask=True, rotary=True, final_norm="none")
TOKENS = 13


def as_trained(family: str) -> TokenBlockConfig:
    """The switches under which a family's models were trained."""
    return replace(AS_TRAINED, rotary=FAMILIES[family].rotary, causal_mask=family != "bert")


def full_model(folder: Path) -> torch.nn.Module:
    """The whole model, in transformers' own plain attention."""
    return AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_block_is_the_full_models_layer(tiny: Callable[[str], Path], family: str) -> None:
    folder = tiny(family)
    assert len(list(folder.glob("*.safetensors"))) > 1
    with torch.no_grad():
        states = full_model(folder)(
            torch.randint(1, 64, (2, TOKENS)), output_hidden_states=True
        ).hidden_states
    plain = replace(as_trained(family), source=str(folder))
    for layer in (0, 1):
        block = build_token_block(replace(plain, layer=layer), seed=0)
        assert (block(states[layer]) - states[layer + 1]).abs().max() < 1e-4
    last = build_token_block(
        replace(plain, final_norm="loaded" if FAMILIES[family].norm else "none"), seed=0
    )
    assert (last(states[2]) - states[3]).abs().max() < 1e-4


def test_minilm_with_its_real_weights(minilm: Path) -> None:
    with torch.no_grad():
        states = full_model(minilm)(
            torch.randint(1000, 30000, (1, 24)), output_hidden_states=True
        ).hidden_states
    for layer in (0, 3, 5):
        block = build_token_block(
            replace(as_trained("bert"), source="minilm-l6", layer=layer), seed=0
        )
        assert (block(states[layer]) - states[layer + 1]).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_rows_are_the_full_models(tiny: Callable[[str], Path], family: str) -> None:
    folder, ids = tiny(family), [3, 60, 3]
    rows = load_rows(str(folder), ids) * embedding_scale(load_config(str(folder)))
    assert (full_model(folder).get_input_embeddings()(torch.tensor(ids)) - rows).abs().max() < 1e-5


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].norm])
def test_unit_norm_scales_by_one(tiny: Callable[[str], Path], family: str) -> None:
    block = build_token_block(
        replace(as_trained(family), source=str(tiny(family)), final_norm="unit"), seed=0
    )
    assert torch.allclose(
        block(torch.randn(1, TOKENS, 32)).square().mean(-1), torch.ones(1, TOKENS), atol=1e-2
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_inside_the_layer_is_off(tiny: Callable[[str], Path], family: str) -> None:
    block, tokens = (
        build_token_block(replace(as_trained(family), source=str(tiny(family))), seed=0).train(),
        torch.randn(1, TOKENS, 32),
    )
    assert torch.equal(block(tokens), block(tokens))


@pytest.mark.parametrize(
    ("family", "stored", "inner"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "mlp.up_proj.weight"),
        ("llama", "layers.1.mlp.up_proj.weight", "mlp.up_proj.weight"),
        ("llama", "model.layers.11.mlp.up_proj.weight", None),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq", None),
        ("llama", "vision.layers.1.mlp.up_proj.weight", None),
        ("biogpt", "biogpt.layers.1.fc1.bias", "fc1.bias"),
        (
            "bert",
            "bert.encoder.layer.1.attention.output.LayerNorm.gamma",
            "attention.output.LayerNorm.weight",
        ),
        ("bert", "encoder.layer.1.output.LayerNorm.beta", "output.LayerNorm.bias"),
    ],
)
def test_names_of_a_layer(family: str, stored: str, inner: str | None) -> None:
    config = {"model_type": family, "num_hidden_layers": 12}
    assert layer_name(config, 1, stored) == layer_name(config, -11, stored) == inner
    assert wanted(config, 1)(stored) == (inner is not None)


def test_names_beside_the_layers() -> None:
    def config(family):
        return {"model_type": family, "num_hidden_layers": 2}

    assert (
        norm_name(config("gemma"), "model.norm.weight") == "weight"
        and norm_name(config("biogpt"), "biogpt.layer_norm.bias") == "bias"
    )
    assert (
        norm_name(config("bert"), "bert.embeddings.LayerNorm.weight") is None
        and norm_name(config("llama"), "xnormx.weight") is None
    )
    assert is_embedding(config("bert"), "bert.embeddings.word_embeddings.weight") and is_embedding(
        config("llama"), "embed_tokens.weight"
    )
    assert not is_embedding(config("bert"), "bert.embeddings.position_embeddings.weight")


def test_learned_positions_are_no_switch_of_the_layer(tiny: Callable[[str], Path]) -> None:
    for family in ("bert", "biogpt"):
        for switch in ("rotary", "released_positions"):
            with pytest.raises(ConfigError, match=f"{switch}: {family} has learned positions"):
                build_token_block(TokenBlockConfig(source=str(tiny(family)), **{switch: True}), 0)
        with pytest.raises(SourceError, match="learned positions"):
            families.make_rotary(load_config(str(tiny(family))))
    with pytest.raises(ConfigError, match="bert has no final norm"):
        build_token_block(TokenBlockConfig(source=str(tiny("bert")), final_norm="loaded"), 0)


def test_an_unknown_family_is_refused_with_a_hint() -> None:
    with pytest.raises(
        SourceError,
        match=(
            "some/config.json: model_type 'gemma9' is not supported.*did you mean.*use a checkpoint"
            " of one of llama"
        ),
    ):
        make_config({"model_type": "gemma9"}, "some/config.json")
