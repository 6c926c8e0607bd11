"""The ledger as an interactive forest: one row for each claim with a measured interval, in units of
the claim's own margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.evidence import claims_text
from mvl.evidence.claims_evidence import UNITS, Found, within
from mvl.evidence.claims_ledger import IMPLIED, PAPERS, Entry
from mvl.evidence.claims_rules import RULES
from mvl.evidence.claims_verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    SHARED,
    WORDS,
    number,
)
from mvl.publish import charts
from mvl.publish.charts import Choice, Switches
from mvl.publish.run_links import anchor, page_name
from mvl.publish.style import MUTED, VERDICTS, WARN

REACH = 9.0
"Half-width of the axis in margins; an interval that goes on beyond it ends in an arrow."
DECIDED = (REPRODUCED, SHARED, NOT_REPRODUCED, CONTRADICTED)
"Verdicts with filled marks."
PREFIXES = {"P1-v1": "version 1: ", "P2": "LLM4Seg: "}
"What stands before a claim's name, by paper."
STEP_PX = 40
NARROW_PX = 430
"Below this width a row has no room for its verdict's word beside the claim."


def ledger(entries: Sequence[Entry], results: Path) -> str:
    """The chart's block; empty where no claim has a measured interval."""
    measured = [e for e in entries if e.verdict and _first(e) is not None]
    rows = [_row(entry, results) for entry in measured]
    papers = [*PAPERS.values(), IMPLIED]
    switches = [
        Switches(
            "paper",
            "Papers: all, or only",
            [Choice(name, name, on=False) for name in papers if name in {r["paper"] for r in rows}],
        ),
        Switches(
            "word",
            "Verdicts: all, or only",
            [
                Choice(word, word, *_look(word), on=False, hollow=word not in DECIDED)
                for word in WORDS
                if word in {row["word"] for row in rows}
            ],
        ),
    ]
    words = (
        "Each claim's first measured difference with its 95 % interval, in units of the claim's"
        f" margin. {claims_text.totals(measured)}"
    )
    key = (
        "Upright orange bar: the gain that the paper reports, scaled to what our baseline leaves to"
        " gain. Filled marks: the test decides."
    )
    chart = charts.Chart(_specification(), words, "claims with a measured difference shown", key)
    return charts.block(chart, rows, switches, "after")


def _first(entry: Entry) -> Found | None:
    """The first difference behind the verdict, where it has an interval."""
    found = entry.verdict.numbers[0] if entry.verdict and entry.verdict.numbers else None
    return found if found and found.n_runs and math.isfinite(found.low) else None


def _row(entry: Entry, results: Path) -> dict[str, Any]:
    """What the chart knows of one claim; places in margins, beyond the axis cut off."""
    found, claim = _first(entry), entry.claim
    assert found is not None
    low, middle, high = (v / claim.margin for v in (found.low, found.difference, found.high))
    ink, shape = _look(entry.word)
    decided = entry.word in DECIDED
    row: dict[str, Any] = {
        "id": claim.id,
        "claim": PREFIXES.get(claim.paper, "") + claim.short,
        "paper": IMPLIED if claim.implied else PAPERS[claim.paper],
        "word": entry.word,
        "low": _cut(low),
        "middle": _cut(middle),
        "high": _cut(high),
        "ink": ink,
        "shape": shape if abs(middle) <= REACH else charts.outline("<" if middle < 0 else ">"),
        "fill": ink if decided else "transparent",
        "before": low < -REACH,
        "beyond": high > REACH,
        "says": "\n".join(_says(entry, found, results)),
        "href": _address(entry),
        "leads": "The runs behind it",
    }
    gain = _reported(entry, found)
    if gain is not None and abs(gain) <= REACH:
        row["reported"] = _cut(gain)
    return row


def _cut(value: float) -> float:
    return round(min(max(value, -REACH), REACH), 3)


def _look(word: str) -> tuple[str, str]:
    ink, mark = VERDICTS[word]
    # a level stroke would be lost on its interval
    return ink, charts.outline("1" if mark == "_" else mark)


def _reported(entry: Entry, found: Found) -> float | None:
    """The reported gain scaled to what our baseline leaves to gain, in margins."""
    claim = entry.claim
    if claim.size != "error" or not math.isfinite(claim.reported_gain):
        return None
    return claim.reported_gain * (1 - found.base) / claim.margin


