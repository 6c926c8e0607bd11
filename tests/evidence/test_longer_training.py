"""Twice the training is set beside the same fold and seed at the study's own length, and its
settings differ in the length alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.core.config import load_config
from mvl.evidence import longer_training
from mvl.evidence.chapter import open_chapter
from mvl.study.grid import study_runs


def test_the_settings_differ_in_the_length_alone() -> None:
    for config in study_runs(longer_training.STUDY):
        own = load_config(
            longer_training.OF,
            config.task,
            config.system,
            config.fraction,
            config.fold,
            config.seed,
        )
        assert config.train.train_epochs == 2 * own.train.train_epochs
        assert (
            replace(
                config,
                study=own.study,
                train=replace(config.train, train_epochs=own.train.train_epochs),
            )
            == own
        )


def test_the_table_pairs_both_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = open_chapter("llm_hybrid", longer_training.OF, run_folder.records_dir())
    here = replace(chapter, results_dir=tmp_path)
    assert (
        "not recorded here" in longer_training.table(here)
        and longer_training.table(replace(here, study="quick")) == ""
    )
    (tmp_path / longer_training.STUDY).mkdir()
    (tmp_path / longer_training.STUDY / "runs.csv").touch()
    own = chapter.done.set_index(["system", "fold", "seed"])["dice"]
    row = {"task": "Task04_Hippocampus", "fraction": 1.0, "fold": 0, "seed": 0, "n_test": 26}
    found = [
        row | {"system": "vit_baseline", "state": "done", "dice": 0.9},
        row | {"system": "medvisionllama_v3", "state": "done", "dice": 0.91},
        row | {"system": "medvisionllama_v3_random", "state": "missing", "dice": float("nan")},
    ]
    monkeypatch.setattr(longer_training, "read_runs", lambda study, folder: pd.DataFrame(found))
    text = longer_training.table(here)
    ours, theirs = own["medvisionllama_v3", 0, 0], own["vit_baseline", 0, 0]
    assert f"| {ours:.4f} | 0.9100 | {100 * (0.91 - ours):+z.2f} |" in text
    apart = f"{100 * (ours - theirs):+z.2f}"
    assert (
        f"| MedVisionLlama v3 minus ViT-Baseline | {apart} ({apart}) | +1.00 (+1.00) |" in text
        and "random frozen block |" not in text
    )
    assert (
        "26 cases of folds 0 at 20 and at 40 epochs; 1 planned runs are missing" in text
        and text.count("longer/runs/") == 2
    )
    pairs = chapter.done.groupby(["system", "fold"])["dice"].agg(["min", "max"])
    assert f"are {100 * (pairs['max'] - pairs['min']).mean():.2f} points apart" in text
    monkeypatch.setattr(longer_training, "read_runs", lambda study, folder: pd.DataFrame(found[2:]))
    assert "No run of the study `longer` is done" in longer_training.table(here)


def test_a_jump_of_the_training_loss_stands_beside_the_differences(tmp_path: Path) -> None:
    rows = [
        ("vit_baseline", fold, 0, epoch, loss)
        for fold, losses in enumerate(([1, 0.5, 0.4], [1, 0.5, 3.5]))
        for epoch, loss in enumerate(losses)
    ]
    history = pd.DataFrame(rows, columns=["system", "fold", "seed", "epoch", "train_loss"])
    assert longer_training.largest_rises(history.sample(frac=1, random_state=0)).tolist() == [
        0.0,
        3.0,
    ]
    assert longer_training.spikes(tmp_path, ["vit_baseline"]) == ""
    (tmp_path / longer_training.STUDY).mkdir()
    history.to_csv(tmp_path / longer_training.STUDY / "history.csv")
    assert "| ViT-Baseline | 0.00 | 3.00 |" in longer_training.spikes(tmp_path, ["vit_baseline"])


def test_the_record_has_the_spikes_that_sign_its_differences() -> None:
    chapter = open_chapter("llm_hybrid", longer_training.OF, run_folder.records_dir())
    rises = longer_training.largest_rises(
        pd.read_csv(run_folder.records_dir() / longer_training.STUDY / "history.csv")
    )
    dice = longer_training.pairs(chapter)["dice"]
    apart = (dice["medvisionllama_v3"] - dice["medvisionllama_v3_random"]).droplevel(
        ["task", "seed"]
    )
    for fold, value in apart.items():
        ours, theirs = (
            rises[system, fold, 0] for system in ("medvisionllama_v3", "medvisionllama_v3_random")
        )
        assert (value > 0) == (theirs > ours)
