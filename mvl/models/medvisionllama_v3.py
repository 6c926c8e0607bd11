"""MedVisionLlama v3: a ViT with one frozen language-model layer between encoder and decoder.

Source: arXiv 2410.02458 v3, figure "LLM_Architecture": X -> V_E -> P -> V_D1 -> V_LLM -> V_D2 -> Q
-> V_D -> Y.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvl.core.config import ModelConfig
from mvl.core.shapes import Image, Logits
from mvl.models.adapters import build_mappers
from mvl.models.control_blocks import NativeSizes
from mvl.models.token_blocks import build_token_block
from mvl.models.vit import ViTBaseline


class MedVisionLlamaV3(nn.Module):
    """The network is a ViT encoder, mapper VD1, a token block, mapper VD2 and a ViT decoder.

    `block_position="bottleneck"` is the paper's figure; `"after_embedding"` is the released code,
    which puts the block on raw patch embeddings, before positions and before every ViT block.
    Ours = theirs: mapper1 = llm_dim_mapper1, block = llm with its residual, mapper2 =
    llm_dim_mapper2.
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
        self.block_position = model.block_position
        self.auxiliary_path = model.auxiliary_path
        self.vit = ViTBaseline(model, img_size, num_channels, num_classes, seed)
        native = NativeSizes(model.hidden_size, model.num_heads, model.mlp_dim, model.dropout_rate)
        self.block = build_token_block(model.token_block, seed, words, native)
        self.mapper1, self.mapper2 = build_mappers(model, self.block.width)

    def through_block(self, tokens: Tensor, out: dict[str, Tensor]) -> Tensor:
        """Tokens (B, T, D) after VD1, block and VD2, whose results go into `out`."""
        out["mapper1"] = self.mapper1(tokens)  # (B, T, width of the language model)
        out["block"] = self.block(out["mapper1"])
        out["mapper2"] = self.mapper2(out["block"])  # (B, T, D)
        if not self.auxiliary_path:
            return out["mapper2"]
        if not self.training:
            return tokens
        # In training each case passes the block or goes by it, evenly drawn: the expected loss is
        # the mean of the losses with and without the block, as if both passes were made.
        passes = torch.rand(tokens.shape[0], 1, 1, device=tokens.device) < 0.5
        return torch.where(passes, out["mapper2"], tokens)

    def embed(self, image: Image) -> dict[str, Tensor]:
        """`embedding`: patches with positions (B, T, D), after the block in the released order."""
        out: dict[str, Tensor] = {}  # a call of `dict[str, Tensor]` would break the compiled graph
        tokens = self.vit.embed(self.vit.patches(image))
        if self.block_position == "after_embedding":
            tokens = self.through_block(tokens, out)
        out["embedding"] = tokens + self.vit.positions
        return out

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates from image (B, C, *S) to `logits` (B, K, *S); others are tokens."""
        out = self.embed(image)
        tokens = out["encoder"] = self.vit.encoder(out["embedding"])
        if self.block_position == "bottleneck":
            tokens = self.through_block(tokens, out)
        return self.vit.finish(tokens, out)

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
