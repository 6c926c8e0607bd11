"""What sits between the mappers: one interface, tokens (B, T, width) -> (B, T, width), so that controls are substitutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from mvl.config import TokenBlockConfig
from mvl.models import llm_sources
from mvl.models.adapters import add_lora
from mvl.runs import draw_seed
from mvl.shapes import Tokens


class LanguageLayer(nn.Module):
    """One frozen decoder layer of a language model, the model's final norm, and a residual around both.

    Source: arXiv 2410.02458 v3, V_LLM; mask and rotary positions removed by default, as in LM4VisualEncoding (arXiv 2310.12973).
    Ours = theirs: layer = llm.layers[0], norm = llm.norm (its gain stays 1 in the released code: `final_norm="unit"`).
    """

    def __init__(self, config: LlamaConfig, block: TokenBlockConfig) -> None:
        super().__init__()
        self.width, self.residual, self.causal_mask = config.hidden_size, block.residual, block.causal_mask
        config._attn_implementation = "sdpa"
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self.norm: nn.Module = nn.Identity() if block.final_norm == "none" else LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary = LlamaRotaryEmbedding(config) if block.rotary else None
        self.head_dim = self.layer.self_attn.head_dim
        self.requires_grad_(False)

    def positions(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Cosine and sine (1, T, head_dim) of the rotary embedding; of angle zero when rotary positions are off."""
        index = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if self.rotary is not None:
            return self.rotary(tokens, index)
        zero = tokens.new_zeros(1, tokens.shape[1], self.head_dim)
        return zero + 1, zero

    def forward(self, tokens: Tokens) -> Tokens:
        """The layer's hidden state, normalised, plus the input."""
        hidden = self.layer(tokens, position_embeddings=self.positions(tokens), is_causal=self.causal_mask)
        hidden = self.norm(hidden)
        return hidden + tokens if self.residual else hidden


class MatchedMLP(nn.Module):
    """GELU and a parameter-free LayerNorm in the layer's place: exactly as many trained parameters as the frozen block, none.

    Source: LM4VisualEncoding (arXiv 2310.12973), "MLP" control.
    """

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.width, self.residual = width, residual
        self.mlp = nn.Sequential(nn.GELU(), nn.LayerNorm(width, elementwise_affine=False))

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens after the nonlinearity, plus the input."""
        return self.mlp(tokens) + tokens if self.residual else self.mlp(tokens)


class Nothing(nn.Module):
    """Identity: what remains of the hybrid are the two mappers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens themselves."""
        return tokens


def build_token_block(block: TokenBlockConfig, seed: int) -> LanguageLayer | MatchedMLP | Nothing:
    """The block that the config names. `seed` decides the weights of `kind="random"` alone.

    Raises:
        SourceError: the source is missing, or a tensor of the layer is missing, extra, misshapen or not finite.
    """
    config = llm_sources.load_config(block.source)
    if block.kind == "identity":
        return Nothing(config.hidden_size)
    if block.kind == "mlp":
        return MatchedMLP(config.hidden_size, block.residual)
    with torch.device("meta"):
        built = LanguageLayer(config, block)
    built.rotary = LlamaRotaryEmbedding(config) if block.rotary else None
    weights = random_layer(config, seed) if block.kind == "random" else llm_sources.load_layer(block.source, block.layer)
    assign(built, weights, block.final_norm)
    if block.lora_targets:
        add_lora(built.layer, block.lora_targets, block.lora_r, 1)
    return built


def random_layer(config: LlamaConfig, seed: int) -> llm_sources.LayerWeights:
    """Weights as the language model had them before its training: normal with the config's `initializer_range`, gains 1."""
    generator = torch.Generator().manual_seed(draw_seed(seed, "token_block"))
    draw = lambda shape: torch.randn(shape, generator=generator) * config.initializer_range
    shapes = llm_sources.expected_shapes(config)
    tensors = {name: draw(shape) if len(shape) == 2 else torch.ones(shape) for name, shape in sorted(shapes.items())}
    return llm_sources.LayerWeights(tensors, torch.ones(config.hidden_size))


def assign(built: LanguageLayer, weights: llm_sources.LayerWeights, final_norm: str) -> None:
    """Put checked weights into a block that was made on the meta device; strict both ways."""
    built.layer.load_state_dict(weights.layer, strict=True, assign=True)
    if final_norm != "none":
        gain = weights.final_norm if final_norm == "loaded" else torch.ones_like(weights.final_norm)
        built.norm.load_state_dict({"weight": gain}, strict=True, assign=True)
    built.requires_grad_(False)
