"""MedVisionLlama v3: a ViT with one frozen language-model layer between its encoder and its decoder.

Source: arXiv 2410.02458 v3, figure "LLM_Architecture": X -> V_E -> P -> V_D1 -> V_LLM -> V_D2 -> Q -> V_D -> Y.
"""

from __future__ import annotations

from torch import Tensor, nn

from mvl.config import ModelConfig
from mvl.models.adapters import Mapper
from mvl.models.token_blocks import build_token_block
from mvl.models.vit import ViTBaseline, patchify
from mvl.shapes import Image, Logits


class MedVisionLlamaV3(nn.Module):
    """ViT encoder, mapper VD1, frozen block (with a residual around it), mapper VD2, ViT decoder.

    `block_position="bottleneck"` is the paper's figure; `"after_embedding"` is the released code, which puts the block
    on raw patch embeddings, before positions and before every ViT block.
    Ours = theirs: mapper1 = llm_dim_mapper1, block = llm with the residual, mapper2 = llm_dim_mapper2.
    """

    def __init__(self, model: ModelConfig, img_size: tuple[int, ...], num_channels: int, num_classes: int, seed: int,
                 words: str = "") -> None:
        super().__init__()
        self.block_position = model.block_position
        self.vit = ViTBaseline(model, img_size, num_channels, num_classes)
        self.block = build_token_block(model.token_block, seed, words)
        self.mapper1 = Mapper(model.hidden_size, self.block.width, model.mapper, model.r, model.lora_alpha)
        self.mapper2 = Mapper(self.block.width, model.hidden_size, model.mapper, model.r, model.lora_alpha)

    def through_block(self, tokens: Tensor, out: dict[str, Tensor]) -> Tensor:
        """VD1, block, VD2; each result goes into `out`."""
        out["mapper1"] = self.mapper1(tokens)
        out["block"] = self.block(out["mapper1"])
        out["mapper2"] = self.mapper2(out["block"])
        return out["mapper2"]

    def embed(self, image: Image) -> dict[str, Tensor]:
        """`embedding`: patches with positions, after the block in the released order."""
        out = dict[str, Tensor]()
        tokens = self.vit.embed(patchify(image, self.vit.patch_size))
        if self.block_position == "after_embedding":
            tokens = self.through_block(tokens, out)
        out["embedding"] = tokens + self.vit.positions
        return out

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates on the way from image (B, C, *S) to `logits` (B, K, *S); the others are tokens (B, T, D)."""
        vit, out = self.vit, self.embed(image)
        out["encoder"] = tokens = vit.encoder(out["embedding"])
        if self.block_position == "bottleneck":
            tokens = self.through_block(tokens, out)
        return vit.finish(tokens, out)

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
