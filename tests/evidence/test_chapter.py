"""A chapter reads its own runs, names its holes, and never trains into the published records."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.core.config import Config, system_names
from mvl.evidence import chapter as chapter_module
from mvl.evidence import differences
from mvl.evidence.arms import title
from mvl.evidence.chapter import (
    Chapter,
    _foreground,
    covered,
    open_chapter,
    planned_pairs,
    train_chapter,
    units_of,
    unplanned,
)
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, MLP, RANDOM, TOPICS, V1, VIT
from mvl.publish import chapter_page
from mvl.study import tables
from mvl.study.grid import load_study, study_runs
from tests.finished_run import write_run


def done(results: Path, config: Config) -> None:
    """A finished run of three cases."""
    parameters = {"trainable": 7, "frozen": 3, "total": 10}
    write_run(results, config, [{"case": f"c{i}"} for i in range(3)], parameters=parameters)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arms that a chapter asked to be trained, each once; none is."""
    arms: list[str] = []
    monkeypatch.setattr(
        chapter_module,
        "ensure_runs",
        lambda study, runs, folder, allow_drift: arms.extend(dict.fromkeys(r.system for r in runs)),
    )
    return arms


def trained_chapter(topic: str, study: str, results: Path) -> Chapter:
    """A chapter as a notebook opens it: what it lacks is asked for, the tables are collected."""
    train_chapter(topic, study, results)
    return open_chapter(topic, study, results)


def test_a_chapter_reads_its_own_runs_and_names_its_holes(asked: list[str], tmp_path: Path) -> None:
    for config in study_runs("quick"):
        if config.system in (VIT, "medvisionllama_v3_r2") or (
            config.system == HYBRID and config.seed == 0
        ):
            done(tmp_path, config)
    train_chapter("llm_hybrid", "quick", tmp_path)
    assert asked == [VIT, HYBRID, f"{HYBRID}_shuffled"]
    asked.clear()
    train_chapter("baseline", "quick", tmp_path)
    assert asked == [VIT], "a reader of one chapter waits for no arm of another"
    chapter = open_chapter("llm_hybrid", "quick", tmp_path)
    assert set(chapter.runs["system"]) == {VIT, HYBRID, f"{HYBRID}_shuffled"} and set(
        chapter.runs["fraction"]
    ) == {1.0}
    assert len(chapter.done) == 4 and len(chapter.cases) == 12 and len(chapter.history) == 4
    assert chapter.holes == (
        f"{title(HYBRID)} at 100% of the data: 2 runs",
        f"{title(f'{HYBRID}_shuffled')} at 100% of the data: 3 runs",
    )
    few = open_chapter("few_shot", "quick", tmp_path)
    assert set(few.runs["fraction"]) == {0.1, 0.3, 1.0} and set(few.runs["system"]) == {VIT, HYBRID}
    lora = open_chapter("lora_ablation", "quick", tmp_path)
    assert set(lora.done["system"]) == {"medvisionllama_v3_r2", HYBRID, VIT}


