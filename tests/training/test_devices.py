"""The device of runs repeats itself exactly where it can, says so where it cannot, and is
recorded."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mvl.training import devices

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _mode_as_before() -> Iterator[None]:
    """The determinism of the test process is put back."""
    mode = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def test_tests_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and not torch.cuda.is_available()
    assert devices.device_of_runs() == torch.device("cpu")
    assert devices.gpu_facts() == {} and devices.gpu_peak_mb() is None


def test_a_cpu_is_strict_and_a_gpu_where_the_record_lists_no_operator(tmp_path: Path) -> None:
    record = tmp_path / "determinism.json"
    assert devices.is_strict("a", torch.device("cpu"), record)
    assert not devices.is_strict("a", GPU, record), "nothing is known without the record"
    record.write_text(json.dumps({"a": [], "b": ["max_pool3d_with_indices_backward"]}))
    assert devices.is_strict("a", GPU, record)
    assert not devices.is_strict("b", GPU, record) and not devices.is_strict("unknown", GPU, record)
    assert not devices.is_strict("a", torch.device("mps"), record), "the record is of CUDA"


@pytest.mark.parametrize(("listed", "mode"), [([], "strict"), (["cumsum"], "warn")])
def test_the_mode_is_set_for_the_system_and_recorded(
    listed: list[str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(devices.WORKSPACE, raising=False)
    monkeypatch.setattr(devices, "device_of_runs", lambda: GPU)
    record = tmp_path / "determinism.json"
    record.write_text(json.dumps({"a": listed}))
    strict = devices.is_strict
    monkeypatch.setattr(devices, "is_strict", lambda system, device: strict(system, device, record))
    torch.use_deterministic_algorithms(False)
    devices.repeat_exactly("a")
    assert torch.are_deterministic_algorithms_enabled() and devices.determinism() == mode
    assert os.environ[devices.WORKSPACE] == ":4096:8"


def test_a_workspace_of_the_readers_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.WORKSPACE, ":16:8")
    devices.repeat_exactly("vit_baseline")
    assert os.environ[devices.WORKSPACE] == ":16:8" and devices.determinism() == "strict"


def test_card_driver_and_libraries_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert words[0] == "nvidia-smi"
        return subprocess.CompletedProcess(words, 0, "580.65.06\n580.65.06\n", "")

    monkeypatch.setattr(devices, "device_of_runs", lambda: GPU)
    monkeypatch.setattr(devices.subprocess, "run", said)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91400)
    assert devices.gpu_facts() == {
        "card": "NVIDIA H100 80GB HBM3",
        "capability": "9.0",
        "driver": "580.65.06",
        "cuda": "13.0",
        "cudnn": 91400,
    }


def test_a_machine_without_the_drivers_tool_has_no_driver_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert devices.driver() is None


def test_a_gpu_that_answers_nothing_does_not_hide_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost() -> int:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lost)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert devices.gpu_peak_mb() is None
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3_400_000)
    assert devices.gpu_peak_mb() == 3
