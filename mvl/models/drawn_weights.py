"""Weights of a language model's layer that are drawn: as before its training, or the pretrained
tensors with other values, drawn or rounded.

Every draw is made on the CPU and is a function of the seed, so that it is the same on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from mvl.core.block_config import TokenBlockConfig
from mvl.core.seeds import draw_seed
from mvl.weights import families, sources
from mvl.weights.layer_check import LayerWeights, expected_shapes, norm_shapes

REDRAWN = ("random_matched", "shuffled", "xavier")
"Kinds that start from the pretrained tensors and replace their values."
BLOCK, LEVELS = 32, 15
"Values that share a step in Q4_1, and steps from the smallest to the largest of them."


def make_weights(block: TokenBlockConfig, config: PreTrainedConfig, seed: int) -> LayerWeights:
    """The tensors that the block's kind asks for."""
    if block.kind == "random":
        return random_layer(config, seed)
    weights = sources.load_layer(block.source, block.layer)
    if block.kind == "rounded":
        return rounded_layer(weights)
    return redrawn_layer(weights, block.kind, seed) if block.kind in REDRAWN else weights


def neutral(name: str, shape: tuple[int, ...], unit_gain: float) -> Tensor:
    """Values of a bias or of a norm's weight that change nothing: 0, and the gain that scales by
    1."""
    return torch.zeros(shape) if name.endswith("bias") else torch.full(shape, unit_gain)


def random_layer(config: PreTrainedConfig, seed: int) -> LayerWeights:
    """Weights as the model had them before its training: normal with the config's
    `initializer_range`, biases 0, norms that scale by 1."""
    generator = torch.Generator().manual_seed(draw_seed(seed, "token_block"))
    gain = families.family_of(config).unit_gain
    layer = {}
    for name, shape in sorted(expected_shapes(config).items()):
        if len(shape) == 2:
            layer[name] = torch.randn(shape, generator=generator) * config.initializer_range
        else:
            layer[name] = neutral(name, shape, gain)
    norm = {name: neutral(name, shape, gain) for name, shape in norm_shapes(config).items()}
    return LayerWeights(layer, norm)


def redrawn_layer(weights: LayerWeights, kind: str, seed: int) -> LayerWeights:
    """The pretrained tensors with other values, a function of (seed, kind, tensor name).

    random_matched: normal with each tensor's mean and variance; shuffled: each tensor's values in
    another order; xavier: linear maps Xavier-uniform, their biases 0, norms as they were.

    Source: xavier is LLM4Seg's `--need_init` (arXiv 2506.18034, released code).
    """
    linear_maps = {
        name.removesuffix(".weight") for name, tensor in weights.layer.items() if tensor.dim() == 2
    }

    def redraw(name: str, tensor: Tensor) -> Tensor:
        if kind != "xavier":
            return redrawn_tensor(name, tensor, kind, seed)
        if tensor.dim() == 2:
            generator = generator_of(name, kind, seed)
            return nn.init.xavier_uniform_(torch.empty(tensor.shape), generator=generator)
        is_bias_of_a_map = name.removesuffix(".bias") in linear_maps
        return torch.zeros_like(tensor) if is_bias_of_a_map else tensor

    layer = {name: redraw(name, tensor) for name, tensor in weights.layer.items()}
    norm = {name: redraw(f"norm.{name}", tensor) for name, tensor in weights.final_norm.items()}
    return LayerWeights(layer, norm)


def rounded_layer(weights: LayerWeights) -> LayerWeights:
    """The pretrained layer as a file in Q4_1 would give it back: its matrices rounded, the rest as
    it was."""
    layer = {
        name: round_q4_1(tensor) if tensor.dim() == 2 else tensor
        for name, tensor in weights.layer.items()
    }
    return LayerWeights(layer, weights.final_norm)


def round_q4_1(matrix: Tensor) -> Tensor:
    """A matrix (rows, columns) rounded to Q4_1 and back: 32 neighbours of a row share a smallest
    value and a step, both kept as halves, and each is one of 16 levels. The last block of a row may
    be shorter here; in a file it cannot.

    Source: GGUF's type Q4_1 (ggml), the type of SmolLM2-135M's file.
    """
    # Repeating the last value fills the last block and moves neither its smallest nor its largest.
    filled = functional.pad(matrix, (0, -matrix.shape[1] % BLOCK), mode="replicate")
    blocks = filled.reshape(matrix.shape[0], -1, BLOCK)
    low = blocks.amin(-1, keepdim=True)
    step = ((blocks.amax(-1, keepdim=True) - low) / LEVELS).half().float()
    low = low.half().float()
    # A block of equal values has step 0; any other step gives back the smallest value there.
    level = ((blocks - low) / step.where(step > 0, 1.0)).round().clamp(0, LEVELS)
    return (level * step + low).reshape(filled.shape)[:, : matrix.shape[1]].contiguous()


def redrawn_tensor(name: str, tensor: Tensor, kind: str, seed: int) -> Tensor:
    """A tensor's values in another order (`shuffled`), or normal ones of its mean and variance
    (`random_matched`), on the CPU."""
    generator = generator_of(name, kind, seed)
    if kind == "shuffled":
        order = torch.randperm(tensor.numel(), generator=generator)
        return tensor.flatten()[order].reshape(tensor.shape)
    variance, mean = torch.var_mean(tensor.float(), correction=0)
    return torch.randn(tensor.shape, generator=generator) * variance.sqrt() + mean


def generator_of(name: str, kind: str, seed: int) -> torch.Generator:
    """The generator of one tensor's values: what one tensor draws moves no other's."""
    return torch.Generator().manual_seed(draw_seed(seed, "token_block", kind, name))