def test_records_are_read_and_never_written(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    train_chapter("baseline", "quick", tmp_path)
    chapter = open_chapter("baseline", "quick", tmp_path)
    assert not asked and list(tmp_path.iterdir()) == [] and chapter.published
    assert chapter.holes == (f"{title(VIT)} at 100% of the data: 3 runs",)
    assert "no answer" in chapter_page.answer(chapter)
    assert chapter_page.run_links(chapter) == "No run is recorded yet."


def test_a_study_without_the_chapters_block_is_a_hole(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "collect", lambda study, folder: folder)
    study = tmp_path / "small.yaml"
    study.write_text("title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline]}]")
    chapter = trained_chapter("lora_ablation", str(study), tmp_path / "runs")
    assert "block `lora` is not in the grid" in chapter.holes[0]


def test_several_labels_of_a_case_become_their_mean() -> None:
    key = {
        "study": "s",
        "task": "t",
        "system": VIT,
        "fraction": 1.0,
        "fold": 0,
        "seed": 0,
        "case": "c0",
    }
    rows = pd.DataFrame(
        [key | {"label": "left", "dice": 0.2}, key | {"label": "right", "dice": 0.6}]
    )
    assert _foreground(rows)["dice"].tolist() == [pytest.approx(0.4)]
    both = pd.concat([rows, rows.iloc[:1].assign(label="foreground", dice=0.9)])
    assert _foreground(both)["dice"].tolist() == [0.9]


def test_every_topic_names_systems_that_there_are() -> None:
    named = {
        s
        for spec in TOPICS.values()
        for s in (*spec.extra, *spec.only, *(s for pair in spec.contrasts for s in pair))
    }
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


def test_only_planned_contrasts_are_taken_and_the_others_are_named(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    chapter = trained_chapter("version_1", str(tmp_path / "small.yaml"), tmp_path)
    assert chapter.contrasts == [(V1, VIT), (V1, HYBRID)]
    assert set(unplanned(chapter)) == {f"{V1}_{part}" for part in ("plain", "hybrid", "fusion")}
    assert set(chapter.runs["system"]) == {V1, VIT, HYBRID}
    controls = trained_chapter("controls", str(tmp_path / "small.yaml"), tmp_path)
    assert controls.contrasts == [] and controls.holes[0].startswith(
        "block `controls` is not in the grid"
    )


def test_a_chapter_has_the_tasks_and_the_unit_of_its_blocks(
    asked: list[str], tmp_path: Path
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    study = str(tmp_path / "small.yaml")
    flat, deep = (trained_chapter(topic, study, tmp_path) for topic in ("llm4seg", "llm_hybrid"))
    assert (flat.tasks, flat.unit, flat.smoke) == (["shapes"], "px", True)
    assert (deep.tasks, deep.unit, deep.smoke) == (["phantoms"], "mm", True)
    assert flat.contrasts == [
        (LLM4SEG, CNN),
        (LLM4SEG_RANDOM, CNN),
        (LLM4SEG, LLM4SEG_RANDOM),
    ] and "llm4seg_t" in unplanned(flat)
    assert covered(study) == ["baseline", "llm_hybrid", "qualitative", "version_1", "llm4seg"]
    assert flat.folder == tmp_path / "small" and (flat.folder / "runs.csv").is_file()


GRID = """
title: t
tasks: [phantoms]
grid:
  - {name: main, systems: [vit_baseline, medvisionllama_v3, medvisionllama_v3_random,
     medvisionllama_v3_mlp],
     folds: [0, 1, 2], seeds: [0, 1]}
  - {name: few_shot, systems: [vit_baseline, medvisionllama_v3, medvisionllama_v3_random],
     fractions: [0.1, 0.3], folds: [0, 1, 2], seeds: [0]}
  - {name: lora, systems: [medvisionllama_v3_r2, medvisionllama_v3_lora_block],
     folds: [0, 1], seeds: [0]}
  - {name: peers, systems: [unet, unetr], folds: [0, 1], seeds: [0]}
  - {name: peers_large, systems: [unetpp], folds: [0], seeds: [0]}
  - {name: llm4seg, tasks: [shapes], systems: [cmunext, llm4seg, llm4seg_random, llm4seg_t],
     folds: [0, 1], seeds: [0]}
  - {name: label_noise, tasks: [shapes], systems: [cmunext_boundary50, llm4seg_boundary50,
     llm4seg_random_boundary50],
     folds: [0], seeds: [0]}
task_overrides: {shapes: {data: {img_size: [32, 32]}}}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of every block, each of its runs done."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.yaml").write_text(GRID)
    for config in study_runs(str(folder / "grid.yaml")):
        done(folder, config)
    return folder


def test_arms_that_stand_beside_have_the_folds_and_seeds_of_the_topics_own(
    asked: list[str], grid: Path
) -> None:
    lora, few, peers = (
        trained_chapter(topic, str(grid / "grid.yaml"), grid)
        for topic in ("lora_ablation", "few_shot", "comparators")
    )
    at = ["fraction", "fold", "seed"]

    def units(chapter, system):
        return set(
            chapter.done.loc[chapter.done["system"] == system, at].itertuples(
                index=False, name=None
            )
        )

    assert units(lora, HYBRID) == units(lora, "medvisionllama_v3_r2") == {(1.0, 0, 0), (1.0, 1, 0)}
    assert (
        units(few, HYBRID)
        == units(few, RANDOM)
        == {(share, fold, 0) for share in (0.1, 0.3, 1.0) for fold in (0, 1, 2)}
    )
    assert units(peers, "unetpp") == {(1.0, 0, 0)} and units(peers, VIT) == {
        (1.0, 0, 0),
        (1.0, 1, 0),
    }
    assert not lora.holes and not few.holes and not peers.holes
    table = differences.differences(lora)
    assert (
        set(table["n_runs"]) == {2}
        and set(table["unpaired"]) == {0}
        and set(table["reference"]) == {HYBRID}
    )
    counted = differences.differences(peers).set_index(["system", "reference"])["n_runs"].to_dict()
    assert counted == {
        (peer, reference): n
        for peer, n in (("unet", 2), ("unetr", 2), ("unetpp", 1))
        for reference in (VIT, HYBRID)
    }


def test_a_run_that_is_planned_beside_and_not_there_is_a_hole(
    asked: list[str], tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    for config in study_runs(str(tmp_path / "grid.yaml"), "lora"):
        done(tmp_path, config)
    lora = trained_chapter("lora_ablation", str(tmp_path / "grid.yaml"), tmp_path)
    assert lora.holes == (
        f"{title(HYBRID)} at 100% of the data: 2 runs",
        f"{title(VIT)} at 100% of the data: 2 runs",
    )


def test_noise_is_compared_at_each_rate_with_the_clean_arms_beside(
    asked: list[str], grid: Path
) -> None:
    noise = trained_chapter("label_noise", str(grid / "grid.yaml"), grid)
    assert noise.contrasts == [
        ("llm4seg_boundary50", "cmunext_boundary50"),
        ("llm4seg_random_boundary50", "cmunext_boundary50"),
    ]
    assert (
        set(noise.done["system"]) >= {CNN, LLM4SEG, LLM4SEG_RANDOM}
        and set(noise.done["fold"]) == {0}
        and noise.tasks == ["shapes"]
    )
    assert {"llm4seg_boundary20", "cmunext_boundary20"} <= set(unplanned(noise))


def test_the_hybrid_stands_against_baseline_random_block_and_matched_mlp(
    asked: list[str], grid: Path
) -> None:
    main = trained_chapter("llm_hybrid", str(grid / "grid.yaml"), grid)
    assert main.contrasts == [
        (HYBRID, VIT),
        (RANDOM, VIT),
        (MLP, VIT),
        (HYBRID, RANDOM),
        (HYBRID, MLP),
    ]
    assert len(main.done) == 24 and not main.holes


@pytest.mark.parametrize(
    ("topic", "pair", "fraction"),
    [
        ("llm_hybrid", (HYBRID, VIT), 1.0),
        ("few_shot", (RANDOM, VIT), 0.1),
        ("lora_ablation", ("medvisionllama_v3_r2", HYBRID), 1.0),
        ("comparators", ("swinunetr", VIT), 1.0),
    ],
)
def test_planned_pairs_are_those_of_the_grid(
    topic: str, pair: tuple[str, str], fraction: float
) -> None:
    grid, plan = study_runs("hippocampus"), load_study("hippocampus")
    of_arm = [
        {(r.fold, r.seed) for r in grid if (r.system, r.fraction) == (system, fraction)}
        for system in pair
    ]
    own = {(fold, seed) for _, fold, seed in units_of(plan, TOPICS[topic])}
    found = planned_pairs(plan, TOPICS[topic], *pair, "Task04_Hippocampus", fraction)
    assert found == tuple(sorted(of_arm[0] & of_arm[1] & own)) and found
    assert planned_pairs(plan, TOPICS[topic], *pair, "phantoms", fraction) == ()
    assert (
        planned_pairs(plan, TOPICS[topic], pair[0], "nobody", "Task04_Hippocampus", fraction) == ()
    )


def test_a_run_of_one_task_is_none_of_another(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    runs = study_runs(str(tmp_path / "grid.yaml"), "main")
    spec, plan = TOPICS["llm_hybrid"], load_study(str(tmp_path / "grid.yaml"))
    keys = ["task", "system", "fraction", "fold", "seed"]
    rows = [{key: getattr(run, key) for key in keys} | {"state": "done"} for run in runs]
    elsewhere = pd.DataFrame(rows).assign(task="another")
    study = str(tmp_path / "grid.yaml")
    assert chapter_module._holes(study, plan, spec, pd.DataFrame(rows)) == []
    assert chapter_module._holes(study, plan, spec, elsewhere) != []
