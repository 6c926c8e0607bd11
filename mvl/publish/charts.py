"""Interactive charts: a Vega-Lite specification and its data as one block of a page, drawn in the
reader's browser by the book's own scripts.

A block is hidden until its script has drawn it, so where there is none (a plain notebook, a reader
without JavaScript) the still figure beside it is what is seen, and nothing is asked of the network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from mvl.evidence.arms import colour, marker, title
from mvl.publish.style import GRID, INK, MUTED

ROWS = "rows"
"Name of a specification's data, which the page's script fills with the rows that are shown."
MARKS = "marks"
"Name of the layer whose marks say their row's words and lead to its address."
BAND = "#8C959F"
"Colour of the equivalence band, as in the still figures."
HEIGHT_PX = 340
"Height of a chart that has no rows of its own."
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "text": {"color": INK, "fontSize": 12},
}
"""What charts have in common. The page's words name a chart and its marks (`charts.js`), so Vega's
own roles would say them twice."""


@dataclass(frozen=True)
class Choice:
    """One value that a reader can switch on and off, and its mark in the chart."""

    value: str
    words: str
    "What stands beside the switch."
    colour: str = ""
    shape: str = ""
    "Outline of the mark in a box from -1 to 1; empty for none, or for a line."
    dash: tuple[int, ...] = ()
    "Lengths of a line's strokes and gaps; a line of one stroke is (1, 0)."
    on: bool = True
    hollow: bool = False
    "The mark is drawn without its fill."


@dataclass(frozen=True)
class Switches:
    """A group of switches over one field of the rows."""

    field: str
    title: str
    choices: Sequence[Choice]
    one: bool = False
    """One is on at a time; else any number, and where all begin switched off, none is as good as
    all."""


@dataclass(frozen=True)
class Chart:
    """A chart without its rows."""

    specification: dict[str, Any]
    "Vega-Lite, without data, width and looks."
    words: str
    "What it shows, for who cannot see it."
    counted: str
    "What stands behind the number of its rows."
    key: str = ""
    "What marks mean that no switch explains."


def block(
    chart: Chart,
    rows: Sequence[dict[str, Any]],
    switches: Sequence[Switches] = (),
    still: str = "before",
) -> str:
    """The HTML block of a chart, on one line of text; empty where there is no row.

    Each row may have `says`, whose first line is its name, and `href`, where a click on its mark
    leads (`leads` names it).

    still: where the still figure stands, `before` or `after` the block; empty for none to fold.
    """
    if not rows:
        return ""
    common = {"data": {"name": ROWS}, "config": CONFIG, "width": "container"}
    # what several rows say stands once
    texts = list(dict.fromkeys(row["says"] for row in rows if "says" in row))
    places = {text: place for place, text in enumerate(texts)}
    facts = {
        **asdict(chart),
        "specification": {**common, **chart.specification},
        "texts": texts,
        "rows": [{**row, "says": places[row["says"]]} if "says" in row else row for row in rows],
        "switches": [asdict(each) for each in switches],
    }
    text = json.dumps(facts, allow_nan=False).replace("<", "\\u003c")
    script = f'<script type="application/json">{text}</script>'
    return f'<div class="mvl-chart" data-still="{still}" hidden>{script}</div>'


def show(html: str) -> None:
    """Add a chart's block to a notebook's output; a plain notebook shows nothing of it."""
    from IPython.display import display

    if html:
        display({"text/html": html, "text/plain": ""}, raw=True)


def outline(mark: str) -> str:
    """A marker of matplotlib as SVG's path in a box from -1 to 1, so that a chart has the still
    figure's marks."""
    style = MarkerStyle(mark)
    path = style.get_path().transformed(style.get_transform())
    size = float(np.abs(path.vertices).max()) or 1.0
    letters = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for points, code in path.iter_segments(simplify=False):
        if code == Outline.CLOSEPOLY:
            parts.append("Z")
            continue
        # SVG counts y downwards
        places = (np.asarray(points).reshape(-1, 2) / size) * (1, -1)
        parts.append(letters[code] + " ".join(f"{x:.3g},{y:.3g}" for x, y in places))
    return "".join(parts)


def band(y: dict[str, Any], half: float) -> list[dict[str, Any]]:
    """Layers of the band around zero, `half` to each side of it on the axis `y`, and of zero
    itself."""
    once: dict[str, Any] = {"data": {"values": [{}]}}
    grey = {"type": "rect", "color": BAND, "opacity": 0.22}
    edges = {"y": {**y, "datum": -half}, "y2": {"datum": half}}
    return [
        {**once, "mark": grey, "encoding": edges},
        {
            **once,
            "mark": {"type": "rule", "color": MUTED},
            "encoding": {"y": {**y, "datum": 0}},
        },
    ]


def arm_choice(system: str, on: bool = True, dash: tuple[int, ...] = ()) -> Choice:
    """The switch of an arm, with its mark, or with its line where a dash is given."""
    shape = "" if dash else outline(marker(system))
    return Choice(system, title(system), colour(system), shape, dash, on)


def looks(field: str, choices: Sequence[Choice]) -> dict[str, Any]:
    """Encodings of Vega-Lite that draw a field's values as their switches show them."""

    def scale(values: Sequence[Any]) -> dict[str, Any]:
        return {
            "field": field,
            "type": "nominal",
            "legend": None,
            "scale": {"domain": [each.value for each in choices], "range": list(values)},
        }

    marked = (
        {"shape": scale([each.shape for each in choices])}
        if choices[0].shape
        else {"strokeDash": scale([each.dash for each in choices])}
    )
    return {"color": scale([each.colour for each in choices]), **marked}


def as_given(field: str, **settings: Any) -> dict[str, Any]:
    """An encoding of Vega-Lite whose values are colours or outlines themselves."""
    return {"field": field, "type": "nominal", "scale": None, "legend": None, **settings}
