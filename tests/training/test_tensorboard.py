"""Event files hold each step once, whatever happened in between, as TensorBoard's own reader sees
them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mvl.cli import main
from mvl.core import columns, run_folder
from mvl.core.config import Config, DataConfig, ModelConfig, TrainConfig
from mvl.training import loop, run, tensorboard

TINY = Config(
    study="quick",
    fraction=0.2,
    data=DataConfig(img_size=(16, 16, 16)),
    train=TrainConfig(train_epochs=3, batch_size=4, checkpoint_s=0.0),
    model=ModelConfig(hidden_size=32, mlp_dim=64, encoder_layers=1, decoder_layers=1),
)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch):
    """Switch on; `reader(folder) -> {tag: [(step, value), ...]}`."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra tensorboard is not installed",
    )
    monkeypatch.setenv(tensorboard.SWITCH, "1")

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        found = accumulator.EventAccumulator(
            str(folder / "tensorboard"), size_guidance={"scalars": 0}
        )
        found.Reload()
        return {
            tag: [(event.step, event.value) for event in found.Scalars(tag)]
            for tag in found.Tags()["scalars"]
        }

    return read


def killed_while(folder: Path, patch) -> None:
    """Train in a forked process in which `patch` was called; it ends by SIGKILL."""
    child = os.fork()
    if child == 0:
        patch()
        try:
            run.train_run(TINY, folder, progress=False)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] & 0x7F == signal.SIGKILL


def die_before_the_second_checkpoint() -> None:
    """The second epoch's events are written, its checkpoint is not."""
    save = loop.Trainer.save
    loop.Trainer.save = lambda self: (
        os.kill(os.getpid(), signal.SIGKILL) if self.progress.epoch == 2 else save(self)
    )


def test_a_killed_run_that_goes_on_shows_each_step_once(tmp_path, reader):
    killed_while(tmp_path, die_before_the_second_checkpoint)
    folder = run_folder.run_dir(tmp_path, TINY)
    half = reader(folder)
    ended = run.train_run(TINY, tmp_path, progress=False)
    found = reader(ended)
    steps = len(found["step/train_loss"]) // 3
    assert len(half["step/train_loss"]) == 2 * steps > 0
    assert [step for step, _ in found["step/train_loss"]] == list(range(3 * steps))
    rows = [
        dict(zip(columns.HISTORY_COLUMNS, line.split(",")))
        for line in (ended / "history.csv").read_text().splitlines()[1:]
    ]
    for name in tensorboard.PER_EPOCH:
        assert found[f"epoch/{name}"] == [
            ((k + 1) * steps - 1, pytest.approx(float(row[name]))) for k, row in enumerate(rows)
        ]
    assert len(list((ended / "tensorboard").iterdir())) == 2, (
        "an earlier process's file is left as it is"
    )
    assert not [
        path for path in (ended / "tensorboard").iterdir() if os.uname().nodename in path.name
    ]


def test_it_is_off_by_default_and_changes_no_byte_of_a_run(tmp_path, reader, monkeypatch):
    with_files = run.train_run(TINY, tmp_path / "on", progress=False)
    monkeypatch.delenv(tensorboard.SWITCH)
    plain = run.train_run(TINY, tmp_path / "off", progress=False)
    assert not (plain / "tensorboard").exists() and (with_files / "tensorboard").is_dir()
    for name in ("weights.safetensors", "history.csv", "cases.csv", "config.yaml"):
        assert (plain / name).read_bytes() == (with_files / name).read_bytes()


def test_without_the_package_a_study_goes_on_and_the_option_says_what_to_install(
    tmp_path, monkeypatch, capsys
):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setenv(tensorboard.SWITCH, "1")
    with tensorboard.opened(tmp_path, 0) as tell:
        tell({"epoch": 0, "lr": 0.1, "train_loss": 1.0}, [1.0])
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "pip install -c constraints.txt -e '.[tensorboard]'" in said
        and list(tmp_path.iterdir()) == []
    )
    words = [
        "train",
        "--study",
        "quick",
        "--task",
        "phantoms",
        "--system",
        "vit_baseline",
        "--results-dir",
        str(tmp_path),
        "--tensorboard",
    ]
    assert main.main(words) == 1
    assert (
        "pip install -c constraints.txt -e '.[tensorboard]'" in capsys.readouterr().err
        and list(tmp_path.iterdir()) == []
    )


def test_an_error_of_the_run_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.delenv(tensorboard.SWITCH, raising=False)
    with pytest.raises(ModuleNotFoundError, match="other"), tensorboard.opened(tmp_path, 0):
        raise ModuleNotFoundError("other")


def test_values_stand_at_optimiser_steps():
    row = {"epoch": 2, "lr": 0.1, "train_loss": 0.5}
    assert list(tensorboard.scalars(row, [0.7, 0.3])) == [
        (4, {"step/train_loss": 0.7}),
        (5, {"step/train_loss": 0.3}),
        (5, {"epoch/lr": 0.1, "epoch/train_loss": 0.5}),
    ]
