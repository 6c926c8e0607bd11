"""J: loader processes that are killed, raise what cannot be sent, hang, or find no shared
memory."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.core import files, progress, run_folder
from mvl.core.config import Config
from mvl.datasets import loaders
from mvl.datasets.case_store import CaseStore
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import open_task
from mvl.training import failures, run

NOT_HERE: dict[str, str] = {}
Patch = pytest.MonkeyPatch


def in_a_worker(patch: Patch, act) -> None:
    """Let `act` happen in a loader process that reads a case, never in the run's own process."""
    get = CaseStore.get

    def read(self: CaseStore, index: int):
        if torch.utils.data.get_worker_info() is not None:
            act()
        return get(self, index)

    patch.setattr(CaseStore, "get", read)


def ended(tiny: Config, results: Path, data: Path) -> tuple[dict, str]:
    """(status, message) of a run with two loader processes."""
    workers = replace(tiny, data=replace(tiny.data, num_workers=2))
    with pytest.raises((files.RunError, TaskError)) as error:
        run.train_run(workers, results, data, progress=False)
    return run_folder.read_status(run_folder.run_dir(results, workers)), str(error.value)


def row_J1(results: Path, tiny: Config, data: Path, patch: Patch) -> None:
    """A killed loader process: the run ends within a minute as `killed`, with the cases in
    flight."""
    in_a_worker(patch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    begun = time.monotonic()
    status, said = ended(tiny, results, data)
    assert time.monotonic() - begun < 60 and status["state"] == "killed"
    assert (
        "epoch 0, step 0" in said
        and "Being read: toy_" in said
        and "data.num_workers" in said
        and "mvl verify" in said
    )


def row_J2(results: Path, tiny: Config, data: Path, patch: Patch) -> None:
    """An exception that cannot be pickled: said as text with the case, no hang."""

    class Local(Exception):
        def __reduce__(self):
            raise TypeError("cannot be pickled")

    def act() -> None:
        raise Local("lost in the worker")

    in_a_worker(patch, act)
    status, said = ended(tiny, results, data)
    assert (
        status["state"] == "failed"
        and "Local: lost in the worker" in said
        and "Toy, case toy_" in said
        and "mvl verify Toy" in said
    )


def row_J3(results: Path, tiny: Config, data: Path, patch: Patch) -> None:
    """A loader process that hangs (a dead file server): given up after the time limit, with the
    cases."""
    patch.setattr(loaders, "WORKER_TIMEOUT_S", 2)
    in_a_worker(patch, lambda: time.sleep(60))
    status, said = ended(tiny, results, data)
    assert (
        status["state"] == "killed"
        and "timed out after 2 seconds" in said
        and "Being read: toy_" in said
    )


def row_J4(results: Path, tiny: Config, data: Path, patch: Patch) -> None:
    """No room in /dev/shm: torch says bus error; the remedy is named."""
    place = progress.Progress(epoch=1, step=1)
    store = CaseStore(open_task(tiny.task, data), (), tiny.data)
    store.case_ids = tuple("abcde")
    with pytest.raises(
        failures.WorkerLost,
        match=r"Being read: [a-e]\. If memory or /dev/shm is full, lower data.num_workers",
    ):
        with failures.cases_named(tiny, store, place):
            raise RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"
                " dataloader's workers are out of shared memory. Please try to raise your shared"
                " memory limit."
            )


ROWS = {name[4:]: act for name, act in list(globals().items()) if name.startswith("row_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(row: str, tmp_path: Path, tiny: Config, case_folder: Path, monkeypatch: Patch) -> None:
    ROWS[row](tmp_path / "runs", tiny, case_folder.parent, monkeypatch)


def test_every_row_is_here() -> None:
    assert {*ROWS, *NOT_HERE} == {"J1", "J2", "J3", "J4"}
