"""Vision transformer for dense prediction in 2-D and 3-D: patches in, voxels out.

Source: MedVisionLlama (arXiv 2410.02458) v3, ViT-Baseline; sizes from the released code. Differs:
dropout acts on the outputs of attention and MLP, never on attention probabilities (see
book/deviations.md).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mvl.core.config import ModelConfig
from mvl.core.seeds import draw_seed
from mvl.core.shapes import Image, Logits, Tokens
from mvl.models.cpu_bf16 import is_short, short_attention
from mvl.models.deterministic_layers import on_gpu
from mvl.models.tiled_attention import available, tiled_attention

LONG = 2048
"""Tokens from which a block may compute all but attention again in the backward pass, and attention
on a CPU goes tile by tile."""

TILED = (torch.float32, torch.bfloat16)
"Types in which attention of a long sequence on a CPU goes tile by tile."

KEEP_SHARE = 1 / 64
"""Share of a GPU's free memory up to which a long block keeps what its backward pass needs; the
deepest network has 20 blocks."""


def patchify(image: Image, patch_size: tuple[int, ...]) -> Tokens:
    """Cut an image (B, C, *S) into tokens (B, T, C * voxels per patch), T in row-major order of the
    patch grid."""
    batch, channels, *spatial = image.shape
    split = [n for s, p in zip(spatial, patch_size) for n in (s // p, p)]
    dims = len(spatial)
    grid_axes, patch_axes = [2 + 2 * i for i in range(dims)], [3 + 2 * i for i in range(dims)]
    patches = image.reshape(batch, channels, *split).permute(0, *grid_axes, 1, *patch_axes)
    return patches.reshape(batch, -1, channels * math.prod(patch_size))


def unpatchify(tokens: Tokens, img_size: tuple[int, ...], patch_size: tuple[int, ...]) -> Image:
    """The inverse of `patchify` for images of `img_size`."""
    grid = [s // p for s, p in zip(img_size, patch_size)]
    dims = len(grid)
    patches = tokens.reshape(tokens.shape[0], *grid, -1, *patch_size)
    order = [n for i in range(dims) for n in (1 + i, 2 + dims + i)]
    return patches.permute(0, 1 + dims, *order).reshape(tokens.shape[0], -1, *img_size)


KEPT = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.mvl.tiled_attention.default,
]
"""Attention on every device: the only results of a long block that its backward pass does not
compute again."""


def attention(
    query: Float[Tensor, "B H T d"], key: Float[Tensor, "B H S d"], value: Float[Tensor, "B H S d"]
) -> Float[Tensor, "B H T d"]:
    """Softmax attention by PyTorch's fused kernel; on a CPU by ours, the same up to rounding, for
    long sequences and short ones in bf16."""
    if (
        query.device.type == "cpu"
        and query.dtype in TILED
        and query.shape[2] >= LONG
        and available()
    ):
        # In bf16 too the tiles are float32: PyTorch's kernel for bf16 takes 1.2 times as long,
        # casts counted.
        return tiled_attention(query.float(), key.float(), value.float())[0].to(value.dtype)
    if is_short(query, value):
        return short_attention(query, key, value)
    return functional.scaled_dot_product_attention(query, key, value)


@torch.compiler.assume_constant_result
@functools.cache
def fits_gpu(kept_bytes: int) -> bool:
    """Whether a block may keep so many bytes on the GPU in use; asked once for each size, so that
    every step does the same."""
    return torch.cuda.is_available() and kept_bytes <= KEEP_SHARE * torch.cuda.mem_get_info()[0]


class ViTBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual: tokens (B, T, D) -> (B, T, D).

    Ours = theirs: qkv = mha.in_proj, out = mha.out_proj, mlp = mlp.layers.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_dim: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.qkv, self.out = (
            nn.Linear(hidden_size, 3 * hidden_size),
            nn.Linear(hidden_size, hidden_size),
        )
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, hidden_size)
        )
        self.drop = nn.Dropout(dropout_rate)

    def attend(self, tokens: Tokens) -> Tokens:
        """Self-attention of normalised tokens."""
        query, key, value = (
            self.qkv(tokens)
            .unflatten(2, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
            .contiguous()
        )
        return self.out(attention(query, key, value).transpose(1, 2).flatten(2))

    def forward(
        self, tokens: Tokens, blend: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> Tokens:
        """Tokens after attention and MLP; `blend(normalised tokens, attended)` may put something
        else in attention's place."""
        if self.training and self.recomputes(tokens):
            contexts = functools.partial(create_selective_checkpoint_contexts, KEPT)
            return checkpoint(self.steps, tokens, blend, use_reentrant=False, context_fn=contexts)
        return self.steps(tokens, blend)

    def recomputes(self, tokens: Tokens) -> bool:
        """Whether the backward pass computes all but attention again: of long sequences, and on a
        GPU only where memory is short."""
        if tokens.shape[1] < LONG:
            return False
        if not on_gpu(tokens):
            return True
        # Kept of a token: ten vectors of its width and two of the MLP's, at most 4 bytes a value.
        mlp_dim = int(self.mlp[0].out_features)  # type: ignore[arg-type]  # a Linear, which Sequential does not say
        width = 10 * tokens.shape[2] + 2 * mlp_dim
        return not fits_gpu(4 * tokens.shape[0] * tokens.shape[1] * width)

    def steps(self, tokens: Tokens, blend: Callable[[Tensor, Tensor], Tensor] | None) -> Tokens:
        """What `forward` does, once."""
        normed = self.norm1(tokens)
        attended = self.attend(normed)
        tokens = tokens + self.drop(attended if blend is None else blend(normed, attended))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))


