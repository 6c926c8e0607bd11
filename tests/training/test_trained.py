"""One predictor serves every prediction: on the run's device, in its precision, in batches where
that changes no recorded bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvl.core import files
from mvl.core.config import Config, build
from mvl.models.build import build_system, own_state
from mvl.training import precision, trained
from mvl.training.trained import Predictor, load_own_state

TINY = {
    "data": {"img_size": [16, 16, 16]},
    "model": {
        "patch_size": [8, 8, 8],
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_size": 32,
        "mlp_dim": 64,
    },
}


@pytest.fixture
def config() -> Config:
    return build(Config, TINY, "test")


@pytest.fixture
def network(config: Config) -> nn.Module:
    return build_system(config, 1, 1).eval()


def in_precision(config: Config, name: str) -> Config:
    return replace(config, train=replace(config.train, precision=name))


@torch.no_grad()
def test_logits_are_the_networks_own(config: Config, network: nn.Module) -> None:
    image = torch.randn(2, 1, 16, 16, 16)
    assert torch.equal(Predictor(network, config)(image), network(image))
    stages = Predictor(network, config).stages(image)
    assert torch.equal(stages["logits"], network.stages(image)["logits"])


@torch.no_grad()
def test_sixteen_bits_come_back_in_float32(
    config: Config, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    image = torch.randn(1, 1, 16, 16, 16)
    rounded = Predictor(network, in_precision(config, "bf16"))
    assert rounded(image).dtype == torch.float32 and not torch.equal(rounded(image), network(image))
    stages = rounded.stages(image)
    assert {tensor.dtype for tensor in stages.values()} == {torch.float32}
    assert torch.equal(stages["logits"], rounded(image)), "masks and maps come from one computation"


def test_network_and_images_go_to_the_device(config: Config) -> None:
    made = build_system(config, 1, 1).eval()
    on_meta = Predictor(made, config, torch.device("meta"))
    assert {p.device.type for p in made.parameters()} == {"meta"}
    assert on_meta(torch.randn(1, 1, 16, 16, 16)).device.type == "meta"


def test_a_precision_that_the_device_has_not_is_refused(config: Config, network: nn.Module) -> None:
    with pytest.raises(files.RunError, match="fp16 needs a CUDA GPU"):
        Predictor(network, in_precision(config, "fp16"))


@pytest.mark.parametrize(
    ("size", "device", "name", "cases"),
    [
        ((16, 16, 16), "cpu", "fp32", 1),
        ((16, 16, 16), "cpu", "bf16", 32),
        ((16, 16, 16), "meta", "fp32", 32),
        ((128, 128, 128), "meta", "fp32", 2),
        ((512, 512, 512), "meta", "fp32", 1),
    ],
)
def test_batches_are_bounded_and_recorded_bits_stay(
    size: tuple[int, ...],
    device: str,
    name: str,
    cases: int,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "check_precision", lambda *_: None)
    asked = replace(in_precision(config, name), data=replace(config.data, img_size=size))
    assert Predictor(nn.Identity(), asked, torch.device(device)).cases_at_once() == cases


def test_on_a_gpu_predictions_repeat_too(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(trained, "repeat_exactly", asked.append)
    still = nn.Identity()
    monkeypatch.setattr(still, "to", lambda device: still)
    Predictor(still, config, torch.device("cuda"))
    assert asked == [config.system]
    Predictor(still, config, torch.device("cpu"))
    assert asked == [config.system]


def test_weights_that_do_not_fit_are_named(network: nn.Module) -> None:
    state = own_state(network)
    lost = sorted(state)[0]
    changed = {name: tensor for name, tensor in state.items() if name != lost} | {
        "stray": torch.zeros(1)
    }
    with pytest.raises(files.RunError, match=rf"missing \['{lost}'\], extra \['stray'\]"):
        load_own_state(network, changed)
