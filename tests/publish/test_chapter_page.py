"""What a chapter says is computed from its runs: holes are named, one pair of runs decides nothing,
smoke numbers stand alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mvl.core import columns, files, run_folder
from mvl.evidence import decision, differences, reported, stats
from mvl.evidence.arms import colour, title
from mvl.evidence.chapter import Chapter
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, RANDOM, TOPICS, V1, VIT
from mvl.publish import chapter_page, figures_differences, paper_words
from mvl.study import grid, links, tables

CASES = 12
DICE = {VIT: 0.70, HYBRID: 0.75, RANDOM: 0.702}
WEIGHED = ("higher", "lower", "equivalent")


STUDY = str(Path(__file__).with_name("three_arms.yaml"))


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contrast is planned over folds 0, 1 and 2 at seed 0, whatever the grid of the named
    study is."""
    monkeypatch.setattr(differences, "planned_pairs", lambda *_: ((0, 0), (1, 0), (2, 0)))


def case_dice(system: str, fold: int) -> np.ndarray:
    """Dice of each test case: the arm's mean, a spread over cases that all arms share, and a little
    of the run's own."""
    own = np.random.default_rng([fold, *system.encode()]).normal(0, 0.001, CASES)
    return DICE[system] + 0.05 * np.sin(np.arange(CASES)) + own


def make_chapter(
    done: dict[str, tuple[int, ...]],
    study: str = STUDY,
    topic: str = "llm_hybrid",
    results: Path = Path("data/runs"),
) -> Chapter:
    """A chapter of folds (0, 1, 2) on all the data, of which `done` lists those that each system
    has."""
    task = grid.load_study(study).tasks[0]
    keys = [
        {"study": study, "task": task, "system": s, "fraction": 1.0, "fold": n, "seed": 0}
        for s in DICE
        for n in (0, 1, 2)
    ]
    rows = [
        key
        | (
            {
                "state": "done",
                "n_test": CASES,
                "trainable": 1234,
                "nsd": 0.5,
                "hd95_mm": 2.0,
                "jaccard": 0.6,
                "dice": case_dice(key["system"], key["fold"]).mean(),
            }
            if key["fold"] in done.get(key["system"], ())
            else {"state": "missing"}
        )
        | {"run": f"{study}/runs/{task}/{key['system']}/fraction-1.0_fold-{key['fold']}_seed-0"}
        for key in keys
    ]
    cases = [
        key | {"case": f"c{i}", "label": "foreground", "dice": d}
        for key in keys
        if key["fold"] in done.get(key["system"], ())
        for i, d in enumerate(case_dice(key["system"], key["fold"]))
    ]
    case_columns = [*columns.RUN_KEYS, "case", "label", "dice"]
    history = pd.DataFrame(columns=[*columns.RUN_KEYS, *tables.HISTORY_COLUMNS])
    return Chapter(
        topic,
        study,
        results,
        pd.DataFrame(rows, columns=tables.RUN_COLUMNS),
        pd.DataFrame(cases, columns=case_columns),
        history,
        (),
    )


ALL = dict.fromkeys(DICE, (0, 1, 2))
ONE = dict.fromkeys(DICE, (0,))


def words(figure: matplotlib.figure.Figure) -> str:
    return " ".join(
        " ".join(text.get_text().split()) for text in figure.findobj(matplotlib.text.Text)
    )


def test_the_answer_gives_the_difference_and_its_verdict() -> None:
    chapter = make_chapter(ALL)
    table = differences.differences(chapter).set_index(["system", "reference"])

    def mean(system):
        return chapter.cases[chapter.cases["system"] == system]["dice"].mean()

    assert table.loc[(HYBRID, VIT), "difference"] == pytest.approx(mean(HYBRID) - mean(VIT))
    assert table["hole"].tolist() == ["", "", ""] and table["n_runs"].tolist() == [3, 3, 3]
    first, second, third = [
        line for line in chapter_page.answer(chapter).splitlines() if line.startswith("- ")
    ]
    assert (
        first.endswith("higher.")
        and f"**{100 * (mean(HYBRID) - mean(VIT)):+z.2f} Dice points**" in first
    )
    assert "n = 36 cases, 3 pairs of runs" in first and "p = " in first
    assert second.endswith("equivalent within 1 Dice point.") and third.endswith("higher.")
    assert (
        f"p = {table.loc[(HYBRID, VIT), 'p_t']:.2g}, {table.loc[(HYBRID, VIT), 'p_holm']:.2g} after"
        " Holm" in first
    )
    assert chapter_page.INTERVAL in chapter_page.answer(chapter)
    assert stats.ONE_PAIR not in chapter_page.answer(chapter)


