"""Peers that the papers compare with, as MONAI has them, brought to one contract: image (B, C, *S)
-> logits (B, K, *S), 2-D and 3-D.

MONAI takes seconds to import, so it is imported when a peer is built. It has no MissFormer,
TransUNet or Swin-UNet. Differs: one output; the deep supervision that UNet++ and nnU-Net train with
is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mvl.core.config import Config, ConfigError
from mvl.core.shapes import Image, Logits
from mvl.models.deterministic_layers import replace_pools

MIN_EDGE = 4
"nnU-Net: no axis is halved below this many voxels."


class Peer(nn.Module):
    """A MONAI network and the layer in it whose output is called its bottleneck."""

    def __init__(self, network: nn.Module, bottleneck: nn.Module) -> None:
        super().__init__()
        # in a list: a name for a layer that `network` already holds
        self.network, self._bottleneck = network, [bottleneck]

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        out = self.network(image)
        return out[-1] if isinstance(out, list) else out

    def stages(self, image: Image) -> dict[str, Tensor]:
        """`bottleneck`, features (B, D, *s) or tokens (B, T, D), and `logits` (B, K, *S)."""
        kept: dict[str, Tensor] = {}

        def keep(layer: nn.Module, given: Any, out: Any) -> None:
            kept["bottleneck"] = out[0] if isinstance(out, tuple) else out

        handle = self._bottleneck[0].register_forward_hook(keep)
        try:
            logits = self(image)
        finally:
            handle.remove()
        return {**kept, "logits": logits}


def build_unet(config: Config, num_channels: int, num_classes: int) -> Peer:
    """Residual U-Net with two convolutions a stage; widths from `model.channels`, each stage after
    the first halves the grid."""
    from monai.networks.layers.simplelayers import SkipConnection
    from monai.networks.nets import UNet

    widths = config.model.channels
    check_multiple(config, (2 ** (len(widths) - 1),) * len(config.data.img_size))
    network = UNet(
        len(config.data.img_size),
        num_channels,
        num_classes,
        widths,
        (2,) * (len(widths) - 1),
        num_res_units=2,
    )
    layer: Any = network.model
    while isinstance(layer, nn.Sequential) and isinstance(layer[1], SkipConnection):
        layer = layer[1].submodule
    return Peer(network, layer)


def join(module: Any, features: Tensor, skip: Tensor) -> Tensor:
    """UNet++'s step up: upsampled features behind the skip's, convolved.

    In place of MONAI's, which breaks the compiled graph (`torch.jit.isinstance`) and pads by
    nothing on grids that halve evenly, by an operator whose gradient is not deterministic on a GPU.
    """
    return module.convs(torch.cat([skip, module.upsample(features)], dim=1))


def build_unetpp(config: Config, num_channels: int, num_classes: int) -> Peer:
    """UNet++; `model.channels` are five widths of the encoder and one of the last decoder stage.

    Source: arXiv 1807.10165.
    """
    from monai.networks.nets import BasicUNetPlusPlus
    from monai.networks.nets.basic_unet import UpCat

    if len(config.model.channels) != 6:
        raise ConfigError(
            f"model.channels {config.model.channels}: UNet++ needs six widths, five of the encoder"
            " and the last decoder stage's"
        )
    check_multiple(config, (16,) * len(config.data.img_size))
    with redirect_stdout(StringIO()):  # it prints its widths
        network = BasicUNetPlusPlus(
            len(config.data.img_size), num_channels, num_classes, config.model.channels
        )
    replace_pools(network, len(config.data.img_size))
    for module in network.modules():
        if isinstance(module, UpCat):
            module.forward = MethodType(join, module)  # type: ignore[method-assign]
    return Peer(network, network.conv_4_0)


def build_unetr(config: Config, num_channels: int, num_classes: int) -> Peer:
    """UNETR: a ViT of 12 blocks on patches of 16 voxels; widths from `hidden_size`, `mlp_dim`,
    `num_heads`, the CNN's from `channels[0]`.

    Source: arXiv 2103.10504.
    """
    from monai.networks.nets import UNETR

    model, img_size = config.model, config.data.img_size
    check_multiple(config, (16,) * len(img_size))
    network = UNETR(
        num_channels,
        num_classes,
        img_size,
        model.channels[0],
        model.hidden_size,
        model.mlp_dim,
        model.num_heads,
        dropout_rate=model.dropout_rate,
        spatial_dims=len(img_size),
    )
    return Peer(network, network.vit)


def accept_size(spatial_shape: tuple[int, ...]) -> None:
    """Nothing: `build_swinunetr` has checked the grid. MONAI's own check at each call, in numpy,
    breaks the compiled graph."""


def build_swinunetr(config: Config, num_channels: int, num_classes: int) -> Peer:
    """Swin UNETR; its first width is `channels[0]`, a multiple of 12.

    Source: arXiv 2201.01266.
    """
    from monai.networks.nets import SwinUNETR

    width, dims = config.model.channels[0], len(config.data.img_size)
    if width % 12:
        raise ConfigError(
            f"model.channels {config.model.channels}: Swin UNETR's first width must be a multiple"
            " of 12; set 24 or 48"
        )
    check_multiple(config, (32,) * dims)
    # it reads numbers out of tensors while it is built, which `meta` has none of
    with torch.device("cpu"):
        network = SwinUNETR(
            num_channels,
            num_classes,
            feature_size=width,
            drop_rate=config.model.dropout_rate,
            spatial_dims=dims,
        )
    network._check_input_size = accept_size  # type: ignore[method-assign]
    return Peer(network, network.encoder10)


def nnunet_plan(
    img_size: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> tuple[list[list[int]], list[list[int]]]:
    """Kernels and strides of every stage: axes are halved while their voxels are not twice the
    finest and the grid allows it.

    Source: nnU-Net (arXiv 1904.08128), network topology; kernel 1 along an axis that is too coarse
    for 3.
    """
    sizes, spacing = list(img_size), list(spacing_mm)
    kernels: list[list[int]] = []
    strides = [[1] * len(sizes)]
    while True:
        fine = [space <= 2 * min(spacing) for space in spacing]
        stride = [2 if ok and size >= 2 * MIN_EDGE else 1 for ok, size in zip(fine, sizes)]
        if max(stride) == 1:
            return [*kernels, [3] * len(sizes)], strides
        kernels.append([3 if ok else 1 for ok in fine])
        strides.append(stride)
        sizes = [size // step for size, step in zip(sizes, stride)]
        spacing = [space * step for space, step in zip(spacing, stride)]


def build_dynunet(config: Config, num_channels: int, num_classes: int) -> Peer:
    """DynUNet with the topology of nnU-Net's rules, from `img_size` and, where scans are resampled
    to it, `spacing_mm`.

    Widths are `model.channels`, the last one repeated for further stages; none: nnU-Net's, 32
    doubling up to 320.
    """
    from monai.networks.nets import DynUNet

    data, dims = config.data, len(config.data.img_size)
    spacing = data.spacing_mm[:dims] if data.resample == "pad_crop" else (1.0,) * dims
    kernels, strides = nnunet_plan(data.img_size, spacing)
    if len(strides) < 3:
        raise ConfigError(
            f"data.img_size {data.img_size} is too small for DynUNet: one axis needs {4 * MIN_EDGE}"
            " voxels or more"
        )
    check_multiple(config, tuple(math.prod(axis) for axis in zip(*strides)))
    widths = [*config.model.channels, *config.model.channels[-1:] * len(strides)][
        : len(strides)
    ] or None
    network = DynUNet(
        dims, num_channels, num_classes, kernels, strides, strides[1:], filters=widths
    )
    return Peer(network, network.bottleneck)


def check_multiple(config: Config, steps: tuple[int, ...]) -> None:
    """Raise ConfigError unless each axis of `img_size` is a multiple of its step and the bottleneck
    has more than one voxel."""
    size = config.data.img_size
    if any(s % step for s, step in zip(size, steps)) or all(
        s <= step for s, step in zip(size, steps)
    ):
        nearest = [max(2, round(s / step)) * step for s, step in zip(size, steps)]
        raise ConfigError(
            f"data.img_size {size}: {config.model.architecture} needs multiples of {steps}, and"
            f" more than one voxel at its bottleneck; set it to {nearest}"
        )


PEERS: dict[str, Callable[[Config, int, int], Peer]] = {
    "unet": build_unet,
    "unetpp": build_unetpp,
    "unetr": build_unetr,
    "swinunetr": build_swinunetr,
    "dynunet": build_dynunet,
}
"Architecture name -> maker."


def build_peer(config: Config, num_channels: int, num_classes: int) -> Peer:
    """The peer that `model.architecture` names.

    Raises:
        ConfigError: sizes that it cannot take; names the field and a size that would do.
    """
    return PEERS[config.model.architecture](config, num_channels, num_classes)
