"""What sits between the mappers: one interface, tokens (B, T, width) -> (B, T, width), so that
controls are substitutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mvl.core.block_config import BARE_KINDS, LAYER_KINDS, NATIVE_KINDS, TokenBlockConfig
from mvl.core.config import ConfigError
from mvl.core.seeds import draw_seed
from mvl.core.shapes import Tokens
from mvl.models.adapters import add_lora
from mvl.models.control_blocks import NativeSizes, TokenBlock, build_control, build_native
from mvl.models.layer_attention import choose_attention
from mvl.models.text_guidance import word_rows
from mvl.weights import families, sources
from mvl.weights.sources import LayerWeights


class LanguageLayer(TokenBlock):
    """One layer of a language model, the model's final norm, and a residual around both; frozen
    unless the config trains it.

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
        index = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if self.released_positions:
            return index[..., None].sin().to(tokens.dtype), index[..., None].cos().to(tokens.dtype)
        if self.rotary is not None:
            return self.rotary(tokens, index)
        zero = tokens.new_zeros(1, tokens.shape[1], self.head_dim)
        return zero + 1, zero

    def branch(self, tokens: Tokens) -> Tokens:
        """The layer's hidden state, normalised; words go in before the tokens and do not come out."""
        seen = tokens
        if self.words is not None:
            seen = torch.cat(
                [self.words.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1
            )
        positions = {} if not self.head_dim else {"position_embeddings": self.positions(seen)}
        hidden = self.layer(seen, is_causal=self.causal_mask, **positions)
        return self.norm(hidden[:, seen.shape[1] - tokens.shape[1] :])


REDRAWN = ("random_matched", "shuffled", "xavier")
"Kinds that start from the pretrained tensors and replace their values."


def build_token_block(
    block: TokenBlockConfig, seed: int, words: str = "", native: NativeSizes | None = None
) -> TokenBlock:
    """The block that the config names. `seed` decides the weights of the kinds that are drawn;
    `words` are what text guidance looks up.

    `native` are the sizes of the kinds that are trained at the network's own width; they draw from
    torch's generator and need no source.

    On torch's meta device (`mvl plan`) the tensors are neither read nor drawn.

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
    sketch = torch.get_default_device().type == "meta"
    with torch.device("meta"):
        built = LanguageLayer(config, block)
    with torch.device("cpu"):
        built.rotary = families.make_rotary(config) if block.rotary else None
        if not sketch:
            assign(
                built,
                make_weights(block, config, seed),
                block.final_norm,
                families.family_of(config).unit_gain,
            )
        if block.text_guidance:
            built.words = nn.Parameter(word_rows(block.source, words), requires_grad=False)
    built.layer.requires_grad_(block.trainable)
    if block.lora_targets:
        add_lora(built.layer, block.lora_targets, block.lora_r, 1)
    return built


def check_switches(block: TokenBlockConfig, config: PreTrainedConfig) -> None:
    """Raise ConfigError for switches that contradict each other or that the model's family does not
    have."""
    family = families.family_of(config)
    learned = (
        f"{config.model_type} has learned positions, added before its layer 0; its layers have none"
        " to switch on"
    )
    rules = {
        f"rotary: {learned}": family.rotary or not block.rotary,
        f"released_positions: {learned}": family.rotary or not block.released_positions,
        "rotary and released_positions exclude each other": not (
            block.rotary and block.released_positions
        ),
        f"final_norm loaded: {config.model_type} has no final norm; its layer ends in its own": (
            bool(family.norm) or block.final_norm != "loaded"
        ),
        "trainable and lora_targets exclude each other": not (
            block.trainable and block.lora_targets
        ),
        "words are given, but text_guidance is off": block.text_guidance or not block.words,
        "lora_r must be at least 1": block.lora_r >= 1,
    }
    for message, holds in rules.items():
        if not holds:
            raise ConfigError(f"token_block.{message}")


def make_weights(block: TokenBlockConfig, config: PreTrainedConfig, seed: int) -> LayerWeights:
    """The tensors that the block's kind asks for."""
    if block.kind == "random":
        return random_layer(config, seed)
    weights = sources.load_layer(block.source, block.layer)
    return redrawn_layer(weights, block.kind, seed) if block.kind in REDRAWN else weights


def random_layer(config: PreTrainedConfig, seed: int) -> LayerWeights:
    """Weights as the model had them before its training: normal with the config's
    `initializer_range`, biases 0, norms that scale by 1."""
    generator = torch.Generator().manual_seed(draw_seed(seed, "token_block"))

    def draw(shape):
        return torch.randn(shape, generator=generator) * config.initializer_range

    gain = families.family_of(config).unit_gain

    def start(name, shape):
        return torch.zeros(shape) if name.endswith("bias") else torch.full(shape, gain)

    shapes = sources.expected_shapes(config)
    tensors = {
        name: draw(shape) if len(shape) == 2 else start(name, shape)
        for name, shape in sorted(shapes.items())
    }
    return LayerWeights(
        tensors, {name: start(name, shape) for name, shape in sources.norm_shapes(config).items()}
    )


def redrawn_layer(weights: LayerWeights, kind: str, seed: int) -> LayerWeights:
    """The pretrained tensors with other values, a function of (seed, kind, tensor name).

    random_matched: normal with each tensor's mean and variance; shuffled: each tensor's values in
    another order; xavier: linear maps Xavier-uniform, their biases 0, norms as they were.

    Source: xavier is LLM4Seg's `--need_init` (arXiv 2506.18034, released code).
    """
    matrices = {
        name.removesuffix(".weight") for name, tensor in weights.layer.items() if tensor.dim() == 2
    }

    def redraw(name: str, tensor: Tensor) -> Tensor:
        if kind != "xavier":
            return redrawn_tensor(name, tensor, kind, seed)
        generator = generator_of(name, kind, seed)
        if tensor.dim() == 2:
            return nn.init.xavier_uniform_(torch.empty(tensor.shape), generator=generator)
        return (
            torch.zeros_like(tensor)
            if name.endswith(".bias") and name.removesuffix(".bias") in matrices
            else tensor
        )

    layer = {name: redraw(name, tensor) for name, tensor in weights.layer.items()}
    return LayerWeights(
        layer, {name: redraw(f"norm.{name}", tensor) for name, tensor in weights.final_norm.items()}
    )


def generator_of(name: str, kind: str, seed: int) -> torch.Generator:
    """The generator that a tensor of a redrawn kind draws from, on the CPU."""
    return torch.Generator().manual_seed(draw_seed(seed, "token_block", kind, name))


def redrawn_tensor(name: str, tensor: Tensor, kind: str, seed: int) -> Tensor:
    """A tensor's values in another order (`shuffled`), or normal ones of its mean and variance
    (`random_matched`), on the CPU."""
    generator = generator_of(name, kind, seed)
    if kind == "shuffled":
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(
            tensor.shape
        )
    variance, mean = torch.var_mean(tensor.float(), correction=0)
    return torch.randn(tensor.shape, generator=generator) * variance.sqrt() + mean


def assign(
    built: LanguageLayer, weights: LayerWeights, final_norm: str, unit_gain: float = 1.0
) -> None:
    """Put checked weights, in float32, into a block that was made on the meta device; strict both
    ways. Takes the tensors out of `weights`."""
    layer = {name: weights.layer.pop(name).float() for name in list(weights.layer)}
    built.layer.load_state_dict(layer, strict=True, assign=True)
    if not isinstance(built.norm, nn.Identity):

        def unit(name, tensor):
            return (
                torch.zeros_like(tensor) if name == "bias" else torch.full_like(tensor, unit_gain)
            )

        norm = {
            name: tensor.float() if final_norm == "loaded" else unit(name, tensor.float())
            for name, tensor in weights.final_norm.items()
        }
        built.norm.load_state_dict(norm, strict=True, assign=True)
    built.requires_grad_(False)
