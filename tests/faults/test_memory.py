"""H: no memory left, on a GPU or in the machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from mvl.core import files, run_folder
from mvl.core.config import Config
from mvl.study.status import FAILED, is_held, run_state
from mvl.training import loop, run
from mvl.training.failures import OutOfMemory

NOT_HERE: dict[str, str] = {}


def row_H1(results: Path, tiny: Config, data: Path, patch: pytest.MonkeyPatch) -> None:
    """Out of memory at a step: batch, sizes, peak and what to lower are said; the run is `oom`, and
    was tried once."""
    tried = []

    def update(self: loop.Trainer, batch: dict[str, object], weight: float = 1.0) -> float:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    patch.setattr(loop.Trainer, "update", update)
    with pytest.raises(
        OutOfMemory,
        match=(
            r"batch_size 4, img_size 16x16x16, patch_size 8x8x8.*peak [\d,]+ MB.*2.00"
            r" GiB.*train.accumulate above 1"
        ),
    ):
        run.train_run(tiny, results, data, progress=False)
    status = run_folder.read_status(run_folder.run_dir(results, tiny))
    assert status["state"] == "oom" and "train.accumulate" in status["error"] and tried == [1]
    assert run_state(tiny, results)["state"] == "oom" and "oom" in FAILED


def row_H2(results: Path, tiny: Config, data: Path, patch: pytest.MonkeyPatch) -> None:
    """The machine kills a run: its state is `interrupted`, the study counts it as still to do, and
    the same command goes on."""
    folder, (ready, told) = run_folder.run_dir(results, tiny), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with files.locked(folder):
                files.write_json(
                    folder / "status.json",
                    {"state": "running", "epoch": 1, "epochs": 4, "runtime_s": 2.0},
                )
                os.write(told, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    assert run_state(tiny, results)["state"] == "running"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert run_state(tiny, results)["state"] == "interrupted" and not is_held(folder)
    with files.locked(folder):
        assert run_folder.read_status(folder)["epoch"] == 1


ROWS = {name[4:]: act for name, act in list(globals().items()) if name.startswith("row_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(
    row: str, tmp_path: Path, tiny: Config, case_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ROWS[row](tmp_path / "runs", tiny, case_folder.parent, monkeypatch)


def test_every_row_is_here() -> None:
    assert {*ROWS, *NOT_HERE} == {"H1", "H2"}
