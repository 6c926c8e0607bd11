"""The second study's contrasts, beside an independent computation; a missing run withholds."""

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.evidence.decision import decided
from mvl.evidence.second_study import HYBRID, MATCHED, QUESTIONS, SHUFFLED, VIT, Question
from mvl.publish import second_study_answer
from mvl.study.tables import read_runs

RECORDS = ROOT / "data" / "results"
STUDY = "hippocampus2_published"


def by_hand(system: str, reference: str) -> tuple[float, float, float]:
    """Difference and corrected interval by pandas and scipy alone, from the runs' cases."""
    values = {}
    for arm, fold, seed in itertools.product((system, reference), range(5), range(2)):
        folder = RECORDS / STUDY / "runs" / "Task04_Hippocampus" / arm
        rows = pd.read_csv(folder / f"fraction-1.0_fold-{fold}_seed-{seed}" / "cases.csv")
        values[arm, fold, seed] = rows[rows["label"] == "foreground"]["dice"].mean()
    folds = np.array(
        [
            np.mean([values[system, f, s] - values[reference, f, s] for s in range(2)])
            for f in range(5)
        ]
    )
    spread = np.sqrt(folds.var(ddof=1) * (1 / 5 + 1 / 7))
    reach = distributions.t.ppf(0.975, 4) * spread
    return folds.mean(), folds.mean() - reach, folds.mean() + reach


@pytest.mark.parametrize("pair", [(HYBRID, VIT), (HYBRID, SHUFFLED), (HYBRID, MATCHED)])
def test_a_recorded_contrast_is_that_of_an_independent_computation(pair):
    table = second_study.differences(Question(STUDY, "?", (pair,)), RECORDS)
    found = table.iloc[0]
    assert found["complete"] and found["n_runs"] == 10 and found["n_folds"] == 5
    assert tuple(found[["difference", "low", "high"]]) == pytest.approx(by_hand(*pair), abs=1e-12)


def test_the_correction_is_over_the_questions_own_family():
    alone, pretraining = (second_study.differences(q, RECORDS) for q in QUESTIONS[:2])
    assert alone["p_holm"].tolist() == alone["p_t"].tolist(), "a family of one"
    first, second = sorted(pretraining["p_t"])
    expected = [min(1, 2 * first), min(1, max(2 * first, second))]
    assert sorted(pretraining["p_holm"]) == pytest.approx(expected)


def test_a_missing_run_withholds_the_verdict_and_is_named(tmp_path):
    shutil.copytree(RECORDS / STUDY, tmp_path / STUDY)
    path = tmp_path / STUDY / "cases.csv"
    cases = pd.read_csv(path)
    gone = (cases["system"] == HYBRID) & (cases["fold"] == 3) & (cases["seed"] == 1)
    cases[~gone].to_csv(path, index=False)
    row = second_study.differences(QUESTIONS[0], tmp_path).iloc[0].to_dict()
    assert row["n_runs"] == 9 and "incomplete, 1 planned pair" in str(decided(row))
    assert second_study_answer.sentence(tmp_path, "page.md") == ""


def test_use_is_the_mean_over_runs_and_a_silent_block_is_not_used():
    rows = second_study.use_of_block(STUDY, RECORDS)
    runs = (
        read_runs(STUDY, RECORDS)
        .query("fraction == 1")
        .set_index(["system", "fold", "seed"])["dice"]
    )
    one = rows[(rows["system"] == HYBRID) & (rows["fold"] == 2) & (rows["seed"] == 0)].iloc[0]
    expected = 100 * (runs[HYBRID, 2, 0] - runs[VIT, 2, 0])
    assert one["over_alone"] == pytest.approx(expected) and VIT not in set(rows["system"])
    quiet = rows.assign(zero=0.0, shuffled_tokens=0.0, shuffled_weights=0.0)
    assert second_study.uses(quiet) == (False, False)
    assert second_study.uses(quiet.assign(zero=-1.0)) == (True, False)
    assert second_study.uses(quiet.assign(shuffled_tokens=-1.5))[1]


