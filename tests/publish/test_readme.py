"""The README's results: beside the papers where there are scans, beside nothing where data are
made, holes in words."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from mvl.core import columns, files, run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import Config, load_config
from mvl.core.means import mean
from mvl.evidence.reported import reported
from mvl.publish import readme
from mvl.publish.readme import update_readme
from mvl.study import tables
from mvl.study.tables import TableError, collect

DICE = (0.8123456789012345, 0.1 + 0.2, 1 / 3)


def make_run(results: Path, config: Config, shift: float = 0.0) -> None:
    folder = run_folder.run_dir(results, config)
    run_folder.write_config(folder, config)
    files.write_json(folder / "environment.json", {})
    files.write_csv(
        folder / "history.csv",
        [dict(zip(tables.HISTORY_COLUMNS, (1, 1e-3, 0.3, 0.5, 0.25)))],
        tables.HISTORY_COLUMNS,
    )
    fixed = {
        "label": "foreground",
        "status": "ok",
        "jaccard": 0.5,
        "sensitivity": 0.5,
        "specificity": 1.0,
        "nsd": 0.5,
        "hd95_mm": 2.0,
        "dice_resized": 0.5,
        "nsd_tolerance_mm": 1.0,
        "voxels_label": 10,
        "voxels_prediction": 12,
    }
    names = {k: getattr(config, k) for k in columns.RUN_KEYS}
    files.write_csv(
        folder / "cases.csv",
        [names | fixed | {"case": f"c{i}", "dice": d - shift} for i, d in enumerate(DICE)],
        tables.without_decathlon(CASE_COLUMNS),
    )
    files.atomic_write(folder / "weights.safetensors", "weights")
    run_folder.seal(
        folder,
        {
            "best_epoch": 0,
            "runtime_s": 1.5,
            "runtime_per_epoch_s": 0.75,
            "peak_memory_mb": 300.0,
            "parameters": {"trainable": 7, "frozen": 3, "total": 10},
        },
    )


def test_cases_are_counted_once_with_their_seeds() -> None:
    folds, arm = [0, 1, 0], {"task": "t", "system": "s", "fraction": 1.0}
    table = pd.DataFrame({**arm, "fold": folds, "state": "done", "n_test": 5})
    assert readme.counted(table, pd.Series({**arm, "n_cases": 15})) == "10 (15 scores)"
    assert readme.counted(table, pd.Series({**arm, "n_cases": 20})) == "10 x 2"
    assert readme.counted(table, pd.Series({**arm, "n_cases": 10})) == "10"


def test_scans_stand_beside_the_paper_and_phantoms_beside_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        load_config("hippocampus", task, system, 1.0, 0, seed)
        for task in ("Task04_Hippocampus", "phantoms")
        for system in ("vit_baseline", "medvisionllama_v3")
        for seed in (0, 1)
    ]
    monkeypatch.setattr(tables, "study_runs", lambda name: configs)
    for config in configs[1:]:
        make_run(tmp_path, config, shift=0.01 * config.seed)
    collect("hippocampus", tmp_path)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nstale words\n{readme.END}\nafter\n")
    words = readme.readme_block(tmp_path)
    assert update_readme(page, words)
    assert not update_readme(page, words)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale words" not in text
    listed = readme.results_page(tmp_path)
    assert "(./hippocampus/runs/Task04_Hippocampus/vit_baseline)" in listed
    scans, phantoms = text.split("<details>")
    baseline, hybrid = [line for line in scans.splitlines() if line.startswith("| `")]
    assert "0.74 ± 0.05" in baseline and "0.87 ± 0.04" in hybrid
    assert (
        "[1 of 2](data/results/hippocampus/runs/Task04_Hippocampus/vit_baseline) | 3 |" in baseline
    )
    assert (
        "[2 of 2](data/results/hippocampus/runs/Task04_Hippocampus/medvisionllama_v3) | 3 x 2 |"
        in hybrid
        and " ± 0.007" in hybrid
    )
    assert phantoms.count("| `") == 2 and "0.74" not in phantoms and "0.87" not in phantoms


def test_pictures_have_iou_and_f1_and_an_arm_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [
        load_config("busi", "BUSI", system, 1.0, 0, 0)
        for system in ("cmunext", "llm4seg", "llm4seg_random")
    ]
    monkeypatch.setattr(tables, "study_runs", lambda name: configs)
    for config in configs[:2]:
        make_run(tmp_path, config)
    collect("busi", tmp_path)
    text = readme.readme_block(tmp_path)
    alone, hybrid = [line for line in text.splitlines() if line.startswith("| `")]
    assert "HD95, px" in text and "| 0.500 |" in alone and f"| {mean(DICE):.3f} |" in hybrid
    assert "80.63 % / 87.66 %" in hybrid and "80.63" not in alone
    assert "With a lesion alone" not in text and readme.NOTE in text, (
        "every picture of these has a lesion"
    )
    assert "Planned and not yet run (number of runs): `llm4seg_random` at 100 % (1)." in text


def test_a_lesion_alone_is_scored_apart_where_normal_pictures_are_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = pd.DataFrame(
        {
            "system": "cmunext",
            "status": ["ok", "true_negative"],
            "jaccard": [0.4, 1.0],
            "dice": [0.5, 1.0],
        }
    )
    monkeypatch.setattr(readme, "read_cases", lambda study, folder: pictures)
    assert "`cmunext` 0.400 / 0.500" in readme.lesion_note("busi", tmp_path)


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(TableError, match="results:begin"):
        update_readme(tmp_path / "README.md", "words")


def test_paper_numbers_are_whole() -> None:
    rows = reported().to_dict("records")
    keys = [tuple(r[k] for k in ("paper", "table", "task", "system", "metric")) for r in rows]
    assert len(set(keys)) == len(keys)
    assert all(
        math.isfinite(float(r["value"])) and r["source"] and r["confidence"] in "ABC" for r in rows
    )
    assert {r["paper"] for r in rows} == {"P1", "P1-v1", "P1-rerun", "P2"}
    status = {
        r["system"]: r["value"] for r in rows if r["table"] == "average" and r["metric"] == "hd95"
    }
    assert status["ViT-Baseline"] == 14.5
