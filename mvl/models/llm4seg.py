"""LLM4Seg: a CNN with one language-model layer at its bottleneck, in 2-D and 3-D.

Source: LLM4Seg (arXiv 2506.18034), figure "teaser" (c): CNN encoder -> flatten -> Linear -> LLM
layer -> Linear -> reshape -> CNN decoder. Differs: the block has neither mask nor positions unless
the config asks for those of the released code (see book/deviations.md).
"""

from __future__ import annotations

from torch import Tensor, nn

from mvl.core.block_config import NATIVE_KINDS
from mvl.core.config import ModelConfig
from mvl.core.shapes import Image, Logits
from mvl.models.cnn import build_cnn
from mvl.models.control_blocks import NativeSizes
from mvl.models.token_blocks import build_token_block


class LLM4Seg(nn.Module):
    """The network is a CNN encoder, linear mapper, token block, linear mapper and CNN decoder;
    nothing goes around the block unless `residual` is set.

    The kinds `attention` and `transformer` work at the CNN's own width: there are no linear mappers
    around them. Ours = theirs: mapper1 = adapter1, block = llm, mapper2 = adapter2.
    """

    def __init__(
        self,
        model: ModelConfig,
        img_size: tuple[int, ...],
        num_channels: int,
        num_classes: int,
        seed: int,
        words: str = "",
    ) -> None:
        super().__init__()
        self.cnn = build_cnn(model, img_size, num_channels, num_classes)
        width = self.cnn.bottleneck_width
        # A trained control takes a ViT block's proportions; the CNN has no dropout.
        native = NativeSizes(width, model.num_heads, 4 * width, dropout_rate=0.0)
        self.block = build_token_block(model.token_block, seed, words, native)
        self.mapper1: nn.Module = nn.Identity()
        self.mapper2: nn.Module = nn.Identity()
        if model.token_block.kind not in NATIVE_KINDS:
            self.mapper1 = nn.Linear(width, self.block.width)
            self.mapper2 = nn.Linear(self.block.width, width)

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates from image (B, C, *S) to `logits` (B, K, *S); mapper1, block and
        mapper2 are tokens (B, T, D), row-major."""
        *skips, bottleneck = self.cnn.encode(image)
        out: dict[str, Tensor] = {f"encoder{i}": skip for i, skip in enumerate(skips, 1)}
        out["bottleneck"] = bottleneck  # (B, C, *s)

        tokens = bottleneck.flatten(2).transpose(1, 2)  # (B, T, C), one token for each voxel
        out["mapper1"] = self.mapper1(tokens)  # (B, T, width of the language model)
        out["block"] = self.block(out["mapper1"])
        out["mapper2"] = self.mapper2(out["block"])  # (B, T, C)
        mixed = out["mapper2"].transpose(1, 2).reshape(bottleneck.shape)  # (B, C, *s)

        return {**out, **self.cnn.decode([*skips, mixed])}

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
