"""A run goes on where it was begun, or says where it went on instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.core import files, machine, run_folder
from mvl.core.config import Config
from mvl.training import checkpoints, devices, resume_check

HERE = {
    "mvl": {"commit": "a", "dirty": False},
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "platform": {"machine": "x86_64"},
    "started": "now",
}


def test_a_first_start_has_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "environment", lambda: HERE)
    files.write_json(tmp_path / "environment.json", HERE | {"python": "3.10"})
    assert resume_check.environment(tmp_path) == HERE


def test_what_differs_is_refused_unless_it_is_allowed_and_then_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder.write_config(tmp_path, Config())
    checkpoints.save(tmp_path, 1, {"step": 1})
    files.write_json(
        tmp_path / "environment.json",
        HERE | {"python": "3.10", "packages": {"torch": "2.12.0", "gone": "1"}},
    )
    monkeypatch.setattr(machine, "environment", lambda: HERE)
    with pytest.raises(
        files.RunError,
        match=r"python: '3.10' -> '3.11.7'; packages.torch: '2.12.0' -> '2.13.0'. .*--allow-drift",
    ):
        resume_check.environment(tmp_path)
    allowed = resume_check.environment(tmp_path, allow=True)
    assert allowed["drift"] == [
        "python: '3.10' -> '3.11.7'",
        "packages.torch: '2.12.0' -> '2.13.0'",
    ]
    files.write_json(tmp_path / "environment.json", allowed)
    assert resume_check.environment(tmp_path)["drift"] == allowed["drift"], "the mark stays"


def test_another_commit_goes_on_and_both_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(tmp_path, 1, {"step": 1})
    files.write_json(
        tmp_path / "environment.json", HERE | {"mvl": {"commit": "older", "dirty": False}}
    )
    monkeypatch.setattr(machine, "environment", lambda: HERE)
    assert resume_check.environment(tmp_path)["commits"] == [{"commit": "older", "dirty": False}]


def test_a_run_of_another_card_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder.write_config(tmp_path, Config())
    monkeypatch.setattr(machine, "environment", lambda: dict(HERE))
    monkeypatch.setattr(devices, "gpu_facts", lambda: {"card": "Tesla T4", "cudnn": 91400})
    files.write_json(tmp_path / "environment.json", resume_check.environment(tmp_path))
    checkpoints.save(tmp_path, 1, {"step": 1})
    assert resume_check.environment(tmp_path)["gpu"] == {"card": "Tesla T4", "cudnn": 91400}
    monkeypatch.setattr(devices, "gpu_facts", lambda: {"card": "NVIDIA L4", "cudnn": 91400})
    with pytest.raises(files.RunError, match="gpu.card: 'Tesla T4' -> 'NVIDIA L4'"):
        resume_check.environment(tmp_path)
