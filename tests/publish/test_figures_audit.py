"""The audit's figure draws each fault's two Dice from the table, and leaves holes out."""

import math

import matplotlib
import pandas as pd

from mvl.publish.figures_audit import reported_against_true

ROWS = pd.DataFrame(
    {
        "fault": ["copies", "planes", "missing"],
        "reported": [0.9, 0.8, math.nan],
        "resized": [0.85, 0.81, math.nan],
        "gap": [0.05, -0.01, math.nan],
    }
)


def test_each_fault_has_its_true_and_its_reported_dice():
    axis = reported_against_true(ROWS).axes[0]
    marks = {
        (line.get_marker(), round(float(line.get_xdata()[0]), 6))
        for line in axis.get_lines()
        if len(line.get_xdata()) == 1
    }
    assert marks == {("o", 85.0), ("D", 90.0), ("o", 81.0), ("D", 80.0)}
    words = [text.get_text() for text in axis.texts]
    assert words == ["+5.00", "-1.00"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["copies", "planes"]


def test_without_runs_it_is_a_card():
    figure = reported_against_true(ROWS.iloc[2:])
    said = " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
    assert "not yet recorded" in said and "audited fault" in said
