"""The card prints the run's own numbers: its cases, its means, and what its block is used for."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

from mvl.core.config import ROOT
from mvl.core.run_folder import read_config, read_status
from mvl.datasets.registry import task_of_run
from mvl.training import export_card

RUN = (
    ROOT / "data/results/hippocampus2_published/runs/Task04_Hippocampus/medvisionllama_v3"
    "/fraction-1.0_fold-0_seed-0"
)


def made(run: Path = RUN) -> str:
    config, status = read_config(run), read_status(run)
    return export_card.card(run, config, task_of_run(config, status), status, "a layer.", "ONNX.")


def test_the_card_of_a_recorded_run_has_its_numbers() -> None:
    text = made()
    rows = list(csv.DictReader((RUN / "cases.csv").open()))
    mean = sum(float(row["dice"]) for row in rows) / len(rows)
    assert f"| foreground | {len(rows)} | {mean:.3f} |" in text
    assert f"Dice {min(float(row['dice']) for row in rows):.3f}" in text
    used = {row["intervention"]: row for row in csv.DictReader((RUN / "usage.csv").open())}
    change = 100 * float(used["zero"]["dice_difference"])
    assert f"its output set to zero: {change:+.2f} Dice points" in text
    status = read_status(RUN)
    assert f"{status['n']['train']} cases trained" in text and "CC-BY-SA 4.0" in text
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["library_name"] == "mvl" and "CC-BY-SA 4.0" in header["license_name"]


def test_a_network_without_a_block_has_no_section_on_it() -> None:
    plain = RUN.parent.parent / "vit_baseline" / RUN.name
    assert "Use of the block" in made() and "Use of the block" not in made(plain)


def test_what_is_said_of_onnx_follows_what_was_found() -> None:
    assert "by at most 3.2e-06" in export_card.onnx_words(3.2e-6, "")
    assert export_card.onnx_words(None, "why").endswith("why.")