def test_a_dropped_run_changes_sentence_and_verdict() -> None:
    whole, dropped = (
        next(
            line
            for line in chapter_page.answer(make_chapter(done)).splitlines()
            if line.startswith("- ")
        )
        for done in (ALL, ALL | {VIT: (0, 1)})
    )
    assert whole.endswith("3 pairs of runs): higher.")
    assert (
        dropped.endswith(
            "2 of 3 planned pairs of runs): not decided, incomplete, 1 planned pair of runs"
            " missing."
        )
        and "after Holm" not in dropped
    )
    table = differences.differences(make_chapter(ALL | {VIT: (0, 1)}))
    assert table["complete"].tolist() == [False, False, True] and table[
        "p_holm"
    ].isna().tolist() == [True, True, False]
    assert (
        chapter_page.answer(make_chapter(ALL | {VIT: (0,)})).count("1 of 3 planned pairs of runs")
        == 2
    )


def test_the_family_is_what_was_planned_not_what_is_there() -> None:
    whole, holes = (
        differences.differences(make_chapter(done)).set_index(["system", "reference"])
        for done in (ALL, ALL | {VIT: ()})
    )
    p = whole.loc[(HYBRID, RANDOM), "p_t"]
    assert whole["p_holm"].tolist() == pytest.approx(stats.holm(whole["p_t"].tolist()))
    assert holes.loc[(HYBRID, RANDOM), "p_holm"] == pytest.approx(3 * p) and holes[
        "planned"
    ].tolist() == [3, 3, 3]
    assert "not yet recorded (0 of 3 planned pairs of runs" in chapter_page.answer(
        make_chapter(ALL | {VIT: ()})
    )


def test_several_seeds_of_one_fold_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = make_chapter(ALL)
    seeds = replace(chapter, cases=chapter.cases.assign(seed=chapter.cases["fold"], fold=0))
    monkeypatch.setattr(differences, "planned_pairs", lambda *_: ((0, 0), (0, 1), (0, 2)))
    lines = [line for line in chapter_page.answer(seeds).splitlines() if line.startswith("- ")]
    assert len(lines) == 3 and all("no test: one fold" in line for line in lines)
    assert all(
        line.endswith("not decided, too few runs, 1 fold where 3 are needed.") for line in lines
    )


def test_what_the_grid_does_not_plan_is_no_smaller_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        differences,
        "planned_pairs",
        lambda *names: ((0, 0), (1, 0), (2, 0)) if VIT in names else (),
    )
    table = differences.differences(make_chapter(ALL))
    assert table["hole"].tolist()[:2] == ["", ""] and "not planned in the study" in table["hole"][2]
    assert table["p_holm"][:2].tolist() == pytest.approx(stats.holm(table["p_t"][:2].tolist()))


def test_one_pair_of_runs_decides_nothing_and_every_place_says_so() -> None:
    chapter = make_chapter(ONE, study="hippocampus")
    lines = [
        line
        for line in chapter_page.answer(chapter).splitlines()
        if line.startswith("- ") and "not yet recorded" not in line
    ]
    assert len(lines) == 3
    for line in lines:
        assert (
            "not decided" in line
            and stats.ONE_PAIR in line
            and not any(word in line for word in WEIGHED)
        )
    assert "run-to-run variation is not measured" in chapter_page.results_table(chapter)
    assert "run-to-run variation not measured" in chapter_page.answer(
        replace(chapter, topic="baseline")
    )
    forest = figures_differences.paired_differences(differences.differences(chapter))
    assert stats.ONE_PAIR in words(forest)
    intervals = [
        line
        for line in forest.axes[0].get_lines()
        if line.get_color() == colour(HYBRID) and len(line.get_xdata()) == 2
    ]
    assert intervals and all(line.is_dashed() for line in intervals)


