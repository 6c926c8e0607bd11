"""Operators that a GPU runs in no fixed order are found in a training step, and every system is
free of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mvl.bench import determinism, systems
from mvl.models import deterministic_layers
from mvl.models.describe import system_config
from mvl.training import devices
from tests.models.distinct import distinct


class Faulty(nn.Module):
    """A network of the operators that were replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits by 3-D pooling and trilinear upsampling."""
        return nn.functional.interpolate(
            nn.functional.max_pool3d(self.layer(image), 2), scale_factor=2, mode="trilinear"
        )


def test_operators_without_a_fixed_order_are_found() -> None:
    found = determinism.step_operators(Faulty(), (4, 4, 4), 3) & determinism.NONDETERMINISTIC
    assert found == {"max_pool3d_with_indices_backward", "upsample_trilinear3d_backward"}
    assert "meta" not in deterministic_layers.GPUS


def test_what_a_run_before_asked_of_pytorch_changes_nothing() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert "upsample_trilinear3d_backward" in determinism.step_operators(Faulty(), (4, 4, 4), 3)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_cpus_ways_would_not_do_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deterministic_layers, "on_gpu", lambda tensor: False)
    monkeypatch.setattr("mvl.training.objective.on_gpu", lambda tensor: False)
    assert determinism.nondeterministic_operators("cmunext") == [
        "nll_loss2d_forward",
        "upsample_bilinear2d_backward",
    ]
    assert determinism.nondeterministic_operators("unetpp") == [
        "max_pool3d_with_indices_backward",
        "nll_loss2d_forward",
    ]


@pytest.mark.parametrize("name", distinct(systems.measurable(), system_config))
def test_the_record_holds(name: str) -> None:
    assert devices.read_record()[name] == determinism.nondeterministic_operators(name) == []


def test_the_record_and_its_table_have_every_system() -> None:
    record, table = devices.read_record(), determinism.determinism_table()
    assert list(record) == systems.measurable()
    assert all(f"| `{name}` | strict |" in table for name in record)
