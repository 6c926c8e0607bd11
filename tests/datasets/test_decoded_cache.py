"""Decoded cases on disk change nothing but time, and are found again only where everything they
depend on is the same."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl.cli import main
from mvl.core.config import Config, DataConfig, ModelConfig, TrainConfig
from mvl.datasets import decoded_cache, preflight
from mvl.datasets.case_store import CaseStore
from mvl.datasets.loaders import training_loader
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData
from mvl.training import run

SMALL = DataConfig(img_size=(24, 32, 24))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache is on, in a folder of its own."""
    monkeypatch.setenv("MVL_CACHE", str(tmp_path / "cache"))
    decoded_cache._TOLD.clear()
    return tmp_path / "cache"


def store_of(toy, data=SMALL, **more) -> CaseStore:
    task, root = toy
    return CaseStore(
        TaskData(task, root),
        tuple(case.case_id for case in TaskData(task, root).cases)[:4],
        data,
        **more,
    )


def test_nothing_is_kept_unless_a_folder_is_named(toy, place, monkeypatch):
    monkeypatch.setenv("MVL_CACHE", " ")
    store_of(toy).get(0)
    assert not place.exists() and decoded_cache.folder() is None


def test_an_entry_gives_the_bits_of_a_decoded_case_and_the_same_way_back(toy, place, monkeypatch):
    first = store_of(toy)
    pair, back = first.get(1), first.to_native(1, first.get(1)[1].float())
    again = store_of(toy)
    with monkeypatch.context() as closed:
        closed.setattr(
            CaseStore, "_transformed", lambda *_: pytest.fail("decoded although it is kept")
        )
        found = again.get(1)
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype and b.is_contiguous()
        for a, b in zip(pair, found, strict=True)
    )
    assert torch.equal(again.to_native(1, found[1].float()), back), (
        "the way back is found although the arrays came from disk"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without(toy, workers, monkeypatch):
    config = Config(
        data=dataclasses.replace(SMALL, num_workers=workers, cache_gb=0.0),
        train=TrainConfig(batch_size=3),
    )
    cold, warm = (list(training_loader(store_of(toy, config.data), config, 0)) for _ in range(2))
    monkeypatch.delenv("MVL_CACHE")
    for batches in (cold, warm):
        for a, b in zip(
            batches, training_loader(store_of(toy, config.data), config, 0), strict=True
        ):
            assert torch.equal(a["image"], b["image"]) and torch.equal(a["label"], b["label"])


def test_a_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    config = Config(
        study="quick",
        data=DataConfig(img_size=(16, 16, 16)),
        train=TrainConfig(train_epochs=1, batch_size=8),
        fraction=0.2,
        model=ModelConfig(hidden_size=32, mlp_dim=64, encoder_layers=1, decoder_layers=1),
    )
    ends = [run.train_run(config, tmp_path / name, progress=False) for name in ("cold", "warm")]
    monkeypatch.delenv("MVL_CACHE")
    plain = run.train_run(config, tmp_path / "plain", progress=False)
    for name in ("weights.safetensors", "history.csv", "cases.csv", "config.yaml"):
        assert (
            (ends[0] / name).read_bytes()
            == (ends[1] / name).read_bytes()
            == (plain / name).read_bytes()
        )


def test_label_noise_is_not_kept_and_test_cases_stay_closed(toy):
    clean = store_of(toy).get(0)[1]
    assert torch.equal(store_of(toy, damage=lambda case, label: 1 - label).get(0)[1], 1 - clean)
    assert torch.equal(store_of(toy).get(0)[1], clean)
    with (
        preflight.closed(store_of(toy).cases[:1]),
        pytest.raises(TaskError, match="a test case, closed"),
    ):
        store_of(toy).get(0)


def test_the_key_holds_everything_that_the_arrays_depend_on(toy, monkeypatch):
    task, root = toy
    case, *others = TaskData(task, root).cases

    def key(case=case, data=SMALL, files=("a", "b"), task=task):
        return decoded_cache.key(task, case, data, files)

    known = {key()}

    def differs(other: str) -> None:
        assert other not in known
        known.add(other)

    for change in (
        {"img_size": (24, 24, 24)},
        {"resample": "pad_crop"},
        {"spacing_mm": (1.0, 1.0, 2.0)},
        {"labels": "all"},
    ):
        differs(key(data=dataclasses.replace(SMALL, **change)))
    differs(key(files=("b", "a")))
    differs(key(case=dataclasses.replace(case, z=3)))
    differs(key(task=dataclasses.replace(task, labels={1: "front"})))
    for change in (
        {"augment": False},
        {"cache_gb": 0.0},
        {"num_workers": 3},
        {"label_noise": "region", "label_noise_rate": 0.5},
    ):
        assert key(data=dataclasses.replace(SMALL, **change)) == key(), (
            "what acts afterwards decodes nothing anew"
        )
    assert key(case=others[0]) == key(), "the same bytes under another name"
    made = json.loads(json.dumps(decoded_cache.made_by()))
    assert (
        set(made["code"]) == set(decoded_cache.CODE)
        and made["packages"]["monai"]
        and made["platform"]["processor"]
    )
    for part, name in (("code", "loaders.py"), ("packages", "monai"), ("platform", "processor")):
        with monkeypatch.context() as other:
            other.setattr(
                decoded_cache,
                "made_by",
                lambda part=part, name=name: made | {part: made[part] | {name: "other"}},
            )
            differs(key())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        differs(key())
    finally:
        torch.set_num_threads(threads)


def test_every_setting_of_data_is_in_the_key_or_known_to_act_afterwards():
    assert set(vars(SMALL)) - decoded_cache.AFTERWARDS == {
        "img_size",
        "resample",
        "spacing_mm",
        "labels",
    }
    assert set(vars(SMALL)) >= decoded_cache.AFTERWARDS


@pytest.mark.parametrize("fault", ["full", "no space", "read-only"])
def test_what_cannot_be_kept_is_said_once_and_stops_nothing(toy, place, fault, monkeypatch, capsys):
    if fault == "full":
        monkeypatch.setattr(decoded_cache, "LEAST_FREE", 1e18)
    else:

        def refuse(path: Path, data: bytes) -> None:
            raise OSError(
                errno.ENOSPC if fault == "no space" else errno.EROFS, f"could not write {path}"
            )

        monkeypatch.setattr(decoded_cache, "atomic_write", refuse)
    store = store_of(toy)
    for index in range(3):
        assert np.isfinite(store.get(index)[0]).all()
    said = capsys.readouterr().err.splitlines()
    assert (
        len(said) == 1
        and said[0].startswith(f"{place}: decoded cases cannot be kept")
        and "MVL_CACHE" in said[0]
    )
    assert list(decoded_cache.entries(place)) == []


def test_the_command_counts_and_clears_entries_alone(toy, place, capsys):
    store = store_of(toy)
    pairs = [store.get(index) for index in range(3)]
    (place / "notes.txt").write_text("not mine")
    assert main.main(["cache", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["entries"] == 3 and value["bytes"] > 3 * sum(
        t.numel() * t.element_size() for t in pairs[0]
    )
    assert main.main(["cache", "--clear"]) == 0
    assert "3 decoded cases" in capsys.readouterr().out and [p.name for p in place.iterdir()] == [
        "notes.txt"
    ]
    assert main.main(["cache"]) == 0 and "0 decoded cases" in capsys.readouterr().out


def test_the_command_says_how_to_turn_it_on(monkeypatch, capsys):
    monkeypatch.delenv("MVL_CACHE")
    assert main.main(["cache", "--clear"]) == 0 and "MVL_CACHE=FOLDER" in capsys.readouterr().out
