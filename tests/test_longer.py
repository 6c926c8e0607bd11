"""Twice the training is set beside the same fold and seed at the study's own length, and its settings differ in the length alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mvl import chapters, longer, runs
from mvl.config import load_config
from mvl.studies import study_runs


def test_the_settings_differ_in_the_length_alone() -> None:
    for config in study_runs(longer.STUDY):
        own = load_config(longer.OF, config.task, config.system, config.fraction, config.fold, config.seed)
        assert config.train.train_epochs == 2 * own.train.train_epochs
        assert replace(config, study=own.study, train=replace(config.train, train_epochs=own.train.train_epochs)) == own


def test_the_table_pairs_both_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = chapters.open_chapter("llm_hybrid", longer.OF, runs.records_dir())
    here = replace(chapter, results_dir=tmp_path)
    assert "not recorded here" in longer.table(here) and longer.sentence(here) == "" and longer.table(replace(here, study="quick")) == ""
    (tmp_path / longer.STUDY).mkdir()
    (tmp_path / longer.STUDY / "runs.csv").touch()
    own = chapter.done.set_index(["system", "fold", "seed"])["dice"]
    row = {"task": "Task04_Hippocampus", "fraction": 1.0, "fold": 0, "seed": 0, "n_test": 26}
    found = [row | {"system": "vit_baseline", "state": "done", "dice": 0.9}, row | {"system": "medvisionllama_v3", "state": "done", "dice": 0.91},
             row | {"system": "medvisionllama_v3_random", "state": "missing", "dice": float("nan")}]
    monkeypatch.setattr(longer, "read_runs", lambda study, folder: pd.DataFrame(found))
    text = longer.table(here)
    ours, theirs = own["medvisionllama_v3", 0, 0], own["vit_baseline", 0, 0]
    assert f"| {ours:.4f} | 0.9100 | {100 * (0.91 - ours):+z.2f} |" in text
    apart = f"{100 * (ours - theirs):+z.2f}"
    assert f"| MedVisionLlama v3 minus ViT-Baseline | {apart} ({apart}) | +1.00 (+1.00) |" in text and "random frozen block |" not in text
    assert "26 cases of folds 0 at 20 and at 40 epochs; 1 planned runs are missing" in text and text.count("longer/runs/") == 2
    assert "MedVisionLlama v3 minus ViT-Baseline +1.00 (+1.00) Dice points." in longer.sentence(here)
    pairs = chapter.done.groupby(["system", "fold"])["dice"].agg(["min", "max"])
    assert f"are {100 * (pairs['max'] - pairs['min']).mean():.2f} points apart" in text
    monkeypatch.setattr(longer, "read_runs", lambda study, folder: pd.DataFrame(found[2:]))
    assert "No run of the study `longer` is done" in longer.table(here) and longer.sentence(here) == ""
