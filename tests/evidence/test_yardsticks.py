"""The smallest margin is where the rule's word turns, and the extremes are of all runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.core import run_folder
from mvl.evidence import differences, run_pairs, stats, yardsticks
from mvl.evidence.chapter import Chapter, open_chapter
from mvl.evidence.decision import EQUIVALENT, UNDECIDED, Numbers, decide


@pytest.fixture(scope="module")
def chapter() -> Chapter:
    """The main chapter of the committed records."""
    return open_chapter("llm_hybrid", "hippocampus", run_folder.records_dir())


def test_the_word_turns_at_the_smallest_margin(chapter: Chapter) -> None:
    row = differences.differences(chapter).iloc[0].to_dict()
    pairs = run_pairs.pair(chapter.cases, row["system"], row["reference"], row["task"])
    least = yardsticks.smallest_margin(row)
    said = []
    for margin in (1.001 * least, 0.999 * least):
        numbers = Numbers(
            row["boot_low"], row["boot_high"], row["p_holm"], stats.tost(pairs, margin), 10, 10, 5
        )
        said.append(decide(numbers, margin).word)
    assert said == [EQUIVALENT, UNDECIDED]


def test_the_margin_is_set_beside_the_error_that_is_left(chapter: Chapter) -> None:
    text = yardsticks.margin(chapter)
    left = 1 - chapter.cases.loc[chapter.cases["system"] == "vit_baseline", "dice"].mean()
    assert (
        f"{0.01 / left:.1%} of the error that ViT-Baseline leaves" in text
        and text.count("minus") == 5
    )
    empty = Chapter(
        "llm_hybrid",
        "hippocampus",
        Path("x"),
        chapter.runs.iloc[:0],
        chapter.cases.iloc[:0],
        chapter.history,
        (),
    )
    assert yardsticks.margin(empty) == yardsticks.extremes(empty) == ""


def test_the_worst_case_is_that_of_all_runs(chapter: Chapter) -> None:
    text = yardsticks.extremes(chapter)
    rows = chapter.cases[chapter.cases["system"] == "medvisionllama_v3"].sort_values("dice")
    assert (
        f"{rows['case'].iloc[0]}, {rows['dice'].iloc[0]:.3f} (fold {rows['fold'].iloc[0]}" in text
    )
    assert (
        "of ViT-Baseline is hippocampus_199 (fold 4, 0.626) and the best hippocampus_154 (fold 2,"
        " 0.913)" in text
    )


def test_power_is_said_of_the_measured_spread(chapter: Chapter) -> None:
    table = differences.differences(chapter).iloc[:1]
    row = table.iloc[0]
    spread = 100 * run_pairs.pair(
        chapter.cases, row["system"], row["reference"], row["task"]
    ).fold_means.std(ddof=1)
    [line] = yardsticks.power_table(table).splitlines()[2:]
    assert f"| 5 | {spread:.2f} | 0.48 | 0.64 | yes |" in line
    assert "| 0.31 | 0.64 | no, not with ten folds |" in yardsticks.power_table(
        table.assign(dz=table["difference"] / 0.02, n_folds=3)
    )
    assert "| with ten folds |" in yardsticks.power_table(
        table.assign(dz=table["difference"] / 0.005, n_folds=3)
    )
    assert yardsticks.power_table(table.assign(n_folds=1)) == ""
