"""A chapter reads its own runs, names its holes, and never trains into the published records."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mvl import chapters, evaluate, report, runs, studies, tables
from mvl.chapters import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, RANDOM, TOPICS, V1, VIT
from mvl.config import Config, system_names
from mvl.style import title


def write_run(results: Path, config: Config) -> None:
    """A finished run of three cases, as training leaves it."""
    folder = runs.run_dir(results, config)
    runs.write_config(folder, config)
    runs.write_json(folder / "environment.json", {})
    runs.write_csv(folder / "history.csv", [dict(zip(tables.HISTORY_COLUMNS, (1, 1e-3, 0.5, 0.5, 0.5)))], tables.HISTORY_COLUMNS)
    fixed = dict.fromkeys(evaluate.CASE_COLUMNS, 0.5) | {k: getattr(config, k) for k in tables.RUN_KEYS} | {"label": "foreground", "status": "ok"}
    runs.write_csv(folder / "cases.csv", [fixed | {"case": f"c{i}"} for i in range(3)], evaluate.CASE_COLUMNS)
    runs.atomic_write(folder / "weights.safetensors", runs.run_name(config))
    parameters = {"trainable": 7, "frozen": 3, "total": 10}
    runs.seal(folder, {"best_epoch": 1, "runtime_s": 1.0, "runtime_per_epoch_s": 1.0, "peak_memory_mb": 1.0, "parameters": parameters})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Blocks that a chapter asked to be trained; none is."""
    blocks: list[str] = []
    monkeypatch.setattr(chapters, "ensure_runs", lambda study, block, folder: blocks.append(block))
    return blocks


def test_a_chapter_reads_its_own_runs_and_names_its_holes(asked: list[str], tmp_path: Path) -> None:
    for config in studies.study_runs("quick"):
        if config.system in (VIT, "medvisionllama_v3_r2") or (config.system == HYBRID and config.seed == 0):
            write_run(tmp_path, config)
    chapter = chapters.open_chapter("llm_hybrid", "quick", tmp_path)
    assert asked == ["main"]
    assert set(chapter.runs["system"]) == {VIT, HYBRID, RANDOM} and set(chapter.runs["fraction"]) == {1.0}
    assert len(chapter.done) == 4 and len(chapter.cases) == 12 and len(chapter.history) == 4
    assert chapter.holes == (f"{title(HYBRID)} at 100% of the data: 2 runs", f"{title(RANDOM)} at 100% of the data: 3 runs")
    few = chapters.open_chapter("few_shot", "quick", tmp_path)
    assert set(few.runs["fraction"]) == {0.1, 0.3, 1.0} and set(few.runs["system"]) == {VIT, HYBRID}
    lora = chapters.open_chapter("lora_ablation", "quick", tmp_path)
    assert set(lora.done["system"]) == {"medvisionllama_v3_r2", HYBRID, VIT}


def test_records_are_read_and_never_written(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "records_dir", lambda: tmp_path)
    chapter = chapters.open_chapter("baseline", "quick", tmp_path)
    assert list(tmp_path.iterdir()) == [] and chapter.published
    assert chapter.holes == (f"{title(VIT)} at 100% of the data: 3 runs",)
    assert "no answer" in report.answer(chapter)
    assert report.run_links(chapter) == "No run is recorded yet."


def test_a_study_without_the_chapters_block_is_a_hole(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "collect", lambda study, folder: folder)
    study = tmp_path / "small.yaml"
    study.write_text("title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline]}]")
    chapter = chapters.open_chapter("lora_ablation", str(study), tmp_path / "runs")
    assert "block `lora` is not in the grid" in chapter.holes[0]


def test_several_labels_of_a_case_become_their_mean() -> None:
    key = {"study": "s", "task": "t", "system": VIT, "fraction": 1.0, "fold": 0, "seed": 0, "case": "c0"}
    rows = pd.DataFrame([key | {"label": "left", "dice": 0.2}, key | {"label": "right", "dice": 0.6}])
    assert chapters._foreground(rows)["dice"].tolist() == [pytest.approx(0.4)]
    both = pd.concat([rows, rows.iloc[:1].assign(label="foreground", dice=0.9)])
    assert chapters._foreground(both)["dice"].tolist() == [0.9]


def test_every_topic_names_systems_that_there_are() -> None:
    named = {s for spec in TOPICS.values() for s in (*spec.extra, *spec.only, *(s for pair in spec.contrasts for s in pair))}
    assert named <= set(system_names())


SMALL = """
title: t
tasks: [phantoms]
grid:
  - {name: main, systems: [vit_baseline, medvisionllama_v3]}
  - {name: v1, systems: [medvisionllama_v1]}
  - {name: llm4seg, tasks: [shapes], systems: [cmunext, llm4seg, llm4seg_random]}
task_overrides: {shapes: {data: {img_size: [32, 32]}}}
"""


def test_only_planned_contrasts_are_taken_and_the_others_are_named(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    chapter = chapters.open_chapter("version_1", str(tmp_path / "small.yaml"), tmp_path)
    assert chapter.contrasts == [(V1, VIT), (V1, HYBRID)]
    assert set(chapters.unplanned(chapter)) == {f"{V1}_{part}" for part in ("plain", "hybrid", "fusion", "noblock")}
    assert set(chapter.runs["system"]) == {V1, VIT, HYBRID}
    controls = chapters.open_chapter("controls", str(tmp_path / "small.yaml"), tmp_path)
    assert controls.contrasts == [] and controls.holes[0].startswith("block `controls` is not in the grid")


def test_a_chapter_has_the_tasks_and_the_unit_of_its_blocks(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    study = str(tmp_path / "small.yaml")
    flat, deep = (chapters.open_chapter(topic, study, tmp_path) for topic in ("llm4seg", "llm_hybrid"))
    assert (flat.tasks, flat.unit, flat.smoke) == (["shapes"], "px", True)
    assert (deep.tasks, deep.unit, deep.smoke) == (["phantoms"], "mm", True)
    assert flat.contrasts == [(LLM4SEG, CNN), (LLM4SEG_RANDOM, CNN), (LLM4SEG, LLM4SEG_RANDOM)]
    assert chapters.covered(study) == ["baseline", "llm_hybrid", "version_1", "llm4seg"]
    assert flat.folder == tmp_path / "small" and (flat.folder / "runs.csv").is_file()
