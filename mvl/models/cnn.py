"""Convolutional encoder-decoders with skips, in 2-D and 3-D: CMUNeXt and the plain U-Net that
LLM4Seg builds on.

Source: LLM4Seg (arXiv 2506.18034) and CMUNeXt (arXiv 2308.01239), released code; U-Net as in the
same group's benchmark of networks. Differs: memory is channels-last throughout, which computes the
same and is faster on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mvl.core.config import ConfigError, ModelConfig
from mvl.core.shapes import Image, Logits
from mvl.models.cpu_bf16 import GELU, DepthwiseConv2d
from mvl.models.deterministic_layers import MaxPool, Upsample

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
DEPTHWISE: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: DepthwiseConv2d, 3: nn.Conv3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
"Layers and memory layout by the number of spatial axes."


def pointwise(dims: int, width: int, out_width: int) -> nn.Module:
    """A 1x1 convolution, a linear map of each voxel's channels."""
    # A dilation changes nothing in a 1x1 kernel, but with one PyTorch picks oneDNN on one CPU
    # thread: 1.8 times as fast.
    return CONV[dims](width, out_width, 1, dilation=2)


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, features: Tensor) -> Tensor:
        """Input plus what the layers make of it."""
        return super().forward(features) + features


def conv_norm_relu(dims: int, width: int, out_width: int) -> nn.Sequential:
    """A 3x3 convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        CONV[dims](width, out_width, 3, padding=1), NORM[dims](out_width), nn.ReLU(inplace=True)
    )


def double_conv(dims: int, width: int, out_width: int) -> nn.Sequential:
    """The plain U-Net's stage is twice a 3x3 convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        *conv_norm_relu(dims, width, out_width), *conv_norm_relu(dims, out_width, out_width)
    )


def gelu_norm(dims: int, width: int) -> list[nn.Module]:
    """GELU, then BatchNorm: CMUNeXt's order."""
    return [GELU(), NORM[dims](width)]


def widen_and_narrow(dims: int, width: int, hidden: int, out_width: int) -> list[nn.Module]:
    """An inverted bottleneck: 1x1 convolutions to `hidden` channels and back to `out_width`."""
    return [
        pointwise(dims, width, hidden),
        *gelu_norm(dims, hidden),
        pointwise(dims, hidden, out_width),
        *gelu_norm(dims, out_width),
    ]


def cmunext_stage(
    dims: int, width: int, out_width: int, depth: int, kernel_size: int
) -> nn.Sequential:
    """`depth` blocks (large depthwise convolution with a residual, inverted bottleneck), then a 3x3
    convolution to the new width.

    Source: CMUNeXt (arXiv 2308.01239), encoder block.
    """
    blocks: list[nn.Module] = []
    for _ in range(depth):
        depthwise = DEPTHWISE[dims](
            width, width, kernel_size, padding=kernel_size // 2, groups=width
        )
        blocks += [
            Residual(depthwise, *gelu_norm(dims, width)),
            *widen_and_narrow(dims, width, 4 * width, width),
        ]
    return nn.Sequential(*blocks, conv_norm_relu(dims, width, out_width))


def skip_fusion(dims: int, width: int) -> nn.Sequential:
    """Skip and upsampled features (2 * width) mixed into `width`: a 3x3 convolution of each half
    apart, then an inverted bottleneck.

    Source: CMUNeXt (arXiv 2308.01239), skip-fusion block.
    """
    apart = CONV[dims](2 * width, 2 * width, 3, padding=1, groups=2)
    return nn.Sequential(
        apart, *gelu_norm(dims, 2 * width), *widen_and_narrow(dims, 2 * width, 4 * width, width)
    )


