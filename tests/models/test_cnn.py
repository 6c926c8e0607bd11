"""CMUNeXt and U-Net: the released sizes, both numbers of axes, fast layers that compute the same,
BatchNorm that a run keeps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mvl.core.config import Config, ConfigError, ModelConfig, build, merge
from mvl.models.build import build_system, count_parameters, own_state
from mvl.models.cnn import UShape, build_cnn, check_sizes, pointwise, skip_fusion

SMALL = {
    "data": {"img_size": [16, 16]},
    "model": {
        "architecture": "cnn",
        "channels": [4, 6, 8],
        "depths": [1, 1, 2],
        "kernel_sizes": [3, 3, 5],
    },
}
UNET = {"model": {"backbone": "unet"}}


def make(*changes: dict[str, object], channels: int = 1, classes: int = 1) -> UShape:
    """A small CNN, with settings changed."""
    return build_system(build(Config, merge(SMALL, *changes), "test"), channels, classes)


def picture(*size: int, cases: int = 2) -> torch.Tensor:
    """Seeded noise."""
    return torch.randn(cases, 1, *size, generator=torch.Generator().manual_seed(0))


def step(network: nn.Module, image: torch.Tensor) -> None:
    """One optimiser step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    network(image).square().mean().backward()
    optimizer.step()


def test_counts_agree_with_the_released_code() -> None:
    """CMUNeXt: `sum(p.numel())` of the released `cmunext()` (3 channels, 1 class); U-Net: of the
    same group's benchmark of networks, `U_Net`."""

    def config(model):
        return build(
            Config,
            {"data": {"img_size": [256, 256]}, "model": {"architecture": "cnn", **model}},
            "test",
        )

    def count(**model):
        return count_parameters(config(model), 3, 1)

    assert count() == {"trainable": 3_149_185, "frozen": 0, "total": 3_149_185}
    assert count(backbone="unet", channels=[64, 128, 256, 512, 1024])["trainable"] == 34_527_041