def test_several_pairs_of_runs_carry_no_such_note() -> None:
    chapter = make_chapter(ALL)
    assert "not measured" not in chapter_page.results_table(chapter)
    forest = figures_differences.paired_differences(differences.differences(chapter))
    assert stats.ONE_PAIR not in words(forest) and not any(
        line.is_dashed() for line in forest.axes[0].get_lines()
    )


def test_systems_without_a_common_run_leave_a_hole() -> None:
    chapter = make_chapter({VIT: (0, 1), HYBRID: (0, 1), RANDOM: (2,)})
    table = differences.differences(chapter)
    assert table["n_runs"].tolist() == [2, 0, 0]
    assert (
        all("share no finished (fold, seed)" in hole for hole in table["hole"][1:])
        and table["low"][1:].isna().all()
    )
    assert chapter_page.answer(chapter).count("not yet recorded") == 2
    assert (
        words(figures_differences.paired_differences(table)).count("share no finished (fold, seed)")
        == 2
    )


def test_no_common_run_at_all_is_a_card_and_means() -> None:
    chapter = make_chapter({VIT: (0, 1), RANDOM: (2,)})
    assert "no pairs of finished runs" in words(
        figures_differences.paired_differences(differences.differences(chapter))
    )
    assert f"{title(VIT)} reaches a test Dice of" in chapter_page.answer(chapter)
    assert chapter_page.answer(chapter).count("not yet recorded") == 3


def test_an_equivalence_says_its_margin() -> None:
    row = {
        "boot_low": -0.002,
        "boot_high": 0.003,
        "p_holm": 0.6,
        "p_equivalence": 0.01,
        "planned": 3,
        "n_runs": 3,
        "n_folds": 3,
        "system": HYBRID,
        "reference": VIT,
    }
    assert decision.verdict(row, "IoU") == "equivalent within 1 IoU point"
    assert (
        decision.verdict(row | {"boot_low": 0.001, "p_equivalence": 0.2}, "Dice") == "not decided"
    )
    assert decision.verdict(row | {"system": V1}, "Dice").startswith("withdrawn, it took the rate")


def test_results_table_has_a_row_for_each_arm_done_or_not() -> None:
    chapter = make_chapter({VIT: (0, 1, 2), HYBRID: (1,)})
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in chapter_page.results_table(chapter).splitlines()[2:5]
    ]
    assert [row[:2] for row in rows] == [[title(s), "100%"] for s in (VIT, HYBRID, RANDOM)]
    assert [row[2].partition("](")[0] for row in rows] == [
        f"[{n} of 3" for n in (3, 1, 0)
    ] and f"/{VIT}#fraction-1.0)" in rows[0][2]
    dice = [case_dice(VIT, seed).mean() for seed in (0, 1, 2)]
    assert (
        rows[0][3:5] == [str(CASES), f"{np.mean(dice):.3f} ± {np.std(dice, ddof=1):.3f}"]
        and rows[0][-1] == "1,234"
    )
    assert rows[2][2] in chapter_page.arm_links(chapter) and rows[0][2] in chapter_page.arm_links(
        chapter
    )
    assert "±" not in "".join(rows[1]) and rows[2][3] == "not yet recorded"
    assert "Phantom data:" in chapter_page.results_table(chapter)


def test_what_is_no_evidence_never_stands_beside_the_papers_numbers() -> None:
    smoke, scans = make_chapter(ALL), make_chapter(ALL, study="hippocampus")
    assert smoke.smoke and make_chapter(ALL, study="quick").smoke and not scans.smoke
    assert chapter_page.answer(smoke).startswith("**Phantom data: a smoke study")
    assert "smoke" not in chapter_page.answer(scans)
    assert "is not set beside these numbers" in paper_words.compare(smoke)
    assert "Task04_Hippocampus on the native grid" in paper_words.compare(scans)


