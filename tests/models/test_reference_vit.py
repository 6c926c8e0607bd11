"""The ViT and both versions of MedVisionLlama equal a second, plain implementation, value by value
and gradient by gradient; the ViT's block equals torch's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mvl.core.config import merge
from mvl.models.medvisionllama_v3 import MedVisionLlamaV3
from mvl.models.vit import ViTBlock
from tests.models import references as ref

VIT = {
    "hidden_size": 12,
    "num_heads": 3,
    "mlp_dim": 20,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "dropout_rate": 0.0,
}
GRIDS = {"2-D": ((8, 12), (4, 4)), "3-D": ((8, 4, 12), (4, 2, 4))}


TORCHS_NAMES = """norm1.weight norm1.bias norm2.weight norm2.bias
self_attn.in_proj_weight self_attn.in_proj_bias self_attn.out_proj.weight self_attn.out_proj.bias
linear1.weight linear1.bias linear2.weight linear2.bias""".split()
"Parameters of torch's layer in the order of the block's own."


def torchs_layer(block: ViTBlock, width: int, mlp_dim: int) -> nn.TransformerEncoderLayer:
    """torch's own pre-norm layer that holds the block's weights."""
    layer = nn.TransformerEncoderLayer(
        width,
        block.num_heads,
        mlp_dim,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    ).double()
    own = [parameter.detach() for parameter in block.parameters()]
    layer.load_state_dict(dict(zip(TORCHS_NAMES, own, strict=True)))
    return layer


def test_the_vit_block_is_torchs_transformer_layer() -> None:
    block = ref.moved(ViTBlock(12, 3, 20, 0.0)).train()
    layer, tokens = torchs_layer(block, 12, 20).train(), ref.picture(2, 7, 12)
    ours, theirs = block(tokens), layer(tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    weighing = torch.randn_like(ours)
    order = [layer.get_parameter(name) for name in TORCHS_NAMES]
    mine_all = torch.autograd.grad((ours * weighing).sum(), [tokens, *block.parameters()])
    theirs_all = torch.autograd.grad((theirs * weighing).sum(), [tokens, *order])
    for mine, other in zip(mine_all, theirs_all, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


def test_dropout_is_on_both_branches_and_on_nothing_else() -> None:
    block, tokens = ref.moved(ViTBlock(12, 3, 20, 0.5)), ref.picture(2, 7, 12)
    seen: list[Tensor] = []

    class Dropped(nn.Module):
        def forward(self, branch: Tensor) -> Tensor:
            seen.append(branch)
            return torch.zeros_like(branch)

    block.drop = Dropped()
    assert torch.equal(block(tokens), tokens)
    torch.testing.assert_close(seen[0], block.attend(block.norm1(tokens)))
    torch.testing.assert_close(seen[1], block.mlp(block.norm2(tokens)))


def vit_block(
    x: Tensor,
    w: ref.Parameters,
    heads: int,
    local: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """x + attention(norm x), then x + MLP(norm x); `local` mixes something into attention."""
    gain1, bias1, gain2, bias2 = (next(w) for _ in range(4))
    normed = ref.layer_norm(x, gain1, bias1)
    query, key, value = (
        ref.heads_of(part, heads) for part in ref.linear(normed, next(w), next(w)).chunk(3, dim=-1)
    )
    attended = ref.linear(ref.attend(query, key, value), next(w), next(w))
    x = x + (attended if local is None else local(normed, attended))
    hidden = ref.gelu(ref.linear(ref.layer_norm(x, gain2, bias2), next(w), next(w)))
    return x + ref.linear(hidden, next(w), next(w))


def vit_blocks(
    x: Tensor,
    blocks: nn.Sequential,
    hybrid: nn.ModuleList | None = None,
    grid: tuple[int, ...] = (),
) -> list[Tensor]:
    """Tokens before the first of the blocks and after each of them."""
    out = [x]
    for index, block in enumerate(blocks):
        mix = None if hybrid is None else hybrid_attention(hybrid[index], grid)
        out.append(vit_block(out[-1], ref.parameters_of(block), VIT["num_heads"], mix))
    return out


def embedded(vit: nn.Module, image: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Patches at the ViT's width, without positions."""
    return ref.linear(ref.patches(image, patch), vit.embed.weight, vit.embed.bias)


