"""The table of rates is that of the recorded trials, and what it means follows them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.evidence import learning_rates
from mvl.evidence.topics import HYBRID, RANDOM, VIT


def test_gaps_are_the_differences_of_the_trials(tmp_path: Path) -> None:
    (tmp_path / learning_rates.STUDY).mkdir()
    best = {VIT: (0.80, 0.85), HYBRID: (0.78, 0.845), RANDOM: (0.79, 0.844), "unet": (0.9, 0.9)}
    rows = [(s, lr, dice) for s, pair in best.items() for lr, dice in zip((0.002, 0.032), pair)]
    pd.DataFrame(rows, columns=["system", "lr", "best_val_dice"]).to_csv(
        tmp_path / learning_rates.STUDY / "tuning.csv"
    )
    found = learning_rates.gaps(tmp_path)
    assert found[HYBRID, VIT].tolist() == pytest.approx([-2.0, -0.5])
    assert found[HYBRID, RANDOM].tolist() == pytest.approx([-1.0, 0.1])
    text = learning_rates.table(tmp_path)
    assert "| 0.002 (the paper's) | -2.00 | -1.00 | -1.00 |" in text
    assert "| 0.032 (used) | -0.50 | -0.60 | +0.10 |" in text and "no positive control" in text


def test_the_record_has_the_gap_at_the_papers_rate() -> None:
    found = learning_rates.gaps(run_folder.records_dir())
    assert found.loc[0.002, [(HYBRID, RANDOM)]].item() == pytest.approx(-1.14, abs=0.005)
    assert abs(found.loc[learning_rates.used_rate(), [(HYBRID, RANDOM)]].item()) < 0.03


def test_without_trials_nothing_is_said(tmp_path: Path) -> None:
    assert learning_rates.table(tmp_path) == learning_rates.caution(tmp_path) == ""


def test_arms_that_were_trained_at_two_rates_are_set_side_by_side_at_equal_ones(
    tmp_path: Path,
) -> None:
    pair = (HYBRID, f"{HYBRID}_shuffled")
    records = run_folder.records_dir()
    ours, theirs, low, high = learning_rates.apart_at_equal_rates("left_atrium", *pair, records)
    table = pd.read_csv(records / "left_atrium" / "tuning.csv").set_index(["lr", "system"])
    dice = table["best_val_dice"]
    apart = [100 * (dice[lr, pair[0]] - dice[lr, pair[1]]) for lr in (0.004, 0.008, 0.016, 0.032)]
    assert (ours, theirs) == (0.008, 0.016)
    assert (low, high) == pytest.approx((min(apart), max(apart)))
    assert learning_rates.apart_at_equal_rates("hippocampus2_tuned", *pair, records) is None
    assert learning_rates.apart_at_equal_rates("left_atrium", *pair, tmp_path) is None
