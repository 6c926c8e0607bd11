"""CMUNeXt, the plain U-Net and LLM4Seg equal a second, plain implementation, value by value and
gradient by gradient."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.models import references as ref

CNN = {"channels": [4, 6, 8], "depths": [1, 2, 1], "kernel_sizes": [3, 5, 3]}
BLOCK_OF_LLM4SEG = {"residual": False, "final_norm": "none"}


def encoded(cnn: nn.Module, image: Tensor, depths: list[int] | None) -> list[Tensor]:
    """Features of every stage, each on half the grid; without `depths` it is the plain U-Net."""
    out, x = [], image
    for index, stage in enumerate(cnn.encoder):
        w = ref.parameters_of(stage)
        if index:
            x = ref.halve(x)
        elif depths is not None:
            x = ref.conv_norm_relu(x, w)
        x = (
            ref.conv_norm_relu(ref.conv_norm_relu(x, w), w)
            if depths is None
            else ref.cmunext_stage(x, w, depths[index])
        )
        assert next(w, None) is None
        out.append(x)
    return out


def decoded(cnn: nn.Module, features: list[Tensor], cmunext: bool) -> Tensor:
    """Twice the grid, a convolution, the skip, the fusion, and so on; then the 1x1 head."""
    *skips, x = features
    for up, fusion in zip(cnn.ups, cnn.fusions, strict=True):
        x = ref.conv_norm_relu(ref.double(x, smooth=cmunext), ref.parameters_of(up))
        w, skip = ref.parameters_of(fusion), skips.pop()
        x = (
            ref.skip_fusion(skip, x, w)
            if cmunext
            else ref.conv_norm_relu(ref.conv_norm_relu(torch.cat((skip, x), dim=1), w), w)
        )
        assert next(w, None) is None
    return ref.convolve(x, cnn.head.weight, cnn.head.bias)


BACKBONES = [("cmunext", (8, 12)), ("cmunext", (8, 4, 8)), ("unet", (8, 12)), ("unet", (8, 4, 8))]


@pytest.mark.parametrize(("backbone", "size"), BACKBONES)
def test_cnn(backbone: str, size: tuple[int, ...]) -> None:
    cnn = ref.system({**CNN, "architecture": "cnn", "backbone": backbone}, size)
    depths = CNN["depths"] if backbone == "cmunext" else None
    ref.assert_equal(
        cnn,
        lambda image: decoded(cnn, encoded(cnn, image, depths), depths is not None),
        ref.picture(2, 2, *size),
    )


@pytest.mark.parametrize("backbone", ["cmunext", "unet"])
def test_a_validated_cnn_uses_what_it_saw_in_training(backbone: str) -> None:
    """BatchNorm: running means move by a tenth per step, and then normalise."""
    cnn = ref.system({**CNN, "architecture": "cnn", "backbone": backbone}, (8, 8))
    image = ref.picture(2, 2, 8, 8)
    first = next(module for module in cnn.encoder.modules() if isinstance(module, nn.BatchNorm2d))
    before = first.running_mean.clone()
    seen: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    cnn(image)
    hook.remove()
    torch.testing.assert_close(first.running_mean, 0.9 * before + 0.1 * seen[0].mean((0, 2, 3)))
    alone, together = cnn.eval()(image[:1]), cnn(image)[:1]
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize(
    "changes",
    [{}, {"residual": True}, {"causal_mask": True}, {"trainable": True}, {"final_norm": "unit"}],
    ids=["paper", "residual", "mask", "trained", "norm"],
)
@pytest.mark.parametrize(("backbone", "size"), BACKBONES[::3])
def test_llm4seg(
    tiny_llama: Path, backbone: str, size: tuple[int, ...], changes: dict[str, object]
) -> None:
    settings = {**BLOCK_OF_LLM4SEG, "source": str(tiny_llama), **changes}
    network = ref.system(
        {**CNN, "architecture": "llm4seg", "backbone": backbone, "token_block": settings}, size
    )
    depths = CNN["depths"] if backbone == "cmunext" else None

    def reference(image: Tensor) -> Tensor:
        *skips, x = encoded(network.cnn, image, depths)
        tokens = torch.stack(
            [x[(..., *place)] for place in itertools.product(*map(range, x.shape[2:]))], dim=1
        )
        tokens = ref.linear(tokens, network.mapper1.weight, network.mapper1.bias)
        tokens = ref.language_block(network.block, tokens, settings)
        tokens = ref.linear(tokens, network.mapper2.weight, network.mapper2.bias)
        mixed = torch.stack(tokens.unbind(1), dim=-1).reshape(x.shape)
        return decoded(network.cnn, [*skips, mixed], depths is not None)

    ref.assert_equal(network, reference, ref.picture(2, 2, *size), ref.SINGLE)
