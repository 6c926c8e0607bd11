"""What a chapter's numbers are read against: the margin beside the error that is left, and the
study's true best and worst case."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy import stats as distributions

from mvl.core.markdown import markdown_table
from mvl.evidence import power
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter
from mvl.evidence.decision import EQUIVALENT, LEVEL, MARGIN, decided
from mvl.evidence.differences import differences


def margin(chapter: Chapter) -> str:
    """What one point is of the error that the baseline leaves, and how small a margin the
    equivalences of the chapter would bear."""
    table = differences(chapter)
    rows = table[
        [row["n_runs"] > 0 and decided(row).word == EQUIVALENT for row in table.to_dict("records")]
    ]
    if rows.empty:
        return ""
    base = str(rows["reference"].iloc[0])
    left = (
        1
        - chapter.cases.loc[
            (chapter.cases["system"] == base) & (chapter.cases["fraction"] == 1.0), "dice"
        ].mean()
    )
    smallest = [
        f"{100 * smallest_margin(row):.2f} ({' '.join(row['comparison'].split(chr(10)))})"
        for row in rows.to_dict("records")
    ]
    return (
        f"The margin of one Dice point is {MARGIN / left:.1%} of the error that {title(base)}"
        " leaves, which is wide. The equivalences above would also have been called within:"
        f" {'; '.join(smallest)} points."
    )


def smallest_margin(row: dict[Any, Any]) -> float:
    """The smallest margin at which the rule calls a difference equivalent: both its intervals, and
    both one-sided tests, within it."""
    freedom = row["n_folds"] - 1
    t = [float(distributions.t.ppf(1 - tail, freedom)) for tail in (LEVEL / 2, LEVEL)]
    one_sided = abs(row["difference"]) + (row["high"] - row["low"]) / 2 / t[0] * t[1]
    return max(one_sided, abs(row["boot_low"]), abs(row["boot_high"]))


def extremes(chapter: Chapter) -> str:
    """The best and the worst test case of each arm over all its folds and seeds, on all the data;
    the pictures show one run's."""
    rows = chapter.cases[chapter.cases["fraction"] == 1.0]
    if rows.empty:
        return ""
    cases = []
    for system, arm in rows.groupby("system", sort=False):
        order = arm.sort_values("dice")
        cases.append([title(str(system)), _case(order.iloc[0]), _case(order.iloc[-1])])
    means = rows.groupby(["system", "fold", "case"])["dice"].mean()
    first = means.loc[str(rows["system"].iloc[0])].sort_values()
    (low, high), (bottom, top) = (first.index[0], first.index[-1]), (first.iloc[0], first.iloc[-1])
    name = title(str(rows["system"].iloc[0]))
    head = ["arm", "worst case of all runs", "best case of all runs"]
    return "\n".join(
        [
            markdown_table(head, "lll", cases),
            "",
            (
                "Best, median and worst in the pictures are those of *one* run. Over all folds,"
                f" with the mean over seeds, the worst case of {name} is {low[1]} (fold {low[0]},"
                f" {bottom:.3f}) and the best {high[1]} (fold {high[0]}, {top:.3f})."
            ),
        ]
    )


def _case(row: pd.Series) -> str:
    return f"{row['case']}, {row['dice']:.3f} (fold {row['fold']}, seed {row['seed']})"


def power_table(table: pd.DataFrame) -> str:
    """Markdown: for each complete contrast, the sd of its fold means beside the largest at which
    equivalence could be called; empty without."""
    rows = table[(table["n_folds"] > 1) & table["dz"].notna() & table["complete"].eq(True)]
    if rows.empty:
        return ""
    head = [
        "difference",
        "folds",
        "sd of fold means, points",
        "largest sd for 80 % power",
        "with ten folds",
        "can it be called equivalent",
    ]
    lines = []
    ten = 100 * (power.largest_sd(10) or 0.0)
    for row in rows.to_dict("records"):
        spread = 100 * abs(row["difference"] / row["dz"])
        most = 100 * (power.largest_sd(int(row["n_folds"])) or 0.0)

        if spread <= most:
            word = "yes"
        else:
            word = "with ten folds" if spread <= ten else "no, not with ten folds"

        comparison = row["comparison"].replace("\n", " ")
        numbers = (f"{value:.2f}" for value in (spread, most, ten))
        lines.append([comparison, row["n_folds"], *numbers, word])
    return markdown_table(head, "lrrrrl", lines)
