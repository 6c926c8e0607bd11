"""What code with each audited fault reports of itself beside what is true of the same network."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mvl.evidence.audit_findings import TASK
from mvl.publish.style import INK, MUTED, WARN, finish, hole, styled

TRUE = "#0B7285"
"Ink of the Dice on cases that no fault touches."


@styled
def reported_against_true(rows: pd.DataFrame) -> Figure:
    """Draw a line for each fault from the Dice on untouched test cases to the Dice that the faulty
    code reports.

    rows: `mvl.evidence.audit_findings.worth`; both Dice are on the network's grid.
    """
    there = rows[rows["reported"].notna() & rows["resized"].notna()]
    if there.empty:
        return hole("no run with an audited fault is finished", [TASK])
    figure = Figure(figsize=(6.4, 1.3 + 0.62 * len(there)), layout="constrained")
    axis = figure.subplots()
    names = []
    for y, row in enumerate(there.to_dict("records")):
        true, reported = 100 * row["resized"], 100 * row["reported"]
        axis.plot([true, reported], [y, y], color=MUTED, linewidth=2, zorder=1)
        axis.plot(true, y, marker="o", color=TRUE, markersize=8, linestyle="", zorder=2)
        look: dict[str, Any] = {
            "marker": "D",
            "markerfacecolor": "none",
            "markeredgewidth": 1.8,
            "markersize": 8,
        }
        axis.plot(reported, y, color=WARN, linestyle="", zorder=3, **look)
        axis.annotate(
            f"{100 * row['gap']:+z.2f}",
            (1, y),
            xycoords=axis.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=INK,
        )
        names.append("\n".join(textwrap.wrap(row["fault"], 30)))
    axis.set_yticks(range(len(names)), names, fontsize=9.5)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel("Dice points, network's grid (at the right: reported minus true)")
    axis.yaxis.grid(False)
    keys = [
        axis.plot([], [], marker="o", color=TRUE, linestyle="", label="true: untouched test cases"),
        axis.plot(
            [], [], marker="D", color=WARN, markerfacecolor="none", linestyle="", label="reported"
        ),
    ]
    figure.legend(handles=[key[0] for key in keys], loc="outside upper left", ncols=2)
    return finish(figure, [TASK])
