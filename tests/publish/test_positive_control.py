"""The positive control says what its study's runs say, and what the frozen layer does there."""

import pandas as pd

from mvl.core.config import ROOT
from mvl.evidence import second_study
from mvl.evidence.second_study import ATTENTION, IDENTITY
from mvl.publish import positive_control

RECORDS = ROOT / "data" / "results"


def test_the_positive_control_is_named_with_its_number(tmp_path):
    said = positive_control.control(second_study.recorded_differences(RECORDS), RECORDS)
    assert said.startswith("**The design sees a layer that matters.**")
    assert "+2.00 [+1.39, +2.61]" in said
    # what else the control's network says is printed with it
    assert "raise Dice there by +3.82 [+2.79, +4.85]" in said
    assert "loses 37.5 points when its frozen layer is silenced" in said
    assert "its mappers alone by +2.58 [+1.90, +3.26] points (higher)" in said
    assert "-0.32 [-1.08, +0.44]" in said
    assert "differs from the ViT alone by -0.03 points" in positive_control.with_blocks(RECORDS)
    assert positive_control.control({}, tmp_path) == positive_control.with_blocks(tmp_path) == ""


def test_a_control_that_is_not_called_says_that_nothing_follows(tmp_path):
    found = second_study.recorded_differences(RECORDS)
    question = next(q for q in found if q.contrasts == ((ATTENTION, IDENTITY),))
    row = found[question].assign(difference=0.001, low=-0.02, high=0.022, p_holm=0.9)
    said = positive_control.control({question: pd.DataFrame(row)}, RECORDS)
    assert said.startswith("**The design has not been shown to see a layer that matters**")
