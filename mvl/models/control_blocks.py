"""What every token block offers, and the blocks that hold no layer of a language model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mvl.core.seeds import draw_seed
from mvl.core.shapes import Tokens
from mvl.models.attention import attention
from mvl.models.vit import ViTBlock


class TokenBlock(nn.Module, ABC):
    """A block between the mappers takes tokens x (B, T, width) to h + x with its residual, and to h
    without.

    A subclass gives h as `branch`; what is measured and knocked out of a trained network is h. The
    residual lets a network start from what its encoder says, whatever the block makes of it.
    """

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.width = width
        self.residual = residual

    @abstractmethod
    def branch(self, tokens: Tokens) -> Tokens:
        """The block's own part h, (B, T, width), without the residual around it."""

    def join(self, branch: Tokens, tokens: Tokens) -> Tokens:
        """What leaves the block when its own part is `branch`."""
        return branch + tokens if self.residual else branch

    def forward(self, tokens: Tokens) -> Tokens:
        """The block's own part, plus the input where there is a residual."""
        return self.join(self.branch(tokens), tokens)


class BareNorm(TokenBlock):
    """GELU and a LayerNorm stand in the layer's place. Neither has a weight, so that as many
    parameters are trained as with the frozen layer.

    The first study called this control a matched MLP.
    Source: LM4VisualEncoding (arXiv 2310.12973), "MLP" control.
    """

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__(width, residual)
        self.mlp = nn.Sequential(nn.GELU(), nn.LayerNorm(width, elementwise_affine=False))

    def branch(self, tokens: Tokens) -> Tokens:
        """Each token after the nonlinearity, at mean 0 and standard deviation 1 over the width."""
        return self.mlp(tokens)


class Zero(TokenBlock):
    """h is 0: with the residual, what remains of the hybrid are its two mappers."""

    def branch(self, tokens: Tokens) -> Tokens:
        """Zeros."""
        return torch.zeros_like(tokens)


class Nothing(TokenBlock):
    """The tokens themselves, once, with or without a residual: what remains are the two mappers."""

    def branch(self, tokens: Tokens) -> Tokens:
        """Nothing beside the residual; without one, the tokens."""
        return torch.zeros_like(tokens) if self.residual else tokens

    def forward(self, tokens: Tokens) -> Tokens:
        """The tokens as they came, to the bit."""
        return tokens


class Noise(TokenBlock):
    """h is noise as large as the pretrained block's h: each token has norm sqrt(width), as after a
    norm with gain 1, and a direction that nothing decides.

    In training each pass draws from torch's generator, which the loop seeds in every step. In
    evaluation a case's draw is a function of (seed, the tokens' bytes): other cases get other
    noise, and the same case the same again.
    """

    def __init__(self, width: int, residual: bool, seed: int) -> None:
        super().__init__(width, residual)
        self.seed = seed

    def drawn_for(self, tokens: Tensor) -> Tensor:
        """Normal noise for one case's tokens (T, width), always the same for the same tokens."""
        digest = hashlib.sha256(tokens.float().cpu().contiguous().numpy().tobytes()).hexdigest()
        generator = torch.Generator().manual_seed(draw_seed(self.seed, "noise", digest))
        return torch.randn(tokens.shape, generator=generator).to(tokens)

    def branch(self, tokens: Tokens) -> Tokens:
        """Noise on the sphere of radius sqrt(width)."""
        if self.training or tokens.is_meta:
            noise = torch.randn_like(tokens)
        else:
            noise = torch.stack([self.drawn_for(case) for case in tokens.detach()])
        return noise * noise.square().mean(dim=-1, keepdim=True).rsqrt()


@dataclass(frozen=True)
class NativeSizes:
    """What a block at the network's own width is built with."""

    width: int
    "Width of the network's tokens."
    num_heads: int
    "Attention heads."
    mlp_dim: int
    "Hidden width of the MLP."
    dropout_rate: float
    "Dropout on the outputs of attention and MLP."


class TrainedAttention(TokenBlock):
    """One trained attention layer, x + attention(norm(x)), at the network's own width.

    It stands in the place of mapper, block and mapper. Its residual is its own: it is there once
    whatever `residual` says, which decides only whether x counts as part of h.
    Source: "LLM2Attn", arXiv 2406.16964.
    """

    def __init__(self, sizes: NativeSizes, residual: bool) -> None:
        super().__init__(sizes.width, residual)
        self.num_heads = sizes.num_heads
        self.norm = nn.LayerNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.drop = nn.Dropout(sizes.dropout_rate)

    def branch(self, tokens: Tokens) -> Tokens:
        """What attention adds; the sum with the tokens where there is no residual around it."""
        split = self.qkv(self.norm(tokens)).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, H, d)
        query, key, value = split.permute(2, 0, 3, 1, 4).contiguous()  # each (B, H, T, d)
        mixed = attention(query, key, value).transpose(1, 2).flatten(2)  # (B, T, H * d)
        added = self.drop(self.out(mixed))
        return added if self.residual else added + tokens


class TrainedTransformer(TokenBlock):
    """One trained ViT block at the network's own width stands in the place of mapper, block and
    mapper.

    Its residuals are its own: they are there once whatever `residual` says, which decides only
    whether x counts as part of h. Source: "LLM2Trsf", arXiv 2406.16964.
    """

    def __init__(self, sizes: NativeSizes, residual: bool) -> None:
        super().__init__(sizes.width, residual)
        self.layer = ViTBlock(sizes.width, sizes.num_heads, sizes.mlp_dim, sizes.dropout_rate)

    def branch(self, tokens: Tokens) -> Tokens:
        """What the block adds; its output where there is no residual around it."""
        out = self.layer(tokens)
        return out - tokens if self.residual else out

    def forward(self, tokens: Tokens) -> Tokens:
        """The ViT block's output, without the rounding of taking x away and adding it again."""
        return self.layer(tokens)


BARE: dict[str, Callable[[int, bool], TokenBlock]] = {
    "norm": BareNorm,
    "mlp": BareNorm,
    "zero": Zero,
    "identity": Nothing,
}
"Kinds at the language model's width that neither hold nor draw anything."

NATIVE: dict[str, Callable[[NativeSizes, bool], TokenBlock]] = {
    "attention": TrainedAttention,
    "transformer": TrainedTransformer,
}
"Kinds at the network's own width."


def build_control(kind: str, width: int, residual: bool, seed: int) -> TokenBlock:
    """A block of `BARE_KINDS` at the language model's width."""
    return Noise(width, residual, seed) if kind == "noise" else BARE[kind](width, residual)


def build_native(kind: str, sizes: NativeSizes, residual: bool) -> TokenBlock:
    """A block of `NATIVE_KINDS`, its weights drawn from torch's generator."""
    return NATIVE[kind](sizes, residual)