def test_a_claims_numbers_are_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"**{reported.paper_value('average', 'MedVisionLlama'):.2f}**" in paper_words.claim(
        "llm_hybrid"
    )
    table = reported.reported()
    table.loc[
        (table["table"] == "average")
        & (table["system"] == "MedVisionLlama")
        & (table["metric"] == "dice"),
        "value",
    ] = 0.11
    table.to_csv(tmp_path / "paper.csv", index=False)
    monkeypatch.setattr(reported, "PAPER_TABLE", tmp_path / "paper.csv")
    assert "**0.11**" in paper_words.claim("llm_hybrid")
    assert all(paper_words.claim(topic) for topic in TOPICS)
    with pytest.raises(KeyError, match=r"0 rows for P1, average, Nobody"):
        reported.paper_value("average", "Nobody")


def test_runs_are_linked_only_where_they_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapter = make_chapter({VIT: (0,)}, results=tmp_path)
    assert f"{VIT}/fraction-1.0_fold-0_seed-0" in chapter_page.run_links(
        chapter
    ) and "http" not in chapter_page.run_links(chapter)
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    run = chapter.done["run"].iloc[0]
    assert (
        f"]({links.repository_url()}/blob/main/data/results/{quote(run)}/cases.csv)"
        in chapter_page.run_links(chapter)
    )
    assert "results_dir data/results" in chapter_page.repeat(chapter, "01_baseline")


def test_inputs_are_the_hashes_of_what_was_read(tmp_path: Path) -> None:
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "runs.csv").write_text("x")
    text = chapter_page.inputs(make_chapter(ALL, "quick", results=tmp_path))
    assert text.startswith("<details>") and text.endswith("</details>")
    assert text.split("```")[1].splitlines()[1:] == [
        f"{files.sha256_bytes(b'x')}  quick/runs.csv",
        f"{files.sha256_file(reported.PAPER_TABLE)}  data/paper_reported.csv",
    ]


def test_llm4seg_is_answered_in_iou_and_f1() -> None:
    arms = (CNN, LLM4SEG, LLM4SEG_RANDOM)
    keys = [
        {"study": "busi", "task": "BUSI", "system": s, "fraction": 1.0, "fold": 0, "seed": 0}
        for s in arms
    ]

    def score(k, i):
        return {"jaccard": 0.5 + 0.01 * (i + 3 * k), "dice": 0.6 + 0.01 * (i + 2 * k)}

    cases = pd.DataFrame(
        [
            key | {"case": f"benign_{i:03d}", "label": "foreground"} | score(k, i)
            for k, key in enumerate(keys)
            for i in range(5)
        ]
    )
    table = pd.DataFrame(
        [
            key
            | {
                "state": "done",
                "n_test": 5,
                "trainable": 1,
                "dice": 0.6,
                "jaccard": 0.5,
                "nsd": 0.5,
                "hd95_mm": 9.0,
                "run": "r",
            }
            for key in keys
        ],
        columns=tables.RUN_COLUMNS,
    )
    chapter = Chapter("llm4seg", "busi", Path("data/runs"), table, cases, pd.DataFrame(), ())
    found = differences.differences(chapter).set_index(["metric", "system", "reference"])[
        "difference"
    ]
    assert found["jaccard", LLM4SEG, CNN] == pytest.approx(0.03) and found[
        "dice", LLM4SEG, LLM4SEG_RANDOM
    ] == pytest.approx(-0.02)
    lines = [
        line
        for line in chapter_page.answer(chapter).splitlines()
        if line.startswith("- ") and "not yet recorded" not in line
    ]
    assert (
        len(lines) == 6 and "**+3.00 IoU points**" in lines[0] and "**+2.00 F1 points**" in lines[3]
    )
    assert all("n = 5 cases" in line and "not decided" in line for line in lines)
    assert "HD95, px" in chapter_page.results_table(
        chapter
    ) and "pictures' own grid" in chapter_page.results_table(chapter)
    assert "points of IoU or F1" in words(
        figures_differences.paired_differences(differences.differences(chapter))
    )
    assert "80.6" in paper_words.compare(
        chapter
    ) and "BUSI on the native grid" in paper_words.compare(chapter)
    assert "ten tasks" not in paper_words.compare(replace(chapter, topic="label_noise"))


