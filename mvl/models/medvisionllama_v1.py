"""MedVisionLlama version 1: a frozen language-model layer in the encoder of a ViT, hybrid attention
and multi-scale fusion around it.

Source: arXiv 2410.02458 v1, abstract: "integrating frozen transformer blocks from LLMs into the
encoder of a ViT-based model", with a "Hybrid Attention Mechanism" and a "Multi-Scale Fusion Block".
A reading: the equations, the places and the code of both parts are not public.
"""

from __future__ import annotations

from torch import Tensor, nn

from mvl.core.config import ModelConfig
from mvl.core.shapes import Image, Tokens
from mvl.models.fusion import HybridAttention, MultiScaleFusion
from mvl.models.medvisionllama_v3 import MedVisionLlamaV3


class MedVisionLlamaV1(MedVisionLlamaV3):
    """Encoder: ViT blocks with hybrid attention, mapper, frozen layer (with a residual around it),
    mapper, multi-scale fusion; then the ViT decoder.

    `hybrid_attention` puts `HybridAttention` into every ViT block of the encoder;
    `multi_scale_fusion` fuses the tokens half-way through those blocks, after them, and after the
    language layer. With both off this is version 3, weight for weight. Differs: version 1 knows no
    LoRA, so its YAML takes the trained linear mappers of LM4VisualEncoding (arXiv 2310.12973).
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
        super().__init__(model, img_size, num_channels, num_classes, seed, words)
        grid = tuple(s // p for s, p in zip(img_size, model.patch_size))
        self.hybrid = (
            nn.ModuleList(HybridAttention(model.hidden_size, grid) for _ in self.vit.encoder)
            if model.hybrid_attention
            else None
        )
        self.fusion = (
            MultiScaleFusion(model.hidden_size, grid) if model.multi_scale_fusion else None
        )

    def encode(self, tokens: Tokens) -> list[Tensor]:
        """Tokens half-way through and after the ViT blocks of the encoder, with hybrid attention
        where it is on."""
        seen = [tokens]
        for index, block in enumerate(self.vit.encoder):
            seen.append(block(seen[-1], None if self.hybrid is None else self.hybrid[index]))
        return [seen[len(seen) // 2], seen[-1]]

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates on the way from image (B, C, *S) to `logits` (B, K, *S); the others
        are tokens (B, T, D)."""
        out = self.embed(image)
        half, tokens = self.encode(out["embedding"])
        out["encoder_half"] = half
        out["encoder"] = tokens
        if self.block_position == "bottleneck":
            tokens = self.through_block(tokens, out)
        if self.fusion is not None:
            tokens = out["fusion"] = self.fusion([half, out["encoder"], tokens])
        return self.vit.finish(tokens, out)