def finished(
    vit: nn.Module, tokens: Tensor, size: tuple[int, ...], patch: tuple[int, ...]
) -> Tensor:
    """Decoder blocks and the linear map back to voxels."""
    tokens = vit_blocks(tokens, vit.decoder)[-1]
    return ref.image_of(ref.linear(tokens, vit.head.weight, vit.head.bias), size, patch)


@pytest.mark.parametrize("grid", GRIDS)
def test_vit_baseline(grid: str) -> None:
    size, patch = GRIDS[grid]
    vit = ref.system({**VIT, "architecture": "vit_baseline", "patch_size": list(patch)}, size)

    def reference(image: Tensor) -> Tensor:
        tokens = vit_blocks(embedded(vit, image, patch) + vit.positions, vit.encoder)[-1]
        return finished(vit, tokens, size, patch)

    ref.assert_equal(vit, reference, ref.picture(2, 2, *size))


def mapped(mapper: nn.Module, x: Tensor, model: dict[str, object]) -> Tensor:
    """W x, or W x + b + (alpha / r) B A x with W frozen."""
    if model.get("mapper") == "linear":
        return ref.linear(x, mapper.linear.weight)
    lora, scale = mapper.linear, model["lora_alpha"] / model["r"]
    update = ref.linear(ref.linear(x, lora.lora_A["default"].weight), lora.lora_B["default"].weight)
    return ref.linear(x, lora.base_layer.weight, lora.base_layer.bias) + scale * update


