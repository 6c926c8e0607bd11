"""I: values that are not finite, and operations that do not repeat."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mvl.core import run_folder
from mvl.core.config import ROOT, Config
from mvl.training import checkpoints, devices, failures, objective, run, state

NOT_HERE: dict[str, str] = {}


def row_I1(results: Path, tiny: Config, data: Path, patch: pytest.MonkeyPatch) -> None:
    """A loss that is not a number in the third step: the run stops there, names step and cases,
    keeps the epoch's checkpoint, is `diverged`."""
    real, calls = objective.build_loss, []

    def build(classes: int, name: str):
        loss = real(classes, name)
        return lambda logits, label: (
            loss(logits, label)
            * (
                math.nan
                if logits.requires_grad and calls.append(1) is None and len(calls) == 3
                else 1
            )
        )

    patch.setattr(state, "build_loss", build)
    with pytest.raises(
        failures.Diverged, match=r"loss nan.*epoch 1, step 0, cases toy_\d+.*look at these cases"
    ):
        run.train_run(tiny, results, data, progress=False)
    folder = run_folder.run_dir(results, tiny)
    assert run_folder.read_status(folder)["state"] == "diverged" and len(calls) == 3
    kept = checkpoints.load(folder)
    assert kept["progress"]["epoch"] == 1 and all(
        torch.isfinite(t).all() for t in kept["model"].values()
    )


def row_I2(results: Path, tiny: Config, data: Path, patch: pytest.MonkeyPatch) -> None:
    """NaN in the number that chooses the epoch, loss finite: an error, never a best epoch."""
    patch.setattr(
        "mvl.training.validation.foreground_dice", lambda logits, label: torch.tensor([math.nan])
    )
    with pytest.raises(failures.Diverged, match=r"Dice nan after epoch 0; lower train.lr"):
        run.train_run(tiny, results, data, progress=False)
    assert checkpoints.found(run_folder.run_dir(results, tiny)) == []


def row_I3(results: Path, tiny: Config, data: Path, patch: pytest.MonkeyPatch) -> None:
    """An operation without a repeatable kernel: an error on a CPU; on a GPU a warning, with the
    tolerance that the book declares."""
    devices.start_accelerator(tiny)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() is torch.cuda.is_available()
    assert "tolerance" in (ROOT / "book" / "reproduce.md").read_text()


ROWS = {name[4:]: act for name, act in list(globals().items()) if name.startswith("row_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(
    row: str, tmp_path: Path, tiny: Config, case_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ROWS[row](tmp_path / "runs", tiny, case_folder.parent, monkeypatch)


def test_every_row_is_here() -> None:
    assert {*ROWS, *NOT_HERE} == {"I1", "I2", "I3"}