def deep_mlp(hidden_size: int, widths: tuple[int, ...], dropout_rate: float) -> nn.Sequential:
    """Linear maps hidden_size -> widths -> hidden_size with GELU between them and dropout at the
    end; no residual, as released.

    Source: arXiv 2410.02458 v3, control ViT-MLP. Ours = theirs: new_mlp, released widths 32 *
    hidden_size to 1024 * hidden_size and back.
    """
    sizes = (hidden_size, *widths, hidden_size)
    layers = [
        layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.GELU())
    ]
    return nn.Sequential(*layers[:-1], nn.Dropout(dropout_rate))


def patch_order(num_tokens: int, seed: int) -> Tensor:
    """A permutation of the patches (T,), a function of (T, seed).

    Attention with learned positions and no mask gives the same function either way: each patch
    meets another position's starting values, no more. What counts neighbours does change: a causal
    mask, rotary positions, version 1's convolutional attention.
    """
    with torch.device("cpu"):
        return torch.randperm(
            num_tokens, generator=torch.Generator().manual_seed(draw_seed(seed, "patches"))
        )


class ViTBaseline(nn.Module):
    """ViT-Baseline: patches, learned positions, encoder blocks, decoder blocks, one linear map back
    to voxels.

    Source: arXiv 2410.02458 v3, baseline; released sizes are the defaults of `ModelConfig`. Ours =
    theirs: embed = pe, positions = position_embed, encoder + decoder = attention_blocks, head =
    output_proj.projection.
    """

    def __init__(
        self,
        model: ModelConfig,
        img_size: tuple[int, ...],
        num_channels: int,
        num_classes: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, model.patch_size
        voxels = math.prod(model.patch_size)
        num_tokens = math.prod(s // p for s, p in zip(img_size, model.patch_size))

        def blocks(n):
            return nn.Sequential(
                *(
                    ViTBlock(model.hidden_size, model.num_heads, model.mlp_dim, model.dropout_rate)
                    for _ in range(n)
                )
            )

        self.embed = nn.Linear(num_channels * voxels, model.hidden_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, model.hidden_size))
        self.encoder, self.decoder = blocks(model.encoder_layers), blocks(model.decoder_layers)
        self.head = nn.Linear(model.hidden_size, num_classes * voxels)
        self.extra_mlp = (
            deep_mlp(model.hidden_size, model.extra_mlp, model.dropout_rate)
            if model.extra_mlp
            else None
        )
        order = patch_order(num_tokens, seed) if model.permute_patches else None
        self.register_buffer("order", order, persistent=False)

    order: Tensor | None

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
        voxels = self.head(tokens)
        if self.order is not None:
            voxels = voxels[:, self.order.argsort()]
        out["logits"] = unpatchify(voxels, self.img_size, self.patch_size)
        return out

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
