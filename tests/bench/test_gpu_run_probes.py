"""What a child of `make gpu` finds by training, on a CPU: the same bytes, and what would show that
they are not."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mvl.bench import gpu_run_probes
from mvl.core import files, run_folder
from mvl.core.config import Config
from mvl.training import run


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 16 voxels a side."""
    whole = gpu_run_probes.small_run

    def small(system: str) -> Config:
        config = whole(system)
        model = replace(
            config.model, encoder_layers=1, decoder_layers=1, hidden_size=16, mlp_dim=16
        )
        return replace(
            config,
            data=replace(config.data, img_size=(16, 16, 16)),
            model=model,
            fraction=0.1,
            train=replace(config.train, batch_size=2),
        )

    monkeypatch.setattr(gpu_run_probes, "small_run", small)


def test_a_run_is_repeated_and_resumed_with_the_same_bytes(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_run_probes.repeat(None, "vit_baseline") == {
        "same_bytes_twice": True,
        "interrupted": True,
        "same_bytes_resumed": True,
    }
    real = run.train_run
    starts: list[int] = []

    def drifting(config: Config, results: Path, data: Path | None, progress: bool) -> Path:
        folder = real(
            replace(config, train=replace(config.train, lr=config.train.lr * (1 + len(starts)))),
            results,
            data,
            progress=progress,
        )
        starts.append(1)
        return folder

    monkeypatch.setattr(gpu_run_probes, "train_run", drifting)
    assert gpu_run_probes.repeat(None, "vit_baseline")["same_bytes_twice"] is False


def test_the_signal_comes_after_that_many_steps() -> None:
    heard: list[int] = []
    old = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    parameter = torch.nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with gpu_run_probes.stopped_after(2):
        optimizer.step()
        assert not heard
        optimizer.step()
        optimizer.step()
    optimizer.step()
    signal.signal(signal.SIGTERM, old)
    assert heard == [1]


def test_evaluation_is_compared_cell_by_cell(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = gpu_run_probes.evaluated(None, "")
    assert (
        facts["state"] == "done"
        and facts["largest_difference"] == 0.0
        and facts["same_bytes"]
        and facts["rows"] > 0
    )
    assert (
        gpu_run_probes.apart("0.5", "0.25") == 0.25
        and gpu_run_probes.apart("a", "b") == float("inf")
        and gpu_run_probes.apart("", "") == 0.0
    )


def test_runs_that_share_a_card_need_their_scans(tmp_path: Path) -> None:
    assert gpu_run_probes.share({"data_dir": str(tmp_path)}, "4 at once") == {
        "state": "skipped: Task04_Hippocampus is not here"
    }


@pytest.mark.parametrize(("code", "rate"), [(0, True), (3, False)])
def test_runs_that_share_a_card_start_together(
    code: int, rate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho ready\ncat\ndate +%s%N >> {tmp_path}/begun\nexit {code}\n")
    program.chmod(0o755)
    here = SimpleNamespace(folder=tmp_path)
    monkeypatch.setattr(gpu_run_probes, "open_task", lambda task, folder: here)
    monkeypatch.setattr(gpu_run_probes.sys, "executable", str(program))
    if not rate:
        with pytest.raises(RuntimeError, match="4 of 4 runs failed"):
            gpu_run_probes.share({"data_dir": None}, "4 at once")
        return
    facts = gpu_run_probes.share({"data_dir": None}, "4 at once")
    assert facts["runs"] == 4 and facts["runs_a_minute"] == pytest.approx(240 / facts["seconds"])
    assert len((tmp_path / "begun").read_text().split()) == 4


def test_too_little_memory_must_be_recorded_as_such(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of 4 GB that is used up, in a test without one: training raises as CUDA does."""
    fractions: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: type("Card", (), {"total_memory": 4e9})()
    )
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    real = run.train_run

    def train(config: Config, results: Path, data: Path | None, progress: bool) -> Path:
        if fractions[-1] < 1:
            files.write_json(run_folder.run_dir(results, config) / "status.json", {"state": state})
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(config, results, data, progress=progress)

    monkeypatch.setattr(gpu_run_probes, "train_run", train)
    for state, verdict in (("oom", "done"), ("failed", "failed")):
        facts = gpu_run_probes.memory(None, "")
        assert (
            facts["state"] == verdict
            and facts["recorded_as"] == state
            and facts["trained_afterwards"] is True
        )
    assert fractions == [0.01, 1.0] * 2


def test_what_the_parent_asks_for_is_found(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {
        "parts": ["vit_baseline"],
        "device": "cpu",
        "small": True,
        "released": None,
        "data_dir": None,
    }
    gpu_run_probes.main("repeat", json.dumps(asked))
    last = capsys.readouterr().out.splitlines()[-1]
    assert '"same_bytes_resumed": true' in last