class UShape(nn.Module):
    """Encoder stages with max pooling between them, a decoder that upsamples, joins the skip and
    fuses, and a 1x1 head.

    `encode` and `decode` are apart so that something can sit at the bottleneck between them.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        fusions: Sequence[nn.Module],
        widths: Sequence[int],
        dims: int,
        up: str,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.pool = MaxPool(dims)
        self.bottleneck_width = widths[-1]
        self.encoder = nn.ModuleList(encoder)
        coarse_first = itertools.pairwise(reversed(widths))
        self.ups = nn.ModuleList(
            nn.Sequential(Upsample(up), *conv_norm_relu(dims, wide, narrow))
            for wide, narrow in coarse_first
        )
        self.fusions = nn.ModuleList(fusions)
        self.head = pointwise(dims, widths[0], num_classes)
        self.to(memory_format=LAYOUT[dims])  # type: ignore[call-overload]  # not in torch's overloads

    def encode(self, image: Image) -> list[Tensor]:
        """Features (B, C, *s) of every stage, full resolution first, the bottleneck last; each
        stage halves the grid."""
        features = [self.encoder[0](image.contiguous(memory_format=LAYOUT[self.dims]))]
        for stage in self.encoder[1:]:
            features.append(stage(self.pool(features[-1])))
        return features

    def decode(self, features: list[Tensor]) -> dict[str, Tensor]:
        """Features of every decoder stage, coarse first, and `logits`, from the bottleneck up."""
        *skips, x = features
        level = len(skips)
        out: dict[str, Tensor] = {}  # a call of `dict[str, Tensor]` would break the compiled graph
        for skip, up, fuse in zip(reversed(skips), self.ups, self.fusions, strict=True):
            x = fuse(torch.cat((skip, up(x)), dim=1))  # (B, 2 * width, *s) -> (B, width, *s)
            out[f"decoder{level}"] = x
            level -= 1
        out["logits"] = self.head(x)
        return out

    def stages(self, image: Image) -> dict[str, Tensor]:
        """Named intermediates (B, C, *s) from image (B, C, *S) to `logits` (B, K, *S)."""
        features = self.encode(image)
        *skips, bottleneck = features
        named = {f"encoder{i}": skip for i, skip in enumerate(skips, 1)}
        return {**named, "bottleneck": bottleneck, **self.decode(features)}

    def forward(self, image: Image) -> Logits:
        """Logits (B, K, *S) of an image (B, C, *S)."""
        return self.decode(self.encode(image))["logits"]


def cmunext(model: ModelConfig, dims: int, num_channels: int, num_classes: int) -> UShape:
    """CMUNeXt has 3,149,185 parameters in 2-D for 3 channels and 1 class at the released sizes (the
    paper says 3.14 M)."""
    widths = model.channels
    stem = conv_norm_relu(dims, num_channels, widths[0])
    sizes = zip((widths[0], *widths[:-1]), widths, model.depths, model.kernel_sizes, strict=True)
    first, *deeper = [cmunext_stage(dims, *size) for size in sizes]
    encoder = [nn.Sequential(stem, *first), *deeper]
    fusions = [skip_fusion(dims, width) for width in widths[-2::-1]]
    return UShape(encoder, fusions, widths, dims, LINEAR[dims], num_classes)


def unet(model: ModelConfig, dims: int, num_channels: int, num_classes: int) -> UShape:
    """The plain U-Net has two 3x3 convolutions a stage and nearest-neighbour upsampling."""
    widths = model.channels
    pairs = itertools.pairwise((num_channels, *widths))
    encoder = [double_conv(dims, width, out_width) for width, out_width in pairs]
    fusions = [double_conv(dims, 2 * width, width) for width in widths[-2::-1]]
    return UShape(encoder, fusions, widths, dims, "nearest", num_classes)


BACKBONES: dict[str, Callable[[ModelConfig, int, int, int], UShape]] = {
    "cmunext": cmunext,
    "unet": unet,
}
"What `model.backbone` may name -> maker."


def build_cnn(
    model: ModelConfig, img_size: tuple[int, ...], num_channels: int, num_classes: int
) -> UShape:
    """The network that `model.backbone` names.

    Raises:
        ConfigError: sizes that do not fit together; names the field and a size that would do.
    """
    check_sizes(model, img_size)
    return BACKBONES[model.backbone](model, len(img_size), num_channels, num_classes)


def check_sizes(model: ModelConfig, img_size: tuple[int, ...]) -> None:
    """Raise ConfigError unless every stage can halve its grid and the settings of the stages are
    equally many."""
    stages = len(model.channels)
    step = 2 ** (stages - 1)
    if any(edge % step for edge in img_size) or max(img_size) <= step:
        nearest = [max(2, round(edge / step)) * step for edge in img_size]
        raise ConfigError(
            f"data.img_size {img_size} must be a multiple of {step} (model.channels has {stages}"
            f" stages, each halves the grid) and above {step}, for BatchNorm needs more than one"
            f" voxel at the bottleneck; set it to {nearest}"
        )
    if stages < 2:
        raise ConfigError("model.channels needs two stages or more")
    if model.backbone != "cmunext":
        return
    if not len(model.depths) == len(model.kernel_sizes) == stages:
        raise ConfigError(
            f"model.depths {model.depths} and model.kernel_sizes {model.kernel_sizes} must have"
            f" {stages} values, one for each of model.channels"
        )
    # An even kernel cannot be centred: its output would have another size than its input.
    if not all(size % 2 for size in model.kernel_sizes):
        raise ConfigError(f"model.kernel_sizes {model.kernel_sizes} must be odd")
