"""What sits between the mappers: one interface, tokens (B, T, width) -> (B, T, width), so that
controls are substitutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mvl.core.block_config import BARE_KINDS, LAYER_KINDS, NATIVE_KINDS, TokenBlockConfig
from mvl.core.config import ConfigError
from mvl.core.shapes import Tokens
from mvl.models.adapters import add_lora
from mvl.models.control_blocks import NativeSizes, TokenBlock, build_control, build_native
from mvl.models.drawn_weights import make_weights, neutral
from mvl.models.layer_attention import choose_attention
from mvl.models.text_guidance import word_rows
from mvl.weights import families, sources
from mvl.weights.layer_check import LayerWeights


class LanguageLayer(TokenBlock):
    """One layer of a language model and the model's final norm, with a residual around both; frozen
    unless the config trains it.

    Frozen weights still pass gradients on to the encoder before them. The layer has no dropout (see
    `families.make_config`), so that it computes the same in training and in evaluation.

    Source: arXiv 2410.02458 v3, V_LLM; mask and rotary positions removed by default, as in
    LM4VisualEncoding (arXiv 2310.12973). Ours = theirs: layer = llm.layers[0], norm = llm.norm (its
    gain stays 1 in the released code: `final_norm="unit"`).
    """

    def __init__(self, config: PreTrainedConfig, block: TokenBlockConfig) -> None:
        super().__init__(config.hidden_size, block.residual)
        self.causal_mask = block.causal_mask
        self.released_positions = block.released_positions
        config._attn_implementation = choose_attention(config, block.causal_mask)
        self.layer = families.make_layer(config, block.layer)
        norm = None if block.final_norm == "none" else families.make_norm(config)
        self.norm: nn.Module = nn.Identity() if norm is None else norm
        self.rotary = families.make_rotary(config) if block.rotary else None
        self.head_dim = families.head_dim(self.layer) if families.family_of(config).rotary else 0
        self.words: nn.Parameter | None = None
        self.requires_grad_(False)

    def positions(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Cosine and sine (1, T, head_dim) of the rotary embedding; of angle zero when rotary
        positions are off.

        Source: released_positions is LLM4Seg's table, one angle of i radians for all of token i,
        sine and cosine swapped as released.
        """
        index = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, T)
        if self.released_positions:
            angle = index[..., None]  # (1, T, 1): the same for every pair of a head
            return angle.sin().to(tokens.dtype), angle.cos().to(tokens.dtype)
        if self.rotary is not None:
            return self.rotary(tokens, index)
        # The layer's code always rotates; by an angle of zero nothing turns.
        zero = tokens.new_zeros(1, tokens.shape[1], self.head_dim)
        return zero + 1, zero

    def branch(self, tokens: Tokens) -> Tokens:
        """The layer's hidden state, normalised; words go in before the tokens and do not come
        out."""
        seen = tokens
        if self.words is not None:
            words = self.words.to(tokens.dtype).expand(tokens.shape[0], -1, -1)  # (B, N, width)
            seen = torch.cat([words, tokens], dim=1)  # (B, N + T, width)
        positions = {"position_embeddings": self.positions(seen)} if self.head_dim else {}
        hidden = self.layer(seen, is_causal=self.causal_mask, **positions)
        return self.norm(hidden[:, seen.shape[1] - tokens.shape[1] :])  # (B, T, width)


def build_token_block(
    block: TokenBlockConfig, seed: int, words: str = "", native: NativeSizes | None = None
) -> TokenBlock:
    """The block that the config names.

    `seed` decides the weights of the kinds that are drawn; `words` are what text guidance looks up;
    `native` are the sizes of the kinds that are trained at the network's own width, which draw from
    torch's generator and need no source.

    Raises:
        SourceError: the source is missing, or a tensor of the layer is missing, extra, misshapen or
            not finite.
        ConfigError: switches that contradict each other or that the family does not have.
    """
    if block.kind not in LAYER_KINDS and block.text_guidance:
        raise ConfigError(
            f"token_block.text_guidance: kind {block.kind} reads no words, they would change"
            " nothing"
        )
    if block.kind in NATIVE_KINDS:
        if native is None:
            raise ConfigError(f"token_block.kind {block.kind} needs the width of a network")
        return build_native(block.kind, native, block.residual)
    config = sources.load_config(block.source)
    check_switches(block, config)
    if block.kind in BARE_KINDS:
        return build_control(block.kind, config.hidden_size, block.residual, seed)
    return build_language_layer(block, config, seed, words)


def build_language_layer(
    block: TokenBlockConfig, config: PreTrainedConfig, seed: int, words: str
) -> LanguageLayer:
    """A layer with its weights; on torch's meta device (`mvl plan`) they are neither read nor
    drawn."""
    sizes_only = torch.get_default_device().type == "meta"
    with torch.device("meta"):  # draws nothing, so that torch's generator stays where it was
        built = LanguageLayer(config, block)
    with torch.device("cpu"):
        if block.rotary:
            built.rotary = families.make_rotary(config)  # its table is computed, not loaded
        if not sizes_only:
            unit_gain = families.family_of(config).unit_gain
            assign(built, make_weights(block, config, seed), block.final_norm, unit_gain)
        if block.text_guidance:
            built.words = nn.Parameter(word_rows(block.source, words), requires_grad=False)
    built.layer.requires_grad_(block.trainable)
    if block.lora_targets:
        add_lora(built.layer, block.lora_targets, block.lora_r, 1)
    return built


def assign(built: LanguageLayer, weights: LayerWeights, final_norm: str, unit_gain: float) -> None:
    """Put checked weights, in float32, into a block that was made on the meta device; strict both
    ways."""
    # Each tensor leaves `weights` as it is converted, so that the layer is never held twice.
    layer = {name: weights.layer.pop(name).float() for name in list(weights.layer)}
    built.layer.load_state_dict(layer, strict=True, assign=True)
    if not isinstance(built.norm, nn.Identity):
        norm = {name: tensor.float() for name, tensor in weights.final_norm.items()}
        if final_norm == "unit":
            norm = {name: neutral(name, tuple(t.shape), unit_gain) for name, t in norm.items()}
        built.norm.load_state_dict(norm, strict=True, assign=True)
    built.requires_grad_(False)


def check_switches(block: TokenBlockConfig, config: PreTrainedConfig) -> None:
    """Raise ConfigError for switches that contradict each other or that the model's family does not
    have."""
    family = families.family_of(config)
    learned = (
        f"{config.model_type} has learned positions, added before its layer 0; its layers have none"
        " to switch on"
    )
    refused = {
        f"rotary: {learned}": block.rotary and not family.rotary,
        f"released_positions: {learned}": block.released_positions and not family.rotary,
        "rotary and released_positions exclude each other": (
            block.rotary and block.released_positions
        ),
        f"final_norm loaded: {config.model_type} has no final norm; its layer ends in its own": (
            block.final_norm == "loaded" and not family.norm
        ),
        "trainable and lora_targets exclude each other": (
            block.trainable and bool(block.lora_targets)
        ),
        "words are given, but text_guidance is off": bool(block.words) and not block.text_guidance,
        "lora_r must be at least 1": block.lora_r < 1,
    }
    for message, applies in refused.items():
        if applies:
            raise ConfigError(f"token_block.{message}")
