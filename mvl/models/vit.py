"""Vision transformer for dense prediction in 2-D and 3-D: patches in, voxels out.

Source: MedVisionLlama (arXiv 2410.02458) v3, ViT-Baseline; sizes from the released code. Differs:
dropout acts on the outputs of attention and MLP, never on attention probabilities (see
book/deviations.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvl.core.config import ModelConfig
from mvl.core.seeds import draw_seed
from mvl.core.shapes import Image, Logits, Tokens
from mvl.models.attention import attention, must_recompute, recomputed

Blend = Callable[[Tensor, Tensor], Tensor]
"(normalised tokens, attended tokens) -> what is added in attention's place."


def patchify(image: Image, patch_size: tuple[int, ...]) -> Tokens:
    """Cut an image (B, C, *S) into tokens (B, T, C * voxels per patch), T in row-major order of the
    patch grid."""
    batch, channels, *spatial = image.shape
    dims = len(spatial)
    split = [n for s, p in zip(spatial, patch_size) for n in (s // p, p)]
    grid_axes = range(2, 2 + 2 * dims, 2)
    patch_axes = range(3, 3 + 2 * dims, 2)

    patches = image.reshape(batch, channels, *split)  # in 3-D: (B, C, X, px, Y, py, Z, pz)
    patches = patches.permute(0, *grid_axes, 1, *patch_axes)  # (B, X, Y, Z, C, px, py, pz)
    return patches.reshape(batch, -1, channels * math.prod(patch_size))


def unpatchify(tokens: Tokens, img_size: tuple[int, ...], patch_size: tuple[int, ...]) -> Image:
    """The inverse of `patchify` puts tokens (B, T, C * voxels per patch) back into an image
    (B, C, *img_size)."""
    grid = [s // p for s, p in zip(img_size, patch_size)]
    dims = len(grid)
    interleaved = [axis for i in range(dims) for axis in (1 + i, 2 + dims + i)]

    # in 3-D: (B, X, Y, Z, C, px, py, pz), then (B, C, X, px, Y, py, Z, pz)
    patches = tokens.reshape(tokens.shape[0], *grid, -1, *patch_size)
    patches = patches.permute(0, 1 + dims, *interleaved)
    return patches.reshape(tokens.shape[0], -1, *img_size)


class ViTBlock(nn.Module):
    """One block applies attention and an MLP, each to normalised tokens and each with a residual:
    (B, T, D) -> (B, T, D).

    Ours = theirs: qkv = mha.in_proj, out = mha.out_proj, mlp = mlp.layers.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_dim: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.norm1 = nn.LayerNorm(hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, hidden_size)
        )
        self.drop = nn.Dropout(dropout_rate)

    def attend(self, tokens: Tokens) -> Tokens:
        """Self-attention of normalised tokens."""
        split = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, H, d)
        query, key, value = split.permute(2, 0, 3, 1, 4).contiguous()  # each (B, H, T, d)
        mixed = attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))  # heads side by side: (B, T, H * d)

    def steps(self, tokens: Tokens, blend: Blend | None) -> Tokens:
        """What the block computes."""
        normed = self.norm1(tokens)
        attended = self.attend(normed)
        if blend is not None:
            attended = blend(normed, attended)
        tokens = tokens + self.drop(attended)
        return tokens + self.drop(self.mlp(self.norm2(tokens)))

    def recomputes(self, tokens: Tokens) -> bool:
        """Whether the backward pass computes all but attention again."""
        # Kept of a token: ten vectors of its width and two of the MLP's.
        return must_recompute(tokens, 10 * tokens.shape[2] + 2 * self.mlp_dim)

    def forward(self, tokens: Tokens, blend: Blend | None = None) -> Tokens:
        """Tokens after attention and MLP; `blend` may put something else in attention's place."""
        if self.training and self.recomputes(tokens):
            return recomputed(self.steps, tokens, blend)
        return self.steps(tokens, blend)


