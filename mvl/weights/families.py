"""Families of language models: transformers' own layer classes, and the names under which
checkpoints store their tensors."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from mvl.core.config import did_you_mean
from mvl.core.errors import MvlError

Settings = PreTrainedConfig | dict[str, Any]
"A model's config, or what its `config.json` holds."


class SourceError(MvlError, RuntimeError):
    """A language-model source is missing or its tensors are not what its config says; names the
    file and the remedy."""


@dataclass(frozen=True)
class Family:
    """One model type of transformers; names are patterns, without the prefix that a checkpoint may
    put before them."""

    classes: str
    "Prefix of the class names in transformers: Llama -> LlamaDecoderLayer."
    layer_class: str = "DecoderLayer"
    "Rest of the layer's class name."
    norm_class: str = "RMSNorm"
    """Rest of the final norm's class name; LayerNorm is torch's; empty: the family has no final
    norm."""
    rotary: bool = True
    "Positions enter by rotation inside the layer; else learned positions are added before layer 0."
    prefix: str = r"(?:model\.)?"
    "What checkpoints put before every name, or leave out."
    layers: str = "layers"
    "Where the layers lie."
    norm: str = "norm"
    "Where the final norm lies."
    embedding: str = "embed_tokens"
    "Where the embedding matrix lies."
    unit_gain: float = 1.0
    "Stored value of a norm's weight that scales by 1 (Gemma's norms scale by 1 + weight)."
    embedding_scale: Callable[[Any], float] = lambda config: 1.0
    "What the model multiplies its embedding rows with."
    renamed: tuple[tuple[str, str], ...] = ()
    "Endings of old checkpoints and today's."


def _root(config: Any) -> float:
    return config.hidden_size**0.5


FAMILIES = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "gemma": Family("Gemma", unit_gain=0.0, embedding_scale=_root),
    "gemma2": Family("Gemma2", unit_gain=0.0, embedding_scale=_root),
    "biogpt": Family(
        "BioGpt",
        norm_class="LayerNorm",
        rotary=False,
        prefix=r"(?:biogpt\.)?",
        norm="layer_norm",
        embedding_scale=lambda config: _root(config) if config.scale_embedding else 1.0,
    ),
    "bert": Family(
        "Bert",
        "Layer",
        "",
        False,
        r"(?:bert\.)?",
        r"encoder\.layer",
        "",
        r"embeddings\.word_embeddings",
        renamed=((".gamma", ".weight"), (".beta", ".bias")),
    ),
}
"Model type, as `config.json` names it -> family."

DROPOUTS = (
    "attention_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "activation_dropout",
)
"Rates that a config may have; a block has none."

IGNORED = ("rotary_emb.inv_freq", "self_attn.masked_bias")
"Endings of tensors that old checkpoints store and that the config decides."


def find_family(model_type: str, where: str = "config.json") -> Family:
    """The family of a model type.

    Raises:
        SourceError: not a known one; names them.
    """
    if model_type not in FAMILIES:
        hint = did_you_mean(model_type, list(FAMILIES))
        raise SourceError(
            f"{where}: model_type {model_type!r} is not supported{hint}; use a checkpoint of one of"
            f" {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: Settings) -> Family:
    """The family of a config; SourceError when it is not a known one."""
    return find_family(
        str(config.get("model_type")) if isinstance(config, dict) else config.model_type
    )


def layer_count(config: Settings) -> int:
    """Layers of the model."""
    return int(
        config["num_hidden_layers"] if isinstance(config, dict) else config.num_hidden_layers
    )


def modeling(config: PreTrainedConfig) -> Any:
    """The module of transformers that holds the family's classes."""
    return importlib.import_module(
        f"transformers.models.{config.model_type}.modeling_{config.model_type}"
    )


def make_config(settings: dict[str, Any], where: str) -> PreTrainedConfig:
    """The config of transformers from what `config.json` holds; dropout inside the layer is off.

    Raises:
        SourceError: a model type that is not known, or one whose layers are code in the repository.
    """
    from transformers import CONFIG_MAPPING

    find_family(str(settings.get("model_type")), where)
    if settings.get("auto_map"):
        raise SourceError(
            f"{where}: asks for code of its repository (auto_map:"
            f" {', '.join(map(str, settings['auto_map']))}), which is never run; use a checkpoint"
            " whose layers are transformers' own, or take auto_map out of its config.json"
        )
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return config


def make_layer(config: PreTrainedConfig, layer: int) -> nn.Module:
    """Transformers' own layer class, as layer number `layer` of the model, on torch's device."""
    family = family_of(config)
    return getattr(modeling(config), family.classes + family.layer_class)(
        config, layer_idx=layer % config.num_hidden_layers
    )


def head_dim(layer: nn.Module) -> int:
    """Width of one attention head of a layer with rotary positions."""
    return int(layer.get_submodule("self_attn").head_dim)  # type: ignore[arg-type]


def make_norm(config: PreTrainedConfig) -> nn.Module | None:
    """The model's final norm; None where the layer itself ends in one (BERT)."""
    family = family_of(config)
    if family.norm_class == "LayerNorm":
        return nn.LayerNorm(config.hidden_size)
    return (
        getattr(modeling(config), family.classes + family.norm_class)(
            config.hidden_size, eps=config.rms_norm_eps
        )
        if family.norm
        else None
    )


def make_rotary(config: PreTrainedConfig) -> nn.Module:
    """The model's rotary embedding: (tokens, index) -> cosine and sine.

    Raises:
        SourceError: positions of this family are learned and added before layer 0.
    """
    family = family_of(config)
    if not family.rotary:
        raise SourceError(
            f"{config.model_type} adds learned positions before its layer 0: its layers have no"
            " rotary positions to switch on; set token_block.rotary and released_positions to"
            " false"
        )
    return getattr(modeling(config), f"{family.classes}RotaryEmbedding")(config)


def layer_name(config: Settings, layer: int, stored: str) -> str | None:
    """The name inside the layer class of a tensor that a checkpoint stores as `stored`; None: not
    of that layer."""
    family = family_of(config)
    found = re.fullmatch(
        rf"{family.prefix}{family.layers}\.{layer % layer_count(config)}\.(.+)", stored
    )
    if not found or found[1].endswith(IGNORED):
        return None
    return next(
        (found[1].removesuffix(old) + new for old, new in family.renamed if found[1].endswith(old)),
        found[1],
    )


def norm_name(config: Settings, stored: str) -> str | None:
    """`weight` or `bias` when a checkpoint stores the final norm's tensor as `stored`."""
    family = family_of(config)
    found = (
        re.fullmatch(rf"{family.prefix}{family.norm}\.(weight|bias)", stored)
        if family.norm
        else None
    )
    return found[1] if found else None


def is_embedding(config: Settings, stored: str) -> bool:
    """Whether a checkpoint stores the embedding matrix (vocabulary, width) as `stored`."""
    family = family_of(config)
    return re.fullmatch(rf"{family.prefix}{family.embedding}\.weight", stored) is not None


def wanted(config: Settings, layer: int) -> Callable[[str], bool]:
    """Which stored names one layer needs: its own tensors and the final norm's."""
    return lambda stored: (
        layer_name(config, layer, stored) is not None or norm_name(config, stored) is not None
    )


def embedding_scale(config: PreTrainedConfig) -> float:
    """What the model multiplies its embedding rows with before layer 0."""
    return float(family_of(config).embedding_scale(config))
