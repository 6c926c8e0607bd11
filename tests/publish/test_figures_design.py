"""The figures of splits and power draw what the committed splits and the plan say."""

import json

import pandas as pd
import pytest

from mvl.core.config import ROOT
from mvl.evidence.persons import TASK
from mvl.publish import figures_design


def test_the_split_by_person_shares_none_and_the_one_by_scan_does():
    by_scan = figures_design.shared_persons(TASK)
    assert by_scan["both"].min() > 0
    assert figures_design.shared_persons(f"{TASK}_persons")["both"].eq(0).all()
    words = figures_design.splits_finding()
    assert f"{by_scan['both'].min()} to {by_scan['both'].max()} persons" in words
    assert ": 0 persons" in words


def test_a_person_on_both_sides_is_found(tmp_path):
    split = json.loads((ROOT / "data" / "splits" / f"{TASK}_persons.json").read_text())
    moved = split["blocks"][0][0]
    split["folds"][0]["train"].append(moved)
    (tmp_path / "one.json").write_text(json.dumps(split))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_design, "read_split", lambda path: json.loads(path.read_text()))
        assert figures_design.shared_persons("one", tmp_path)["both"].tolist()[:2] == [1, 0]


def test_each_block_is_drawn_with_its_role_and_never_by_colour_alone():
    figure = figures_design.splits()
    letters = [text.get_text() for axis in figure.axes for text in axis.texts]
    folds = 2 * figures_design.SHOWN
    assert letters.count("T") == folds and letters.count("V") == 2 * folds
    assert sum(len(axis.patches) for axis in figure.axes) == 10 * folds


def test_power_draws_a_mark_for_each_contrast_and_says_which_see_a_point():
    table = pd.DataFrame(
        {
            "study": ["hippocampus2_tuned", "hippocampus2_tuned", "isic"],
            "folds": [5, 5, 3],
            "seeds": [2, 2, 1],
            "sees": [0.5, 0.9, 4.0],
        }
    )
    axis = figures_design.power(table).axes[0]
    drawn = [x for line in axis.get_lines()[1:] for x in line.get_xdata()]
    assert sorted(drawn) == [0.5, 0.9, 4.0]
    words = figures_design.power_finding(table)
    assert (
        words.startswith("2 of 3 planned contrasts")
        and "every one of Hippocampus by person, tuned;" in words
    )
    assert (
        "least is seen in Skin lesions (ISIC 2017), LLM4Seg, where a difference must be 4.0 points"
        in words
    )
    assert "among" not in figures_design.power_finding(table.assign(sees=4.0))
