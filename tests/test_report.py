"""What a chapter says is computed from its runs: holes are named, one pair of runs decides nothing, smoke numbers stand alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mvl import figures, report, runs, stats, studies, tables
from mvl.chapters import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, RANDOM, TOPICS, V1, VIT, Chapter
from mvl.style import colour, title

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
    intervals = [line for line in forest.axes[0].get_lines() if line.get_color() == colour(HYBRID) and len(line.get_xdata()) == 2]
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
    assert f"{title(VIT)} reaches a test Dice of" in report.answer(chapter)
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
    assert [row[:3] for row in rows] == [[title(s), "100%", f"{n} of 3"] for s, n in ((VIT, 3), (HYBRID, 1), (RANDOM, 0))]
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
    assert all(report.claim(topic) for topic in TOPICS)
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


def test_llm4seg_is_answered_in_iou_and_f1() -> None:
    arms = (CNN, LLM4SEG, LLM4SEG_RANDOM)
    keys = [{"study": "busi", "task": "BUSI", "system": s, "fraction": 1.0, "fold": 0, "seed": 0} for s in arms]
    score = lambda k, i: {"jaccard": 0.5 + 0.01 * (i + 3 * k), "dice": 0.6 + 0.01 * (i + 2 * k)}
    cases = pd.DataFrame([key | {"case": f"benign_{i:03d}", "label": "foreground"} | score(k, i) for k, key in enumerate(keys) for i in range(5)])
    table = pd.DataFrame([key | {"state": "done", "n_test": 5, "trainable": 1, "dice": 0.6, "jaccard": 0.5, "nsd": 0.5, "hd95_mm": 9.0, "run": "r"}
                          for key in keys], columns=tables.RUN_COLUMNS)
    chapter = Chapter("llm4seg", "busi", Path("data/runs"), table, cases, pd.DataFrame(), ())
    found = report.differences(chapter).set_index(["metric", "system", "reference"])["difference"]
    assert found["jaccard", LLM4SEG, CNN] == pytest.approx(0.03) and found["dice", LLM4SEG, LLM4SEG_RANDOM] == pytest.approx(-0.02)
    lines = [line for line in report.answer(chapter).splitlines() if line.startswith("- ")]
    assert len(lines) == 6 and "**+3.0 IoU points**" in lines[0] and "**+2.0 F1 points**" in lines[3]
    assert all("n = 5 case pairs" in line and "not decided" in line for line in lines)
    assert "HD95, px" in report.results_table(chapter) and "pictures' own grid" in report.results_table(chapter)
    assert "points of IoU or F1" in words(figures.paired_differences(report.differences(chapter)))
    assert "80.6" in report.compare(chapter) and "BUSI on the native grid" in report.compare(chapter)


def test_what_the_study_does_not_plan_is_named_in_the_answer() -> None:
    chapter = make_chapter(ALL, study="quick", topic="version_1")
    assert f"Not planned in the study `quick`: `{V1}`" in report.answer(chapter)