def deep_mlp(hidden_size: int, widths: tuple[int, ...], dropout_rate: float) -> nn.Sequential:
    """Linear maps hidden_size -> widths -> hidden_size with GELU between them and dropout at the
    end; there is no residual, as released.

    Source: arXiv 2410.02458 v3, control ViT-MLP. Ours = theirs: new_mlp, released widths 32 *
    hidden_size to 1024 * hidden_size and back.
    """
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise((hidden_size, *widths, hidden_size)):
        layers += [nn.Linear(width, next_width), nn.GELU()]
    return nn.Sequential(*layers[:-1], nn.Dropout(dropout_rate))


def patch_order(num_tokens: int, seed: int) -> Tensor:
    """A permutation of the patches (T,), a function of (T, seed).

    Attention with learned positions and no mask gives the same function either way: each patch
    meets another position's starting values, no more. What counts neighbours does change: a causal
    mask, rotary positions, version 1's convolutional attention.
    """
    generator = torch.Generator().manual_seed(draw_seed(seed, "patches"))
    with torch.device("cpu"):  # also where the network itself is built on the meta device
        return torch.randperm(num_tokens, generator=generator)


class ViTBaseline(nn.Module):
    """ViT-Baseline: patches, learned positions, encoder blocks, decoder blocks, one linear map back
    to voxels.

    Source: arXiv 2410.02458 v3, baseline; released sizes are the defaults of `ModelConfig`. Ours =
    theirs: embed = pe, positions = position_embed, encoder + decoder = attention_blocks, head =
    output_proj.projection.
    """

    order: Tensor | None

    def __init__(
        self,
        model: ModelConfig,
        img_size: tuple[int, ...],
        num_channels: int,
        num_classes: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = model.patch_size
        voxels = math.prod(model.patch_size)
        num_tokens = math.prod(s // p for s, p in zip(img_size, model.patch_size))

        self.embed = nn.Linear(num_channels * voxels, model.hidden_size)
        # Positions start small beside embedded patches: a patch is first known by what it shows.
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, model.hidden_size))
        self.encoder = self.blocks(model, model.encoder_layers)
        self.decoder = self.blocks(model, model.decoder_layers)
        self.head = nn.Linear(model.hidden_size, num_classes * voxels)

        self.extra_mlp: nn.Sequential | None = None
        if model.extra_mlp:
            self.extra_mlp = deep_mlp(model.hidden_size, model.extra_mlp, model.dropout_rate)
        order = patch_order(num_tokens, seed) if model.permute_patches else None
        self.register_buffer("order", order, persistent=False)

    @staticmethod
    def blocks(model: ModelConfig, count: int) -> nn.Sequential:
        """`count` ViT blocks, one after the other."""
        sizes = (model.hidden_size, model.num_heads, model.mlp_dim, model.dropout_rate)
        return nn.Sequential(*(ViTBlock(*sizes) for _ in range(count)))

    def patches(self, image: Image) -> Tokens:
        """The image's patches, in the permuted order where the config asks for one."""
        patches = patchify(image, self.patch_size)
        return patches if self.order is None else patches[:, self.order]

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates on the way from image (B, C, *S) to `logits` (B, K, *S); the others
        are tokens (B, T, D)."""
        out: dict[str, Tensor] = {"embedding": self.embed(self.patches(image)) + self.positions}
        out["encoder"] = self.encoder(out["embedding"])
        return self.finish(out["encoder"], out)

    def finish(self, tokens: Tokens, out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decoder, the extra MLP where there is one, and head; each result goes into `out`, which
        is returned."""
        tokens = out["decoder"] = self.decoder(tokens)
        if self.extra_mlp is not None:
            tokens = out["extra_mlp"] = self.extra_mlp(tokens)
        voxels = self.head(tokens)  # (B, T, K * voxels per patch)
        if self.order is not None:
            voxels = voxels[:, self.order.argsort()]  # each patch back in its place
        out["logits"] = unpatchify(voxels, self.img_size, self.patch_size)
        return out

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
