"""How a run ended is told by the error that ended it, and a status that cannot be written hides no
error."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mvl.core import files, run_folder
from mvl.core.config import Config, DataConfig
from mvl.core.progress import Progress
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import open_task
from mvl.training import failures


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (failures.OutOfMemory("x"), "oom"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory:"
                " you tried to allocate 8 bytes."
            ),
            "oom",
        ),
        (failures.Diverged("loss nan"), "diverged"),
        (failures.WorkerLost("x"), "killed"),
        (RuntimeError("shape"), "failed"),
        (TaskError("x"), "failed"),
    ],
)
def test_each_error_has_its_state(error: Exception, state: str, tmp_path: Path) -> None:
    assert failures.state_of(error) == state
    with (
        pytest.raises(failures.OutOfMemory)
        if state == "oom" and not isinstance(error, failures.OutOfMemory)
        else nullcontext()
    ):
        failures.close(error, tmp_path, Config())
    assert (
        run_folder.read_status(tmp_path)["state"] == state
        and run_folder.read_status(tmp_path)["error"]
    )


def test_a_lost_gpu_is_recorded_with_what_goes_on(tmp_path: Path) -> None:
    with pytest.raises(failures.DeviceLost, match="illegal memory access.*started anew, goes on"):
        failures.close(
            RuntimeError("CUDA error: an illegal memory access was encountered"), tmp_path, Config()
        )
    status = run_folder.read_status(tmp_path)
    assert status["state"] == "failed" and "answers this process no more" in status["error"]


def test_a_full_disk_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    failures.close(RuntimeError("the first"), tmp_path, Config())
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_run_stays_done_whatever_fails_beside_it(tmp_path: Path) -> None:
    files.write_json(tmp_path / "status.json", {"state": "done", "files": {}})
    failures.close(RuntimeError("no data here"), tmp_path, Config())
    assert run_folder.read_status(tmp_path) == {"state": "done", "files": {}}


def test_only_the_loss_of_a_process_is_renamed() -> None:
    store = CaseStore(open_task("phantoms"), ("phantom_000",), DataConfig())
    with (
        pytest.raises(RuntimeError, match="^shape"),
        failures.cases_named(Config(), store, Progress()),
    ):
        raise RuntimeError("shape")
    with (
        pytest.raises(TaskError, match="^Caught TaskError in DataLoader worker process 0"),
        failures.cases_named(Config(), store, Progress()),
    ):
        raise TaskError("Caught TaskError in DataLoader worker process 0.")
