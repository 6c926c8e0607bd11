"""Figures of the pages that are no chapters: drawn into the folder of the sources, each handed over
as the Markdown that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mvl.core.run_folder import records_dir
from mvl.evidence.audit_findings import worth
from mvl.evidence.persons import TASK
from mvl.evidence.topics import HYBRID
from mvl.publish import figure_architecture, figures_audit, figures_design, findings
from mvl.publish.style import svg

STUDY = "hippocampus"
"The study at whose size the networks of the audit are drawn, and whose records it has."
PLACES = (HYBRID, f"{HYBRID}_after_embedding")
"The paper's place of the layer and the released code's."


def facts(staging: Path, studies: Sequence[str], results: Path) -> dict[str, str]:
    """Draw the figures of audit, data card and statistics; those of scans only where the book shows
    the study on scans."""
    effects = figures_design.smallest_effects(records_dir())
    shown = {
        "figure_splits": _drawn(
            staging,
            "splits",
            "Two tables of five folds by ten blocks, each block marked as test, validation or"
            " training, for the split by scan and the split by person.",
            figures_design.splits(),
            figures_design.splits_finding(),
        ),
        "figure_power": _drawn(
            staging,
            "power",
            "A row of marks for each study of the second protocol: the smallest difference that"
            " each planned contrast sees.",
            figures_design.power(effects),
            figures_design.power_finding(effects),
        ),
        "figure_places": _drawn(
            staging,
            "places",
            "Two networks side by side, box by box: the language layer between encoder and decoder"
            " as in the paper, and before the encoder as in the released code.",
            figure_architecture.of_systems(STUDY, TASK, *PLACES),
            figure_architecture.places(STUDY, TASK, *PLACES),
        ),
        "figure_worth": "",
    }
    if STUDY in studies:
        rows = worth(results)
        shown["figure_worth"] = _drawn(
            staging,
            "worth",
            "For each fault a line from the true Dice on untouched test cases to the Dice that the"
            " faulty code reports.",
            figures_audit.reported_against_true(rows),
            findings.worth(rows),
        )
    return shown


def _drawn(staging: Path, name: str, kind: str, figure: Figure, caption: str) -> str:
    """Write the figure and return the Markdown that shows it."""
    (staging / f"{name}.svg").write_text(svg(figure, caption))
    return f"![{kind}]({name}.svg)"
