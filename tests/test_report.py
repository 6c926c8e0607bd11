"""What a chapter says is computed from its runs: holes are named, one pair of runs decides nothing, smoke numbers stand alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mvl import evaluate, figures, report, runs, stats, studies, tables
from mvl.config import Config
from mvl.report import HYBRID, RANDOM, VIT, Chapter

CASES = 12
DICE = {VIT: 0.70, HYBRID: 0.75, RANDOM: 0.702}
WEIGHED = ("higher", "lower", "equivalent")


def case_dice(system: str, seed: int) -> np.ndarray:
    """Dice of each test case: the arm's mean, a spread over cases that all arms share, and a little of the run's own."""
    own = np.random.default_rng([seed, *system.encode()]).normal(0, 0.001, CASES)
    return DICE[system] + 0.05 * np.sin(np.arange(CASES)) + own


def make_chapter(done: dict[str, tuple[int, ...]], study: str = "quick", topic: str = "llm_hybrid", results: Path = Path("data/runs")) -> Chapter:
    """A chapter of seeds (0, 1, 2) on all the data, of which `done` lists those that each system has."""
    task = studies.load_study(study).tasks[0]
    keys = [{"study": study, "task": task, "system": s, "fraction": 1.0, "fold": 0, "seed": n} for s in DICE for n in (0, 1, 2)]
    rows = [key | ({"state": "done", "n_test": CASES, "trainable": 1234, "nsd": 0.5, "hd95_mm": 2.0, "jaccard": 0.6,
                    "dice": case_dice(key["system"], key["seed"]).mean()}
                   if key["seed"] in done.get(key["system"], ()) else {"state": "missing"})
            | {"run": f"{study}/runs/{task}/{key['system']}/fraction-1.0_fold-0_seed-{key['seed']}"} for key in keys]
    cases = [key | {"case": f"c{i}", "label": "foreground", "dice": d}
             for key in keys if key["seed"] in done.get(key["system"], ()) for i, d in enumerate(case_dice(key["system"], key["seed"]))]
    case_columns = [*tables.RUN_KEYS, "case", "label", "dice"]
    history = pd.DataFrame(columns=[*tables.RUN_KEYS, *tables.HISTORY_COLUMNS])
    return Chapter(topic, study, results, pd.DataFrame(rows, columns=tables.RUN_COLUMNS), pd.DataFrame(cases, columns=case_columns), history, ())


ALL = dict.fromkeys(DICE, (0, 1, 2))
ONE = dict.fromkeys(DICE, (0,))


def words(figure: matplotlib.figure.Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(matplotlib.text.Text))


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
    monkeypatch.setattr(report, "ensure_runs", lambda study, block, folder: blocks.append(block))
    return blocks


def test_a_chapter_reads_its_own_runs_and_names_its_holes(asked: list[str], tmp_path: Path) -> None:
    for config in studies.study_runs("quick"):
        if config.system in (VIT, "medvisionllama_v3_r2") or (config.system == HYBRID and config.seed == 0):
            write_run(tmp_path, config)
    chapter = report.open_chapter("llm_hybrid", "quick", tmp_path)
    assert asked == ["main"]
    assert set(chapter.runs["system"]) == {VIT, HYBRID, RANDOM} and set(chapter.runs["fraction"]) == {1.0}
    assert len(chapter.done) == 4 and len(chapter.cases) == 12 and len(chapter.history) == 4
    assert chapter.holes == (f"{figures.title(HYBRID)} at 100% of the data: 2 runs", f"{figures.title(RANDOM)} at 100% of the data: 3 runs")
    few = report.open_chapter("few_shot", "quick", tmp_path)
    assert set(few.runs["fraction"]) == {0.1, 0.3, 1.0} and set(few.runs["system"]) == {VIT, HYBRID}
    lora = report.open_chapter("lora_ablation", "quick", tmp_path)
    assert set(lora.done["system"]) == {"medvisionllama_v3_r2", HYBRID, VIT}


def test_records_are_read_and_never_written(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "records_dir", lambda: tmp_path)
    chapter = report.open_chapter("baseline", "quick", tmp_path)
    assert list(tmp_path.iterdir()) == [] and chapter.published
    assert chapter.holes == (f"{figures.title(VIT)} at 100% of the data: 3 runs",)
    assert "no answer" in report.answer(chapter)
    assert report.run_links(chapter) == "No run is recorded yet."


def test_a_study_without_the_chapters_block_is_a_hole(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "collect", lambda study, folder: folder)
    study = tmp_path / "small.yaml"
    study.write_text("title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline]}]")
    chapter = report.open_chapter("lora_ablation", str(study), tmp_path / "runs")
    assert "block `lora` is not in the grid" in chapter.holes[0]


def test_several_labels_of_a_case_become_their_mean() -> None:
    rows = make_chapter(ONE).cases.iloc[:2].assign(case="c0", label=["left", "right"], dice=[0.2, 0.6])
    assert report._foreground(rows)["dice"].tolist() == [pytest.approx(0.4)]
    both = pd.concat([rows, rows.iloc[:1].assign(label="foreground", dice=0.9)])
    assert report._foreground(both)["dice"].tolist() == [0.9]


def test_the_answer_gives_the_difference_and_its_verdict() -> None:
    chapter = make_chapter(ALL)
    table = report.differences(chapter).set_index(["system", "reference"])
    mean = lambda system: chapter.cases[chapter.cases["system"] == system]["dice"].mean()
    assert table.loc[(HYBRID, VIT), "difference"] == pytest.approx(mean(HYBRID) - mean(VIT))
    assert table["hole"].tolist() == ["", "", ""] and table["n_runs"].tolist() == [3, 3, 3]
    first, second, third = [line for line in report.answer(chapter).splitlines() if line.startswith("- ")]
    assert first.endswith("higher.") and f"**{100 * (mean(HYBRID) - mean(VIT)):+.1f} Dice points**" in first
    assert "n = 36 case pairs from 3 pairs of runs" in first and "p = " in first
    assert second.endswith("equivalent within 1 Dice point.") and third.endswith("higher.")
    assert "With 3 pairs of runs the interval is too narrow" in report.answer(chapter)
    assert stats.ONE_PAIR not in report.answer(chapter)


def test_one_pair_of_runs_decides_nothing_and_every_place_says_so() -> None:
    chapter = make_chapter(ONE, study="hippocampus")
    lines = [line for line in report.answer(chapter).splitlines() if line.startswith("- ")]
    assert len(lines) == 3
    for line in lines:
        assert "not decided" in line and stats.ONE_PAIR in line and not any(word in line for word in WEIGHED)
    assert "run-to-run variation is not measured" in report.results_table(chapter)
    assert "run-to-run variation not measured" in report.answer(replace(chapter, topic="baseline"))
    forest = figures.paired_differences(report.differences(chapter))
    assert stats.ONE_PAIR in words(forest)
    intervals = [line for line in forest.axes[0].get_lines() if line.get_color() == figures.colour(HYBRID) and len(line.get_xdata()) == 2]
    assert intervals and all(line.is_dashed() for line in intervals)


def test_several_pairs_of_runs_carry_no_such_note() -> None:
    chapter = make_chapter(ALL)
    assert "not measured" not in report.results_table(chapter)
    forest = figures.paired_differences(report.differences(chapter))
    assert stats.ONE_PAIR not in words(forest) and not any(line.is_dashed() for line in forest.axes[0].get_lines())


def test_systems_without_a_common_run_leave_a_hole() -> None:
    chapter = make_chapter({VIT: (0, 1), HYBRID: (0, 1), RANDOM: (2,)})
    table = report.differences(chapter)
    assert table["n_runs"].tolist() == [2, 0, 0]
    assert all("share no finished (fold, seed)" in hole for hole in table["hole"][1:]) and table["low"][1:].isna().all()
    assert report.answer(chapter).count("not yet recorded") == 2
    assert words(figures.paired_differences(table)).count("share no finished (fold, seed)") == 2


def test_no_common_run_at_all_is_a_card_and_means() -> None:
    chapter = make_chapter({VIT: (0, 1), RANDOM: (2,)})
    assert "no pairs of finished runs" in words(figures.paired_differences(report.differences(chapter)))
    assert f"{figures.title(VIT)} reaches a test Dice of" in report.answer(chapter)
    assert report.answer(chapter).count("not yet recorded") == 3


@pytest.mark.parametrize(("low", "high", "p", "p_equivalence", "word"), [
    (0.02, 0.05, 0.01, 0.9, "higher"), (-0.05, -0.02, 0.01, 0.9, "lower"), (-0.002, 0.003, 0.6, 0.01, "equivalent within 1 Dice point"),
    (-0.02, 0.05, 0.01, 0.9, "not decided"), (0.02, 0.05, 0.2, 0.9, "not decided"), (-0.002, 0.003, 0.6, 0.2, "not decided"),
    (0.02, 0.05, math.nan, math.nan, "not decided"), (-0.05, -0.02, math.nan, math.nan, "not decided"),
    (-0.002, 0.003, math.nan, math.nan, "not decided")])
def test_a_verdict_needs_interval_and_test(low: float, high: float, p: float, p_equivalence: float, word: str) -> None:
    assert report.verdict(low, high, p, p_equivalence) == word


def test_results_table_has_a_row_for_each_arm_done_or_not() -> None:
    chapter = make_chapter({VIT: (0, 1, 2), HYBRID: (1,)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.results_table(chapter).splitlines()[2:5]]
    assert [row[:3] for row in rows] == [[figures.title(s), "100%", f"{n} of 3"] for s, n in ((VIT, 3), (HYBRID, 1), (RANDOM, 0))]
    dice = [case_dice(VIT, seed).mean() for seed in (0, 1, 2)]
    assert rows[0][3:5] == [str(CASES), f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f}"] and rows[0][-1] == "1,234"
    assert "±" not in "".join(rows[1]) and rows[2][3] == "not yet recorded"
    assert "Phantom data." in report.results_table(chapter)


def test_phantoms_never_stand_beside_the_papers_numbers() -> None:
    smoke, scans = make_chapter(ALL), make_chapter(ALL, study="hippocampus")
    assert smoke.smoke and not scans.smoke
    assert report.answer(smoke).startswith("**Smoke study") and not report.answer(scans).startswith("**Smoke")
    assert "is not set beside these numbers" in report.compare(smoke)
    assert "Task04_Hippocampus on the native grid" in report.compare(scans)


def test_a_claims_numbers_are_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"**{report.paper_value('average', 'MedVisionLlama'):.2f}**" in report.claim("llm_hybrid")
    table = report.reported()
    table.loc[(table["table"] == "average") & (table["system"] == "MedVisionLlama") & (table["metric"] == "dice"), "value"] = 0.11
    table.to_csv(tmp_path / "paper.csv", index=False)
    monkeypatch.setattr(report, "PAPER_TABLE", tmp_path / "paper.csv")
    assert "**0.11**" in report.claim("llm_hybrid")
    assert all(report.claim(topic) for topic in report.TOPICS)
    with pytest.raises(KeyError, match=r"0 rows for P1, average, Nobody"):
        report.paper_value("average", "Nobody")


def test_runs_are_linked_only_where_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = make_chapter({VIT: (0,)}, results=tmp_path)
    assert f"{VIT}/fraction-1.0_fold-0_seed-0" in report.run_links(chapter) and "http" not in report.run_links(chapter)
    monkeypatch.setattr(runs, "records_dir", lambda: tmp_path)
    run = chapter.done["run"].iloc[0]
    assert f"]({report.repository_url()}/blob/main/data/results/{run}/cases.csv)" in report.run_links(chapter)
    assert "results_dir data/results" in report.repeat(chapter, "01_baseline")


def test_inputs_are_the_hashes_of_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "runs.csv").write_text("x")
    lines = report.inputs(make_chapter(ALL, results=tmp_path)).splitlines()
    assert lines == [f"{runs.sha256_bytes(b'x')}  quick/runs.csv", f"{runs.sha256_file(report.PAPER_TABLE)}  data/paper_reported.csv"]