def version_3(
    network: nn.Module, model: dict[str, object], size: tuple[int, ...], patch: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """V_E -> V_D1 -> V_LLM with a residual -> V_D2 -> V_D, or the block on bare patches."""
    settings = model["token_block"]

    def through(x: Tensor) -> Tensor:
        x = mapped(network.mapper1, x, model)
        return mapped(network.mapper2, ref.language_block(network.block, x, settings), model)

    def reference(image: Tensor) -> Tensor:
        vit = network.vit
        tokens, early = (
            embedded(vit, image, patch),
            model.get("block_position") == "after_embedding",
        )
        tokens = (through(tokens) if early else tokens) + vit.positions
        tokens = vit_blocks(tokens, vit.encoder)[-1]
        return finished(vit, tokens if early else through(tokens), size, patch)

    return reference


VERSIONS_OF_3 = {
    "paper": {},
    "linear mappers": {"mapper": "linear"},
    "after embedding": {"block_position": "after_embedding"},
    "no residual": {"token_block": {"residual": False}},
    "loaded norm": {"token_block": {"final_norm": "loaded"}},
    "no norm, trained": {"token_block": {"final_norm": "none", "trainable": True}},
    "mask": {"token_block": {"causal_mask": True}},
    "mask and rotary": {"token_block": {"causal_mask": True, "rotary": True}},
}


@pytest.mark.parametrize("changes", VERSIONS_OF_3.values(), ids=VERSIONS_OF_3)
def test_medvisionllama_v3(tiny_llama: Path, changes: dict[str, object]) -> None:
    size, patch = GRIDS["3-D"]
    model = merge(
        {
            **VIT,
            "architecture": "medvisionllama_v3",
            "patch_size": list(patch),
            "r": 2,
            "lora_alpha": 3,
            "token_block": {"source": str(tiny_llama)},
        },
        changes,
    )
    network = ref.system(model, size)
    ref.assert_equal(
        network, version_3(network, model, size, patch), ref.picture(2, 2, *size), ref.SINGLE
    )


def hybrid_attention(
    hybrid: nn.Module, grid: tuple[int, ...]
) -> Callable[[Tensor, Tensor], Tensor]:
    """g * global + (1 - g) * out(sigmoid(weigh(around)) * around); around: depthwise."""

    def mixed(normed: Tensor, attended: Tensor) -> Tensor:
        local, width = hybrid.local, normed.shape[-1]
        places = torch.stack(normed.unbind(1), dim=-1).reshape(-1, width, *grid)
        around = (
            ref.convolve(places, local.around.weight, local.around.bias, groups=width)
            .flatten(2)
            .movedim(1, 2)
        )
        weights = 1 / (1 + (-ref.linear(around, local.weigh.weight, local.weigh.bias)).exp())
        near = ref.linear(weights * around, local.out.weight, local.out.bias)
        share = 1 / (1 + (-hybrid.mix).exp())
        return share * attended + (1 - share) * near

    return mixed


def in_cells(tokens: Tensor, grid: tuple[int, ...], edge: int, project: nn.Module) -> Tensor:
    """GELU(linear(mean of the token's cell)); the last cell of an axis may hold fewer tokens."""
    places = tokens.reshape(tokens.shape[0], *grid, -1)
    out, axes = torch.zeros_like(places), tuple(range(1, places.ndim - 1))
    for corner in itertools.product(*(range(0, length, edge) for length in grid)):
        cell = (slice(None), *(slice(c, c + edge) for c in corner))
        mean = places[cell].mean(axes, keepdim=True)
        out[cell] = ref.gelu(ref.linear(mean, project.weight, project.bias))
    return out.reshape(tokens.shape)


def version_1(
    network: nn.Module, model: dict[str, object], size: tuple[int, ...], patch: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    """Version 3 with hybrid attention in the encoder and three depths fused after the block."""
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))

    def reference(image: Tensor) -> Tensor:
        vit, fusion = network.vit, network.fusion
        seen = vit_blocks(
            embedded(vit, image, patch) + vit.positions, vit.encoder, network.hybrid, grid
        )
        tokens = mapped(network.mapper1, seen[-1], model)
        tokens = mapped(
            network.mapper2, ref.language_block(network.block, tokens, model["token_block"]), model
        )
        if fusion is not None:
            depths = (seen[len(seen) // 2], seen[-1], tokens)
            scaled = [
                in_cells(x, grid, edge, project)
                for x, edge, project in zip(depths, (1, 2, 4), fusion.project, strict=True)
            ]
            tokens = tokens + ref.linear(
                torch.cat(scaled, dim=-1), fusion.mix.weight, fusion.mix.bias
            )
        return finished(vit, tokens, size, patch)

    return reference


@pytest.mark.parametrize(
    ("hybrid", "fusion"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_medvisionllama_v1(tiny_llama: Path, hybrid: bool, fusion: bool) -> None:
    size, patch = (12, 4, 20), (4, 2, 4)
    model = {
        **VIT,
        "encoder_layers": 3,
        "architecture": "medvisionllama_v1",
        "patch_size": list(patch),
        "mapper": "linear",
        "hybrid_attention": hybrid,
        "multi_scale_fusion": fusion,
        "token_block": {"source": str(tiny_llama)},
    }
    network = ref.system(model, size)
    assert (network.hybrid is not None, network.fusion is not None) == (hybrid, fusion)
    ref.assert_equal(
        network, version_1(network, model, size, patch), ref.picture(1, 2, *size), ref.SINGLE
    )


def block_cut_out(self: MedVisionLlamaV3, tokens: Tensor, out: dict[str, Tensor]) -> Tensor:
    """The fault by which VD2 is fed with VD1's output."""
    out["mapper1"] = out["block"] = self.mapper1(tokens)
    out["mapper2"] = self.mapper2(out["mapper1"])
    return out["mapper2"]


def without_residual(self: ViTBlock, tokens: Tensor) -> Tensor:
    """The fault by which attention replaces the tokens in place of being added to them."""
    tokens = self.drop(self.attend(self.norm1(tokens)))
    return tokens + self.drop(self.mlp(self.norm2(tokens)))


def test_the_references_see_two_faults_that_shapes_and_counts_do_not(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both once passed every test of the networks."""
    monkeypatch.setattr(MedVisionLlamaV3, "through_block", block_cut_out)
    with pytest.raises(AssertionError, match="not close"):
        test_medvisionllama_v3(tiny_llama, {})
    monkeypatch.undo()
    test_the_vit_block_is_torchs_transformer_layer()
    monkeypatch.setattr(ViTBlock, "forward", without_residual)
    with pytest.raises(AssertionError, match="not close"):
        test_the_vit_block_is_torchs_transformer_layer()
    with pytest.raises(AssertionError, match="not close"):
        test_vit_baseline("3-D")