def _says(entry: Entry, found: Found, results: Path) -> list[str]:
    """What a mark says: verdict, interval with n and p, rule with margin, use of the layer."""
    claim, verdict = entry.claim, entry.verdict
    assert verdict is not None
    lines = [f"{claim.short}: {entry.word}", number(found)]
    if (others := len(verdict.numbers) - 1) > 0:
        lines.append(f"And {others} more difference{'s' * (others > 1)}, in the claim's section.")
    gain = _reported(entry, found)
    if gain is not None:
        scale, unit, digits = UNITS[found.metric]
        points = f"{scale * claim.margin * gain:+.{digits}f} {unit}"
        lines.append(f"Reported, scaled to what our baseline leaves to gain: {points}.")
    rule = (RULES[claim.rule].__doc__ or "").split("\n")[0]
    margin = within(claim.margin, claim.measured_in).removeprefix("within ")
    lines.append(f"Rule {claim.rule}: {rule[:1].lower()}{rule[1:]} Margin {margin}.")
    if use := claims_text.use(entry, results):
        lines.append(f"Use of the layer, Dice points: {use}.")
    return lines


def _address(entry: Entry) -> str:
    """Where the runs of the first difference's first arm stand in the book."""
    assert entry.verdict is not None
    if not entry.verdict.runs:
        return ""
    task, system, place = entry.verdict.runs[0].split("/runs/")[-1].split("/")
    fraction = place.removeprefix("fraction-").split("_")[0]
    return f"{page_name(entry.study)}.html#{anchor(task, system, fraction)}"


def _specification() -> dict[str, Any]:
    """Rows of claims over the band of one margin: name above, interval and mark below."""
    y = {"field": "id", "type": "nominal", "sort": None, "axis": None}
    axis = {"title": "difference in margins of its claim (grey: within one)", "tickCount": 7}
    scale = {"domain": [-REACH, REACH], "nice": False}
    x = {"type": "quantitative", "scale": scale, "axis": axis}
    colour = charts.as_given("ink")
    low, middle, reported = ({**x, "field": name} for name in ("low", "middle", "reported"))
    # band and zero line leave the line of the claim's name free
    lower = {"height": 22, "yOffset": 9}
    wide = f"width > {NARROW_PX} ? datum.word : ''"
    arrows = [
        {
            "transform": [{"filter": f"datum.{side}"}],
            "mark": {"type": "point", "shape": shape, "filled": True, "size": 60, "yOffset": 9},
            "encoding": {"x": {**x, "field": end}, "color": colour},
        }
        for side, end, shape in (
            ("before", "low", "triangle-left"),
            ("beyond", "high", "triangle-right"),
        )
    ]
    return {
        "height": {"step": STEP_PX},
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {**lower, "type": "rect", "color": charts.BAND, "opacity": 0.22},
                "encoding": {"x": {**x, "datum": -1}, "x2": {"datum": 1}},
            },
            {
                "mark": {**lower, "type": "tick", "orient": "vertical", "color": MUTED},
                "encoding": {"x": {**x, "datum": 0}},
            },
            {
                "mark": {"type": "text", "align": "left", "yOffset": -8, "fontSize": 12.5},
                "encoding": {"x": {"value": 0}, "text": {"field": "claim"}},
            },
            {
                "transform": [{"calculate": wide, "as": "verdict"}],
                "mark": {"type": "text", "align": "right", "yOffset": -8, "fontSize": 12.5},
                "encoding": {
                    "x": {"value": "width"},
                    "text": {"field": "verdict"},
                    "color": colour,
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2.5, "yOffset": 9, "y2Offset": 9},
                "encoding": {"x": low, "x2": {"field": "high"}, "color": colour},
            },
            *arrows,
            {
                "mark": {
                    "type": "tick",
                    "orient": "vertical",
                    "height": 18,
                    "thickness": 2.5,
                    "color": WARN,
                    "yOffset": 9,
                },
                "encoding": {"x": reported},
            },
            {
                "name": charts.MARKS,
                "mark": {
                    "type": "point",
                    "size": 130,
                    "opacity": 1,
                    "strokeWidth": 1.6,
                    "yOffset": 9,
                    "cursor": "pointer",
                },
                "encoding": {
                    "x": middle,
                    "shape": charts.as_given("shape"),
                    "fill": charts.as_given("fill"),
                    "stroke": colour,
                    "tooltip": {"field": "says"},
                },
            },
        ],
    }
