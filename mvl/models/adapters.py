"""Linear maps between the ViT's width and the language model's, and LoRA through peft."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mvl.core.block_config import NATIVE_KINDS
from mvl.core.config import ModelConfig
from mvl.core.shapes import Tokens


class Mapper(nn.Module):
    """Dimension mapper VD1 or VD2 takes tokens (B, T, in) to another width, (B, T, out).

    kind `lora`: a frozen random linear map, a trained rank-r update that starts at zero, and a
    trained bias. kind `linear`: one trained linear map without bias, as in the released
    `MedVisionLlama_Frozen`.

    Source: arXiv 2410.02458 v3. Ours = theirs: loralib.Linear(in, out, r) with its default alpha of
    1.
    """

    def __init__(
        self, in_features: int, out_features: int, kind: str, r: int, lora_alpha: int
    ) -> None:
        super().__init__()
        self.linear: nn.Module = nn.Linear(in_features, out_features, bias=kind == "lora")
        if kind == "lora":
            bias = self.linear.bias
            add_lora(self, ("linear",), r, lora_alpha)
            bias.requires_grad_(True)  # peft froze it with the map; loralib trains it

    def forward(self, tokens: Tokens) -> Float[Tensor, "B T E"]:
        """Tokens at the other width."""
        return self.linear(tokens)


def build_mappers(model: ModelConfig, block_width: int) -> tuple[nn.Module, nn.Module]:
    """VD1 leads to the block's width and VD2 back; a block that is trained at the network's own
    width (`NATIVE_KINDS`) has none around it."""
    if model.token_block.kind in NATIVE_KINDS:
        return nn.Identity(), nn.Identity()
    settings = (model.mapper, model.r, model.lora_alpha)
    mapper1 = Mapper(model.hidden_size, block_width, *settings)
    mapper2 = Mapper(block_width, model.hidden_size, *settings)
    return mapper1, mapper2


def add_lora(module: nn.Module, targets: tuple[str, ...], r: int, lora_alpha: int) -> None:
    """Give the named linear layers of `module` LoRA adapters, in place; all other parameters of
    `module` are frozen.

    Raises:
        ValueError: a target names no linear layer in `module`; lists those there are.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {
        name.rsplit(".", 1)[-1]
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    if unknown := sorted(set(targets) - names):
        raise ValueError(
            f"LoRA target {unknown[0]!r} is not among the layers {', '.join(sorted(names))}"
        )
    inject_adapter_in_model(
        LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules=list(targets)),
        module,
    )