@pytest.mark.parametrize("backbone", [{}, UNET], ids=["cmunext", "unet"])
@pytest.mark.parametrize("size", [(16, 8), (8, 16, 12)], ids=["2-D", "3-D"])
def test_stages_halve_the_grid_and_come_back(
    backbone: dict[str, object], size: tuple[int, ...]
) -> None:
    network = make(backbone, {"data": {"img_size": list(size)}}, classes=3)
    stages = network.stages(picture(*size))

    def grid(n):
        return tuple(s // n for s in size)

    assert {name: tuple(stage.shape[1:]) for name, stage in stages.items()} == {
        "encoder1": (4, *size),
        "encoder2": (6, *grid(2)),
        "bottleneck": (8, *grid(4)),
        "decoder2": (6, *grid(2)),
        "decoder1": (4, *size),
        "logits": (3, *size),
    }
    assert list(stages)[-1] == "logits"
    stages["logits"].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_depth_and_kernel_of_each_stage_follow_the_config() -> None:
    kernels = [
        m.kernel_size[0]
        for m in make().encoder.modules()
        if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    assert kernels == [3, 3, 5, 5]


def test_a_skip_reaches_the_head() -> None:
    """With the bottleneck cut off, what is left of the image comes through the skips."""
    network = make().eval()
    features, other = network.encode(picture(16, 16)), network.encode(picture(16, 16) + 1)
    assert not torch.equal(
        network.decode([features[0], features[1], features[2]])["logits"],
        network.decode([other[0], *features[1:]])["logits"],
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_pointwise_is_a_1x1_convolution(dims: int) -> None:
    layer, x = pointwise(dims, 5, 7), torch.randn(2, 5, *(6, 4, 4)[:dims])
    plain = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[dims](x, layer.weight, layer.bias)
    assert torch.allclose(layer(x), plain, atol=1e-6)


def test_fusion_convolves_skip_and_upsampled_apart() -> None:
    apart = skip_fusion(2, 4)[0]
    x = torch.randn(1, 8, 6, 6, requires_grad=True)
    apart(x)[:, :4].sum().backward()
    assert x.grad[:, :4].abs().sum() > 0 and not x.grad[:, 4:].any()


def test_memory_layout_does_not_change_the_result() -> None:
    network, x = make().eval(), picture(16, 16)
    rows = make().eval().to(memory_format=torch.contiguous_format)
    assert torch.allclose(network(x), network(x.contiguous(memory_format=torch.channels_last)))
    assert torch.allclose(network(x), rows(x), atol=1e-6)


@pytest.mark.parametrize("backbone", [{}, UNET], ids=["cmunext", "unet"])
def test_training_repeats_bit_for_bit(backbone: dict[str, object]) -> None:
    def digest() -> str:
        network = make(backbone)
        step(network, picture(16, 16))
        return hashlib.sha256(
            b"".join(t.contiguous().numpy().tobytes() for t in network.state_dict().values())
        ).hexdigest()

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert digest() == digest()
    finally:
        torch.use_deterministic_algorithms(before)


def test_running_statistics_are_part_of_what_a_run_keeps(tmp_path: Path) -> None:
    """Trained, kept and read back through both formats, a network predicts the same bits."""
    from mvl.training import checkpoints
    from mvl.training.trained import load_own_state

    network, x = make(), picture(16, 16)
    step(network, x)
    assert any(name.endswith("running_var") for name in own_state(network))
    checkpoints.save(tmp_path, 1, {"model": own_state(network)})
    checkpoints.save_weights(tmp_path / "weights.safetensors", own_state(network))
    from safetensors.torch import load_file

    wanted = network.eval()(x)
    for state in (checkpoints.load(tmp_path)["model"], load_file(tmp_path / "weights.safetensors")):
        again = make({"model": {"kernel_sizes": [3, 3, 5]}})
        assert not torch.equal(again.eval()(x), wanted)
        load_own_state(again, state)
        assert torch.equal(again.eval()(x), wanted)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running statistics travel through the checkpoint; evaluated again from its files, the run has
    the same figures."""
    import signal

    from mvl.core import progress
    from mvl.training import loop, run
    from mvl.training.evaluate import evaluate_run

    settings = {
        "data": {"img_size": [16, 16, 16]},
        "train": {"train_epochs": 2, "optimizer": "sgd", "lr": 0.01, "schedule": "poly"},
    }
    config = build(Config, merge(SMALL, settings, {"fraction": 0.2}), "test")
    whole = run.train_run(config, tmp_path / "whole", progress=False)
    update, count = loop.Trainer.update, iter(range(100))

    def update_then_signal(
        self: loop.Trainer, batch: dict[str, object], weight: float = 1.0
    ) -> float:
        loss = update(self, batch, weight)
        if next(count) == 3:
            signal.raise_signal(signal.SIGTERM)
        return loss

    monkeypatch.setattr(loop.Trainer, "update", update_then_signal)
    with pytest.raises(progress.Interrupted):
        run.train_run(config, tmp_path / "stopped", progress=False)
    stopped = run.train_run(config, tmp_path / "stopped", progress=False)
    assert all(
        (whole / name).read_bytes() == (stopped / name).read_bytes()
        for name in ("weights.safetensors", "history.csv", "cases.csv")
    )
    before = (whole / "cases.csv").read_bytes()
    evaluate_run(whole)
    assert (whole / "cases.csv").read_bytes() == before


def test_a_short_batch_of_one_case_trains() -> None:
    network = make()
    step(network, picture(16, 16, cases=1))
    assert all(t.isfinite().all() for t in network.state_dict().values())


STEP = (
    "must be a multiple of 4 (model.channels has 3 stages, each halves the grid) and above 4, for"
    " BatchNorm needs more than one voxel at the bottleneck; set it to"
)


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        ((18, 16), {}, f"data.img_size (18, 16) {STEP} [16, 16]"),
        ((16, 23), {}, f"data.img_size (16, 23) {STEP} [16, 24]"),
        ((4, 4), {}, f"data.img_size (4, 4) {STEP} [8, 8]"),
        ((8, 8), {"channels": (4,)}, "model.channels needs two stages or more"),
        (
            (16, 16),
            {"depths": (1, 1)},
            "model.depths (1, 1) and model.kernel_sizes (3, 3, 5) must have 3 values, one for each"
            " of model.channels",
        ),
        (
            (16, 16),
            {"kernel_sizes": (3, 3, 5, 7)},
            "model.depths (1, 1, 2) and model.kernel_sizes (3, 3, 5, 7) must have 3 values, one for"
            " each of model.channels",
        ),
        ((16, 16), {"kernel_sizes": (3, 4, 5)}, "model.kernel_sizes (3, 4, 5) must be odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    size: tuple[int, ...], changes: dict[str, tuple[int, ...]], message: str
) -> None:
    model = ModelConfig(channels=(4, 6, 8), depths=(1, 1, 2), kernel_sizes=(3, 3, 5))
    check_sizes(model, (8, 4))
    check_sizes(replace(model, channels=(4, 6), depths=(1, 1), kernel_sizes=(3, 3)), (4, 2))
    check_sizes(replace(model, backbone="unet", depths=(), kernel_sizes=(2,)), (8, 8))
    with pytest.raises(ConfigError) as caught:
        check_sizes(replace(model, **changes), size)
    assert str(caught.value) == message


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["cmunext", "unet"])
def test_every_layer_is_the_one_that_the_papers_draw(dims: int, name: str) -> None:
    """Kind, widths, kernel, padding and groups of each layer in order."""
    model = ModelConfig(backbone=name, channels=(4, 6, 8), depths=(1, 2, 1), kernel_sizes=(3, 5, 7))
    network = build_cnn(model, (16,) * dims, 3, 2)
    found = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size[0])
            found.append((*sizes, layer.padding[0], layer.groups))
            assert layer.bias is not None and len(set(layer.kernel_size)) == 1 == layer.stride[0]
        elif isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)):
            found.append(layer.num_features)
        elif isinstance(layer, (nn.ReLU, nn.GELU)):
            found.append(type(layer).__name__)
        elif isinstance(layer, nn.Upsample):
            found.append(layer.mode)
    linear = "nearest" if name == "unet" else {2: "bilinear", 3: "trilinear"}[dims]

    def conv(width: int, out: int) -> list[object]:
        return [(width, out, 3, 1, 1), out, "ReLU"]

    def narrow(width: int, hidden: int, out: int) -> list[object]:
        return [(width, hidden, 1, 0, 1), "GELU", hidden, (hidden, out, 1, 0, 1), "GELU", out]

    def block(width: int, kernel: int) -> list[object]:
        deep = [(width, width, kernel, kernel // 2, width), "GELU", width]
        return [*deep, *narrow(width, 4 * width, width)]

    ups = [linear, *conv(8, 6), linear, *conv(6, 4)]
    if name == "unet":
        wanted = [layer for a, b in ((3, 4), (4, 6), (6, 8)) for layer in conv(a, b) + conv(b, b)]
        fusions = [layer for w in (6, 4) for layer in conv(2 * w, w) + conv(w, w)]
    else:
        wanted = [*conv(3, 4), *block(4, 3), *conv(4, 4), *block(4, 5), *block(4, 5), *conv(4, 6)]
        wanted += [*block(6, 7), *conv(6, 8)]
        fusions = []
        for w in (6, 4):
            fusions += [(2 * w, 2 * w, 3, 1, 2), "GELU", 2 * w, *narrow(2 * w, 4 * w, w)]
    assert found == [*wanted, *ups, *fusions, (4, 2, 1, 0, 1)]
    assert network.bottleneck_width == 8
