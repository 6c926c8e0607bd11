"""How figures look: one colour and marker for each arm everywhere, light cards, and what is written
inside so that copying cannot lose it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mvl.evidence.arms import caveat
from mvl.evidence.decision import UNDECIDED, WITHDRAWN
from mvl.publish.figure_data import KEY, SCAN, data_sha256

DASHES = ("-", "--", ":", "-.")
CARD, INK, GRID, MUTED, WARN = "#FCFCFA", "#1F2328", "#D9DCE0", "#57606A", "#9A3412"
"Figures are light cards with dark ink, so they read the same on a light and on a dark page."
TRAINED, FROZEN, MIXED, NEUTRAL = (
    ("#B4470A", "#FDEBDD"),
    ("#1D5F96", "#E1EEF8"),
    ("#57606A", "#F0EDE6"),
    ("#6E7781", "#F6F6F3"),
)
"""Edge and fill of a drawing's boxes: every parameter trained, every one frozen, some of each, none
at all."""
VERDICTS = {
    "reproduced": ("#0072B2", "o"),
    "shared by controls": ("#3D6B35", "P"),
    "not reproduced": ("#8A5A00", "s"),
    "contradicted": ("#A4133C", "X"),
    "moot": ("#57606A", "v"),
    UNDECIDED: ("#57606A", "D"),
    WITHDRAWN: ("#57606A", "x"),
    "not testable here": ("#57606A", "_"),
}
"""Ink and marker of a verdict's word; those that decide nothing are drawn hollow, so that neither
colour nor marker is the only cue."""
SEQUENTIAL = "cividis"
"Colour map of pictures: even in lightness and safe for colour-blind readers."
STYLE: dict[str, Any] = {
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
    "savefig.facecolor": CARD,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#6E7781",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "mvl",
    "svg.fonttype": "none",
    "figure.dpi": 110,
    "font.family": "DejaVu Sans",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the project's style, whatever the session's matplotlib settings are."""

    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure:
        # seaborn scatters dots by numpy's global generator: the same figure has the same dots
        state = np.random.get_state()
        np.random.seed(0)
        settings: dict[Any, Any] = dict(mpl.rcParamsDefault)
        settings |= {"backend": mpl.rcParams["backend"], **STYLE}
        try:
            with mpl.rc_context(settings):
                return draw(*args, **kwargs)
        finally:
            np.random.set_state(state)

    return inside


def finish(
    figure: Figure,
    tasks: Sequence[str],
    holes: Sequence[str] = (),
    caveats: Sequence[str] = (),
    key: str = "",
) -> Figure:
    """Write the tasks' caveat, further ones and the holes into the figure, so that none is
    lost when it is copied out of its page.

    key: what lines and marks mean; alone, it is no warning and is written in grey.
    """
    width = min(84, round(13 * figure.get_figwidth()))  # letters that fit beside one another
    notes = [*filter(None, [caveat(tasks)]), *caveats]
    notes += (
        textwrap.wrap("not yet recorded: " + "; ".join(holes), width, break_on_hyphens=False)
        if holes
        else []
    )
    if notes or key:
        look = {"color": WARN, "style": "italic"} if notes else {"color": MUTED}
        figure.supxlabel(
            "\n".join([*textwrap.wrap(key, width), *notes]), x=0.01, ha="left", fontsize=9.5, **look
        )
    return figure


@styled
def hole(message: str, tasks: Sequence[str] = (), scans: bool = False) -> Figure:
    """A card that says what is missing and how to get it, where a figure would stand.

    scans: the figure shows scans, which a machine need not have.
    """
    figure = Figure(figsize=(6.4, 1.5), layout="constrained")
    figure.set_gid(SCAN if scans else None)
    lines = [line for paragraph in message.split("\n") for line in textwrap.wrap(paragraph, 72)]
    words = "\n".join(["not drawn here" if scans else "not yet recorded", *lines])
    figure.text(0.5, 0.5, words, ha="center", va="center", color="#9A3412")
    return finish(figure, tasks)


def svg(figure: Figure, caption: str = "") -> str:
    """Return the figure as SVG text, the hash of its data and its caption among its facts; the same
    bytes for the same figure."""
    buffer = io.BytesIO()
    facts = {"Date": None, "Creator": None, "Identifier": KEY + data_sha256(figure)}
    facts |= {"Description": caption} if caption else {}
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(buffer, format="svg", metadata=facts)
    return buffer.getvalue().decode()


CAPTION = {"mvl": "caption"}
"Marks a caption among a notebook's outputs: in the book it stands in the figure itself."


def show(figure: Figure, caption: str = "") -> None:
    """Display the figure in a notebook as SVG, its caption below it; the book numbers it."""
    from IPython.display import display

    words = " ".join(
        text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text().strip()
    )
    display(
        {"image/svg+xml": svg(figure, caption), "text/plain": f"<figure: {words[:200]}>"}, raw=True
    )
    if caption:
        display({"text/markdown": f"**Figure.** {caption}"}, raw=True, metadata=CAPTION)
