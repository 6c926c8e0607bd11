"""MedVisionLlama v3: a ViT with one frozen language-model layer between its encoder and its
decoder.

Source: arXiv 2410.02458 v3, figure "LLM_Architecture": X -> V_E -> P -> V_D1 -> V_LLM -> V_D2 -> Q
-> V_D -> Y.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvl.core.block_config import NATIVE_KINDS
from mvl.core.config import ModelConfig
from mvl.core.shapes import Image, Logits
from mvl.models.adapters import Mapper
from mvl.models.control_blocks import NativeSizes
from mvl.models.token_blocks import build_token_block
from mvl.models.vit import ViTBaseline


class MedVisionLlamaV3(nn.Module):
    """ViT encoder, mapper VD1, frozen block (with a residual around it), mapper VD2, ViT decoder.

    `block_position="bottleneck"` is the paper's figure; `"after_embedding"` is the released code,
    which puts the block on raw patch embeddings, before positions and before every ViT block. The
    kinds `attention` and `transformer` work on the ViT's tokens themselves: the mappers lead to the
    language model's width and back, and there is none. Ours = theirs: mapper1 = llm_dim_mapper1,
    block = llm with the residual, mapper2 = llm_dim_mapper2.
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
        self.mapper1: nn.Module = nn.Identity()
        self.mapper2: nn.Module = nn.Identity()
        if model.token_block.kind not in NATIVE_KINDS:
            self.mapper1 = Mapper(
                model.hidden_size, self.block.width, model.mapper, model.r, model.lora_alpha
            )
            self.mapper2 = Mapper(
                self.block.width, model.hidden_size, model.mapper, model.r, model.lora_alpha
            )

    def through_block(self, tokens: Tensor, out: dict[str, Tensor]) -> Tensor:
        """Tokens after VD1, block, VD2, whose results go into `out`; with the auxiliary path,
        perhaps the tokens as they came."""
        out["mapper1"] = self.mapper1(tokens)
        out["block"] = self.block(out["mapper1"])
        out["mapper2"] = self.mapper2(out["block"])
        return self.past_block(tokens, out["mapper2"]) if self.auxiliary_path else out["mapper2"]

    def past_block(self, tokens: Tensor, through: Tensor) -> Tensor:
        """With the auxiliary path: in training each case's tokens before or after the block, evenly
        drawn; else those before it.

        The expected loss of a case is the mean of its losses with and without the block, as if both
        passes were made.
        """
        if not self.training:
            return tokens
        goes_through = torch.rand(tokens.shape[0], 1, 1, device=tokens.device) < 0.5
        return torch.where(goes_through, through, tokens)

    def embed(self, image: Image) -> dict[str, Tensor]:
        """`embedding`: patches with positions, after the block in the released order."""
        out: dict[str, Tensor] = {}  # a call of `dict[str, Tensor]` would break the compiled graph
        tokens = self.vit.embed(self.vit.patches(image))
        if self.block_position == "after_embedding":
            tokens = self.through_block(tokens, out)
        out["embedding"] = tokens + self.vit.positions
        return out

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates on the way from image (B, C, *S) to `logits` (B, K, *S); the others
        are tokens (B, T, D)."""
        vit, out = self.vit, self.embed(image)
        out["encoder"] = tokens = vit.encoder(out["embedding"])
        if self.block_position == "bottleneck":
            tokens = self.through_block(tokens, out)
        return vit.finish(tokens, out)

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.stages(image)["logits"]
