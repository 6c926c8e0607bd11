"""Runs whose cost of safety is compared do take the same steps; the size is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvl.bench import overhead
from mvl.core import files, run_folder
from mvl.core.config import Config, DataConfig, ModelConfig, TrainConfig, load_config
from mvl.datasets import preflight
from mvl.training import checkpoints, loop

TINY = Config(
    study="quick",
    fraction=0.2,
    data=DataConfig(img_size=(16, 16, 16)),
    train=TrainConfig(train_epochs=1, batch_size=8),
    model=ModelConfig(hidden_size=32, mlp_dim=64, encoder_layers=1, decoder_layers=1),
)


def test_a_run_without_does_none_of_it_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for owner, name in (
        (preflight, "check_inputs"),
        (checkpoints, "save"),
        (loop, "write_state"),
        (run_folder, "seal"),
    ):
        act = getattr(owner, name)
        monkeypatch.setattr(
            owner,
            name,
            lambda *words, act=act, name=name, **more: asked.append(name) or act(*words, **more),
        )
    _, guarded = overhead.run(TINY)
    assert set(asked) == {"check_inputs", "save", "write_state", "seal"}
    asked.clear()
    with overhead.without():
        _, bare = overhead.run(TINY)
    assert asked == [] and bare == guarded
    overhead.run(TINY)
    assert set(asked) == {"check_inputs", "save", "write_state", "seal"}, "put back afterwards"


def test_what_is_measured_is_whole_and_every_part_is_clocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = overhead.measure(TINY, 1)
    assert len(value["pairs"]) == 1 and min(value["pairs"][0].values()) > 0
    assert set(value["parts"]) == {*overhead.parts(), "values of each step checked"} and all(
        0 <= share < 1 for share in value["parts"].values()
    )
    assert value["counted"] == pytest.approx(sum(value["parts"].values()))
    assert value["overhead"] == value["pairs"][0]["with"] / value["pairs"][0]["without"] - 1
    assert "checkpoints" in overhead.show(json.loads(json.dumps(value, allow_nan=False)))
    ends = iter("abcd")
    monkeypatch.setattr(overhead, "run", lambda config, data_dir=None: (1.0, next(ends)))
    with pytest.raises(files.RunError, match="other weights"):
        overhead.measure(TINY, 1)


def test_the_page_shows_the_record_and_says_when_there_is_none(tmp_path: Path) -> None:
    assert "not measured" in overhead.facts(tmp_path / "none.json")["overhead"]
    pairs = [
        {"with": 1.02, "without": 1.0},
        {"with": 1.01, "without": 1.0},
        {"with": 0.99, "without": 1.0},
    ]
    study, task, system = overhead.RUN
    record = {
        "study": study,
        "task": task,
        "system": system,
        "epochs": 20,
        "pairs": pairs,
        "overhead": 0.01,
        "counted": 0.005,
        "target": 0.03,
        "parts": {"a": 0.001, "checkpoints": 0.004},
    }
    (tmp_path / "some.json").write_text(json.dumps(record))
    shown = overhead.facts(tmp_path / "some.json")["overhead"]
    assert "1.0% more processor time" in shown and "from -1.0% to 2.0%" in shown
    assert shown.index("| checkpoints | 0.40% |") < shown.index("| a | 0.10% |")


def test_the_committed_record_is_of_a_published_run() -> None:
    if not overhead.RECORD.is_file():
        pytest.skip("nothing is recorded")
    value = json.loads(overhead.RECORD.read_text())
    assert (value["study"], value["task"], value["system"]) == overhead.RUN and len(
        value["pairs"]
    ) >= 3
    assert value["epochs"] == load_config(*overhead.RUN).train.train_epochs
    assert value["counted"] == pytest.approx(sum(value["parts"].values()))