def test_an_unused_layer_takes_an_equivalences_place_and_stands_beside_a_loss():
    def said(study):
        asked = next(q for q in QUESTIONS if q.study == study and (HYBRID, VIT) in q.contrasts)
        row = second_study.differences(asked, RECORDS).iloc[0].to_dict()
        return second_study.outcome(row, RECORDS)

    assert said("hippocampus2_tuned") == "unused" and said(STUDY) == "lower"
    assert said("left_atrium") == "lower; unused"


def test_a_layer_that_costs_its_network_dice_is_not_called_unused():
    def of(zero: float, tokens: float) -> pd.DataFrame:
        names = ("zero", "shuffled_tokens", "shuffled_weights")
        return pd.DataFrame([dict(zip(names, (zero, tokens, 0.0)))])

    assert second_study.is_harmed(of(1.2, 3.5)) and second_study.is_harmed(of(0.2, 1.0))
    assert not second_study.is_harmed(of(0.9, -0.9))
    assert not second_study.is_harmed(of(-1.0, 2.0)), "it uses its layer"
    said = second_study_answer.use_in_words(of(1.2, 3.5))
    assert said.startswith("depends on the layer to its cost")
    heart = second_study.use_of_block("heart_published", RECORDS)
    assert second_study.is_harmed(heart[heart["system"] == HYBRID])


def test_unused_is_said_of_measured_layers_that_do_no_harm_alone(monkeypatch):
    names = ("zero", "shuffled_tokens", "shuffled_weights")
    row = {
        **dict(study=STUDY, fraction=1.0, system=HYBRID, reference=VIT),
        **dict(difference=-0.03, low=-0.04, high=-0.02, boot_low=-0.04, boot_high=-0.02),
        **dict(p_holm=0.001, p_equivalence=0.9, margin=0.01, n_folds=5, n_runs=10, planned=10),
    }

    def said(system: str, change: float) -> str:
        use = pd.DataFrame([{"system": system, **dict.fromkeys(names, change)}])
        monkeypatch.setattr(second_study, "use_of_block", lambda *_: use)
        return second_study.outcome(row, RECORDS)

    assert said(HYBRID, -0.1) == "lower; unused"
    assert said(HYBRID, 1.2) == said(HYBRID, -1.2) == "lower"
    assert said("another", -0.1) == "lower", "nobody measured the hybrid's layer"


def test_a_study_whose_runs_recorded_no_use_has_no_row_and_its_columns(tmp_path):
    shutil.copytree(RECORDS / "isic", tmp_path / "isic", ignore=lambda *_: ["usage.csv"])
    use = second_study.use_of_block("isic", tmp_path)
    assert use.empty and {"system", "zero", "over_alone"} <= set(use)


def test_use_is_that_of_the_runs_with_the_same_share_of_the_cases():
    whole = second_study.use_in_numbers(STUDY, HYBRID, RECORDS)
    tenth = second_study.use_in_numbers(STUDY, HYBRID, RECORDS, 0.1)
    assert whole.startswith("h = 0: -0.60;") and tenth.startswith("h = 0: -1.16;")


def test_the_families_are_the_protocols():
    sizes: dict[str, list[int]] = {}
    for question in QUESTIONS:
        sizes.setdefault(question.study, []).append(len(question.contrasts))
        for pair in question.contrasts:
            assert second_study.planned_pairs(question.study, *pair, question.fraction), pair
    assert sizes == {
        "hippocampus2_published": [1, 2, 3, 1, 1],
        "hippocampus2_unmixed": [1, 3],
        "hippocampus2_tuned": [1, 2, 3, 1, 1, 2, 2, 2],
        "left_atrium": [3],
        "heart_tuned": [3],
        "heart_published": [3],
        "isic": [1, 1, 2],
        "kvasir": [1, 1, 2],
    }


def test_a_network_of_pictures_is_set_beside_its_cnn():
    runs = pd.read_csv(RECORDS / "isic" / "runs.csv").set_index(["system", "fold", "seed"])
    for row in second_study.use_of_block("isic", RECORDS).itertuples():
        place = (row.fold, row.seed)
        if ("cmunext", *place) not in runs.index:
            assert np.isnan(row.over_alone), "no CNN of that seed to set it beside"
            continue
        expected = runs.loc[(row.system, *place), "dice"] - runs.loc[("cmunext", *place), "dice"]
        assert row.over_alone == pytest.approx(100 * expected)
