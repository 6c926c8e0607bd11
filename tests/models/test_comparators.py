"""Peers from MONAI: one contract in 2-D and 3-D, sizes of their papers, sizes they cannot take
refused with a remedy."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mvl.core.config import Config, ConfigError, build, merge, named
from mvl.models import cpu_bf16
from mvl.models.build import build_system, count_parameters
from mvl.models.comparators import PEERS, nnunet_plan

TINY = {
    "unet": {"channels": [4, 6, 8]},
    "unetpp": {"channels": [4, 4, 6, 6, 8, 4]},
    "unetr": {
        "channels": [4],
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_heads": 3,
        "dropout_rate": 0.0,
    },
    "swinunetr": {"channels": [12], "dropout_rate": 0.0},
    "dynunet": {"channels": []},
}
SIZES = {
    "unet": (8, 12, 8),
    "unetpp": (32, 16, 16),
    "unetr": (32, 16, 16),
    "swinunetr": (64, 32, 32),
    "dynunet": (16, 16, 8),
}


def make(name: str, dims: int, classes: int = 2) -> torch.nn.Module:
    """A small peer."""
    config = {
        "model": {"architecture": name, **TINY[name]},
        "data": {"img_size": list(SIZES[name][:dims])},
    }
    return build_system(build(Config, config, "test"), 1, classes)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", PEERS)
def test_one_contract(name: str, dims: int) -> None:
    network, size = make(name, dims), SIZES[name][:dims]
    stages = network.stages(torch.randn(2, 1, *size))
    assert list(stages) == ["bottleneck", "logits"] and stages["logits"].shape == (2, 2, *size)
    assert (
        stages["bottleneck"].shape[0] == 2
        and stages["bottleneck"].shape[2:].numel() < stages["logits"].shape[2:].numel()
    )
    stages["logits"].square().mean().backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in network.parameters()) > 5


@pytest.mark.parametrize("name", PEERS)
def test_every_convolution_of_a_volume_is_safe_in_bf16(name: str) -> None:
    kinds = {type(m) for m in make(name, 3).modules() if isinstance(m, torch.nn.Conv3d)}
    assert cpu_bf16.Conv3d in kinds and torch.nn.Conv3d not in kinds


def test_the_same_seed_gives_the_same_weights_and_stages_leave_no_hook() -> None:
    one, two, x = make("unet", 2).eval(), make("unet", 2).eval(), torch.randn(1, 1, 8, 12)
    assert torch.equal(one.stages(x)["logits"], two(x))
    assert not any(module._forward_hooks for module in one.modules())


@pytest.mark.parametrize(
    ("name", "count"), [("unet", 1_185_818), ("unetr", 92_685_521), ("swinunetr", 62_186_659)]
)
def test_sizes_are_those_of_the_papers(name: str, count: int) -> None:
    """UNETR's paper says 92.58 M, Swin UNETR's 61.98 M; MONAI's networks of the same settings
    differ by under 1 %."""
    config = build(Config, {"model": named("systems", name)["model"]}, "test")
    assert count_parameters(config, 1, 1)["total"] == count


def test_the_plan_is_nnunets() -> None:
    """nnU-Net's published plan for the hippocampus (patch 40 x 56 x 40 at 1 mm) halves every axis
    three times."""
    kernels, strides = nnunet_plan((40, 56, 40), (1.0, 1.0, 1.0))
    assert strides == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]] and kernels == [[3, 3, 3]] * 4


def test_dynunet_takes_its_widths_from_the_config_or_from_nnunet() -> None:
    def widths(channels: list[int]) -> list[int]:
        config = {
            "model": {"architecture": "dynunet", "channels": channels},
            "data": {"img_size": [16, 16, 32]},
        }
        return list(build_system(build(Config, config, "test"), 1, 1).network.filters)

    assert widths([4, 6]) == [4, 6, 6, 6][: len(widths([]))] and widths([])[:2] == [32, 64]


def test_a_coarse_axis_waits_and_gets_kernel_one() -> None:
    kernels, strides = nnunet_plan((16, 64, 64), (5.0, 1.0, 1.0))
    assert strides == [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert kernels == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]


def test_spacing_counts_only_where_scans_are_resampled_to_it() -> None:
    config = {
        "model": {"architecture": "dynunet"},
        "data": {"img_size": [8, 16, 16], "spacing_mm": [5.0, 1.0, 1.0]},
    }

    def strides(resample):
        return build_system(
            build(Config, merge(config, {"data": {"resample": resample}}), "test"), 1, 1
        ).network.strides

    assert strides("resize")[1] == [2, 2, 2] and strides("pad_crop")[1] == [1, 2, 2]


@pytest.mark.parametrize(
    ("name", "size", "word"),
    [
        ("unet", [9, 8], r"set it to \[8, 8\]"),
        ("unetpp", [24, 32], r"multiples of \(16, 16\)"),
        ("unetr", [16, 16], "more than one voxel"),
        ("swinunetr", [48, 64], r"multiples of \(32, 32\).*\[64, 64\]"),
        ("dynunet", [18, 16], r"multiples of \(4, 4\)"),
        ("dynunet", [8, 8], "16 voxels or more"),
    ],
)
def test_sizes_it_cannot_take_are_refused(name: str, size: list[int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build_system(
            build(
                Config,
                {"model": {"architecture": name, **TINY[name]}, "data": {"img_size": size}},
                "test",
            ),
            1,
            1,
        )


@pytest.mark.parametrize(
    ("name", "channels", "word"),
    [("unetpp", [8, 8], "six widths"), ("swinunetr", [16], "multiple of 12")],
)
def test_widths_it_cannot_take_are_refused(name: str, channels: list[int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build_system(
            build(
                Config,
                {
                    "model": {"architecture": name, "channels": channels},
                    "data": {"img_size": [64, 64]},
                },
                "test",
            ),
            1,
            1,
        )


def test_monai_is_imported_only_when_a_peer_is_built() -> None:
    code = "import sys, mvl.models.comparators, mvl.models.cnn; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
