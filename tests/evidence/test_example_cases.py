"""The pictures' runs and cases are chosen by rule: those of the common fold and seed, and the
study's worst case wherever it was tested."""

from __future__ import annotations

import pandas as pd

from mvl.evidence import example_cases
from tests.evidence.test_example_masks import ARMS, scores, table

DONE = table(*((system, 1.0, fold, 0) for fold in (0, 1) for system in ARMS))


def test_the_studys_worst_case_is_sought_in_every_fold_of_the_first_arm():
    chosen = example_cases.common_runs(DONE)
    cases = scores(DONE[DONE["fold"] == 0], {"a": 0.7, "b": 0.9})
    far = scores(DONE[DONE["fold"] == 1], {"c": 0.4, "d": 0.8})
    far.loc[(far["case"] == "d") & (far["system"] == ARMS[1]), "dice"] = 0.1
    worst = example_cases.study_worst(pd.concat([cases, far]), chosen)
    assert (worst["case"], worst["fold"], worst["system"]) == ("c", 1, ARMS[0])


def test_runs_of_further_folds_follow_the_common_ones_arm_by_arm():
    used = example_cases.used_runs(DONE, [(0, 0), (0, 0), (1, 0)])
    places = list(zip(used["system"], used["fold"]))
    assert places == [(ARMS[0], 0), (ARMS[1], 0), (ARMS[0], 1), (ARMS[1], 1)]
    lacking = DONE.iloc[:3]
    chosen = example_cases.common_runs(lacking)
    assert len(example_cases.same_arms(lacking, chosen, 1, 0)) == 1
