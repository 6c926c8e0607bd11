"""Which runs and which of their test cases the pictures show: by rule, none by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mvl.core.columns import KEYS_IN_STUDY

RANKS = ("best", "median", "worst")
STUDY_WORST = "worst of the study"
"Rank of the case that the first arm does worst in over all its runs, where another run has it."


def common_runs(done: pd.DataFrame) -> pd.DataFrame:
    """One run of each arm, at the lowest fold and seed that most arms have, on all the data."""
    whole = done[done["fraction"] == done["fraction"].max()]
    arms = whole.groupby(["task", "fold", "seed"])["system"].nunique()
    task, fold, seed = min(arms.index, key=lambda key: (-arms[key], *key))
    return whole[
        (whole["task"] == task) & (whole["fold"] == fold) & (whole["seed"] == seed)
    ].reset_index(drop=True)


def same_arms(done: pd.DataFrame, chosen: pd.DataFrame, fold: int, seed: int) -> pd.DataFrame:
    """The chosen runs' arms in another fold and seed, in the same order; fewer where one has no
    run there."""
    keys = ["task", "system", "fraction"]
    there = done[(done["fold"] == fold) & (done["seed"] == seed)]
    return chosen[keys].merge(there, on=keys)


def used_runs(done: pd.DataFrame, places: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The runs of the common arms in these folds and seeds, in their order."""
    chosen = common_runs(done)
    keys = dict.fromkeys(places)
    return pd.concat([same_arms(done, chosen, fold, seed) for fold, seed in keys])


def pick_cases(cases: pd.DataFrame, chosen: pd.DataFrame) -> list[tuple[str, str]]:
    """(case, rank): best, median and worst by the Dice of the first chosen run, ties broken by
    name; of cases with a label where any has one."""
    same = cases.merge(chosen.iloc[:1][KEYS_IN_STUDY], on=KEYS_IN_STUDY)
    ordered = with_label(same).sort_values(["dice", "case"], ascending=[False, True])
    order = [str(case) for case in ordered["case"]]
    return list(dict(zip((order[0], order[len(order) // 2], order[-1]), RANKS)).items())


def with_label(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that have a label, where any has one and it is recorded; else all."""
    labelled = cases[cases["voxels_label"] > 0] if "voxels_label" in cases else cases
    return cases if labelled.empty else labelled


def study_worst(cases: pd.DataFrame, chosen: pd.DataFrame) -> pd.Series:
    """The row of the case that the first chosen arm does worst in, over all folds and seeds of its
    share of the data; of cases with a label where any has one."""
    keys = ["task", "system", "fraction"]
    same = cases.merge(chosen.iloc[:1][keys], on=keys)
    return with_label(same).sort_values(["dice", "case"]).iloc[0]