def test_what_the_study_does_not_plan_is_named_in_the_answer() -> None:
    chapter = make_chapter(ALL, study="quick", topic="version_1")
    assert f"Not planned in the study `quick`: `{V1}`" in chapter_page.answer(chapter)


def curve(rise: float, epochs: int = 8, step: int = 1) -> pd.DataFrame:
    """A run that is flat but for the last quarter, where validation Dice rises by `rise` in all."""
    start = int(0.75 * epochs)

    def value(e):
        return 0.5 + (rise * (e - start) / (epochs - 1 - start) if e > start else 0)

    return pd.DataFrame(
        [
            {
                "task": "t",
                "system": VIT,
                "fraction": 1.0,
                "fold": 0,
                "seed": 0,
                "epoch": e,
                "val_dice": value(e) if (e + 1) % step == 0 else math.nan,
            }
            for e in range(epochs)
        ]
    )


def test_the_last_quarters_gain_is_that_of_its_line() -> None:
    assert chapter_page.last_quarter_gain(curve(0.03, 40)) == pytest.approx(3)
    assert chapter_page.last_quarter_gain(curve(0.03, 40, step=3)) == pytest.approx(3 * 6 / 9), (
        "only epochs that were validated count"
    )
    assert math.isnan(chapter_page.last_quarter_gain(curve(0.03, 40, step=40)))


def test_convergence_has_a_row_for_each_arm_with_its_range() -> None:
    history = pd.concat(
        [curve(0.02, 40), curve(0.04, 40).assign(seed=1), curve(0.01, 40).assign(system=HYBRID)]
    )
    rows = chapter_page.convergence_table(replace(make_chapter(ALL), history=history)).splitlines()[
        2:
    ]
    assert rows == [
        f"| {title(VIT)} | 100% | 2 | 40 | +3.00 (+2.00 to +4.00) | 40 |",
        f"| {title(HYBRID)} | 100% | 1 | 40 | +1.00 | 40 |",
    ]
    assert "No training history" in chapter_page.convergence_table(make_chapter(ALL))


def test_a_run_that_was_validated_once_at_its_end_has_no_gain_and_no_nan() -> None:
    history = curve(0.03, 40, step=40)
    text = chapter_page.convergence_table(replace(make_chapter(ALL), history=history))
    assert "validated once there" in text and "nan" not in text


def test_what_both_names_end_with_is_said_once() -> None:
    both = title("cmunext_boundary20").split(", ", 1)[1]
    assert (
        differences.minus("llm4seg_random_boundary20", "cmunext_boundary20")
        == f"LLM4Seg, random frozen layer\nminus CMUNeXt ({both})"
    )
    assert differences.minus(HYBRID, VIT) == f"{title(HYBRID)}\nminus {title(VIT)}"


def test_claims_of_the_new_chapters_have_the_tables_numbers() -> None:
    words = paper_words.claim("comparators")
    assert all(
        f"{reported.paper_value('comparators', peer):.2f} ({peer})" in words
        for peer in ("UNETR", "UNet++", "nnU-Net", "Swin-UNet")
    )
    assert "random weights" in paper_words.claim("label_noise")


def test_every_difference_of_a_study_has_its_question(tmp_path: Path) -> None:
    found = differences.all_differences("quick", tmp_path)
    assert {"The frozen block", "Few training cases", "The mappers"} == set(
        found["question"]
    ) and not found["n_runs"].any()
    assert set(found.loc[found["question"] == "Few training cases", "fraction"]) == {0.1, 0.3}


def test_a_notebook_shows_words_and_nothing_where_there_are_none(monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("IPython.display.display", lambda each: shown.append(each.data))
    chapter_page.say("words")
    chapter_page.say("")
    assert shown == ["words"]
