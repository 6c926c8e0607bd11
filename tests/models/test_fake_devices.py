"""Every network keeps to its input's device, in fp32 and under autocast, and is one graph for
torch.compile; no GPU is needed for it.

Fake tensors have a shape, a type and a device, but no memory: a tensor that a network makes on the
CPU fails as it would on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mvl.bench.systems import NEVER_TRAINED
from mvl.core.config import ROOT, Config, system_names
from mvl.models import deterministic_layers
from mvl.models.build import build_system
from mvl.models.describe import system_config
from mvl.training.objective import build_loss, build_optimizer
from tests.models.distinct import distinct
from tests.models.graphs import COMPILED, TRACED, small_system

SYSTEMS = distinct([name for name in system_names() if name not in NEVER_TRAINED], system_config)


def to_fake(network: nn.Module, device: str) -> nn.Module:
    """The network with fake tensors on `device` in place of its own; called inside a
    FakeTensorMode."""
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                module._parameters[name] = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return network


def forward(network: nn.Module, config: Config) -> torch.Tensor:
    """Logits of two classes and two cases, on fake `cuda:0`."""
    with FakeTensorMode(), torch.no_grad():
        fake = to_fake(network, "cuda:0").train()
        return fake(torch.empty(2, 2, *config.data.img_size, device="cuda:0"))


def step(network: nn.Module, config: Config, device: str) -> None:
    """Forward, loss, backward and optimiser on fake `device`, on `cpu` under autocast."""
    with FakeTensorMode():
        fake = to_fake(network, device).train()
        optimizer = build_optimizer(config, fake)
        image = torch.empty(2, 2, *config.data.img_size, device=device)
        label = torch.empty(2, 1, *config.data.img_size, device=device)
        with torch.autocast("cpu", torch.bfloat16, enabled=device == "cpu"):
            logits = fake(image)
        build_loss(3, "bce_dice")(logits.float(), label).backward()
        optimizer.step()
        gradients = [p.grad for p in fake.parameters() if p.grad is not None]
        assert gradients and all(gradient.device == image.device for gradient in gradients)


@contextmanager
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake `meta` tensors take the ways that are made for GPUs; autograd knows no fake `cuda` where
    there is no GPU."""
    with monkeypatch.context() as patch:
        patch.setattr(deterministic_layers, "GPUS", {"cuda", "meta"})
        # AdamW asks its step counter for a value, which a fake one does not have.
        patch.setattr(sys.modules["torch.optim.adam"], "_get_value", lambda tensor: 1.0)
        yield


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_keeps_to_its_device(
    name: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_system(name, tiny_llama)
    network = build_system(config, 2, 3)
    with as_on_gpu(monkeypatch):
        step(network, config, "meta")
        step(network, config, "cpu")


@pytest.mark.skipif(
    not torch.backends.cuda.is_built(),
    reason="a build of PyTorch for CPUs knows no fake cuda tensors",
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_forward_pass_keeps_to_a_gpu(
    name: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where there is no card, autocast would turn itself off.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = small_system(name, tiny_llama)
    network = build_system(config, 2, 3)
    assert forward(network, config).device == torch.device("cuda:0")
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert forward(network, config).device == torch.device("cuda:0")


class MakesATensor(nn.Module):
    """A network at fault: it adds a tensor that lies on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, with a constant added."""
        return self.layer(image) + torch.ones(1, 3, 1, 1)


def test_a_tensor_on_the_wrong_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(Config(), data=replace(Config().data, img_size=(8, 8)))
    with as_on_gpu(monkeypatch), pytest.raises(Exception, match="device"):
        step(MakesATensor(), config, "meta")


def test_a_system_is_one_graph(tiny_llama: Path) -> None:
    """In a process of its own: here beartype wraps each function, which the compiler does not
    follow."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.graphs", str(tiny_llama)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [*COMPILED, *TRACED]
