"""The reported gains beside the measured ones, on one axis: the landing page's figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.evidence.claims_evidence import UNITS, Found
from mvl.evidence.claims_ledger import Entry, reported_numbers
from mvl.evidence.decision import EQUIVALENCE_POINTS, WITHDRAWN
from mvl.evidence.second_study import AT_PAPERS_RATE, of_protocol
from mvl.publish.style import INK, MUTED, WARN, finish, hole, styled
from mvl.study.grid import load_study

SHOWN = ("mean_dice", "few_shot_10", "few_shot_30", "v1_gain", "better_than_unetr", "llm4seg_gain")
"Claims of a gain in points, in the figure's order; one without a difference is left out."
AS_PUBLISHED, AT_OWN_RATES = ("#0B7285", "o"), ("#2B8A3E", "^")
"Colour and marker of the second protocol's studies, by their regime."
LEFT, RIGHT = -9.0, 15.0
"Ends of the axis, in points."
FIRST = ("#862E9C", "s")
"Colour and marker of the first study."


def look(study: str) -> tuple[str, str]:
    """Return a study's colour and marker: one pair for each regime of the second protocol."""
    if not of_protocol(study):
        return FIRST
    return AS_PUBLISHED if study in AT_PAPERS_RATE else AT_OWN_RATES


@styled
def reported_and_measured(entries: Sequence[Entry]) -> Figure:
    """Draw for each claim the gain that the paper reports and the differences measured here.

    An empty diamond is the reported gain, a short bar the same share of what our baseline leaves to
    gain; a filled mark with its 95 % interval is a study's difference.
    """
    claims = {entry.claim.id: entry for entry in entries if entry.verdict}
    rows = [(claims[name], _measured(claims[name])) for name in SHOWN if name in claims]
    rows = [(entry, found) for entry, found in rows if found]
    if not rows:
        return hole("no claim of a gain has a measured difference")
    heights = [1.5 + len(found) for _, found in rows]
    # words above their marks, not beside them: so narrow that a phone shows all of it
    figure = Figure(figsize=(4.9, 0.36 * sum(heights) + 1.1), layout="constrained")
    axis = figure.subplots()
    y = 0.0
    for (entry, found), height in zip(rows, heights, strict=True):
        _claim(axis, y, entry, found)
        y += height
    axis.set_yticks([])
    axis.set(ylim=(y - 0.6, -0.9), xlim=(LEFT, RIGHT))
    axis.set_xlabel("points of Dice or IoU over the reference\n(grey: within 1)")
    axis.spines["left"].set_visible(False)
    axis.grid(False)
    key = (
        "Empty diamond: the gain that the paper reports. Upright bar: the same share of the room"
        " that our baseline leaves. Filled marks: measured here, with 95 % intervals; empty ones"
        " lack planned runs and decide nothing. An arrowhead: the interval goes on."
    )
    return finish(figure, (), key=key)


def _measured(entry: Entry) -> list[tuple[str, Found]]:
    """Return the first difference of the study that decides, then of the others."""
    verdicts = [(entry.study, entry.verdict), *entry.elsewhere]
    firsts = [(study, v.numbers[0]) for study, v in verdicts if v and v.numbers]
    return [(study, found) for study, found in firsts if found.n_runs]


def _claim(axis: Axes, y: float, entry: Entry, found: list[tuple[str, Found]]) -> None:
    """Draw one claim from y on: what is reported, then a row for each study."""
    version = {"P1-v1": "version 1: ", "P2": "LLM4Seg: "}.get(entry.claim.paper, "")
    _words(axis, y, f"{version}{entry.claim.short}", color=INK, weight="bold")
    numbers = reported_numbers(entry.claim) if entry.claim.size == "error" else []
    if len(numbers) == 2:
        gain = 100 * (numbers[0] - numbers[1])
        axis.plot(gain, y, marker="D", ms=7, mfc="none", mec=WARN, mew=1.6, ls="")
        words = f"{gain:+.0f} reported"
        axis.text(gain - 0.7, y, words, va="center", ha="right", fontsize=9, color=WARN)
    for place, (study, one) in enumerate(found):
        level = y + place + 1
        ink, mark = look(study)
        scale = UNITS[one.metric][0]
        low, middle, high = (scale * v for v in (one.low, one.difference, one.high))
        words = f"{load_study(study).title}: {middle:+.2f} [{low:+.2f}, {high:+.2f}]"
        interim = one.n_runs < one.n_planned
        if interim:
            words = f"{one.n_runs} of {one.n_planned} pairs, {words}"
        if one.decision(entry.claim.margin).word == WITHDRAWN:
            words = f"withdrawn, {words}"
        _words(axis, level, words, color=ink)
        # the band and zero beside the marks alone: across the plot they would cross the words
        band = (-EQUIVALENCE_POINTS, EQUIVALENCE_POINTS)
        axis.fill_betweenx([level - 0.2, level + 0.2], *band, color="#8C959F", alpha=0.3, lw=0)
        axis.vlines(0, level - 0.2, level + 0.2, color=MUTED, linewidth=1)
        ends = max(low, LEFT), min(high, RIGHT)
        axis.plot(ends, [level, level], color=ink, lw=2)
        for end, beyond, arrow in zip(ends, (low < LEFT, high > RIGHT), "<>", strict=True):
            if beyond:
                axis.plot(end, level, marker=arrow, color=ink, ms=7, clip_on=False)
        if LEFT <= middle <= RIGHT:
            fill = "none" if interim else ink
            axis.plot(middle, level, marker=mark, color=ink, ms=6.5, mfc=fill)
        if len(numbers) == 2:
            room = scale * entry.claim.reported_gain * (1 - one.base)
            if room <= RIGHT:
                axis.plot([room, room], [level - 0.22, level + 0.22], color=WARN, lw=1.6)


def _words(axis: Axes, level: float, words: str, **look: Any) -> None:
    """Write above a row, from the axis' left end."""
    place = axis.get_yaxis_transform()
    axis.text(0, level - 0.27, words, va="bottom", fontsize=9, transform=place, **look)
