"""A chart's block is whole, hidden and harmless in any page; its script draws it, filters its rows
and leads on, by pointer, finger and keyboard, and without it the still figure stays."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from playwright.sync_api import CDPSession

from mvl.core import files
from mvl.core.config import ROOT
from mvl.publish import book, book_check, charts
from mvl.publish.browser import Browser, find_browser
from mvl.publish.charts import Chart, Choice, Switches

VENDOR = book.SOURCES / "_vendor" / "vega"
SHA256 = {
    "vega.min.js": "8f6a3587cf8d4f42c7e08120e3eb05d067e746d554e39d2dcf52acc0bd5ba28f",
    "vega-lite.min.js": "35a9821df838825b05a6a73e9414b58747a1b18321583858ed903c66393a5c7e",
}
"Of build/ in the npm packages vega 6.4.0 and vega-lite 6.4.3."
SCHEMA = jsonschema.Draft7Validator(
    json.loads(gzip.decompress((ROOT / "tests/_vendor/vega-lite/schema.json.gz").read_bytes()))
)
CHART = Chart(
    {
        "height": {"step": 30},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "y": {"field": "name", "type": "nominal", "sort": None, "axis": None},
        },
        "layer": [
            {
                "name": charts.MARKS,
                "mark": {"type": "point", "filled": True, "size": 200},
                "encoding": {"tooltip": {"field": "says"}},
            }
        ],
    },
    "Three dots.",
    "dots shown",
)
ROWS = [
    {"name": name, "x": x, "kind": kind, "says": f"{name}: {x}\nmore", "href": f"there.html#{name}"}
    for name, x, kind in (("one", 1, "odd"), ("two", 2, "even"), ("three", 3, "odd"))
]
KINDS = [Switches("kind", "Kinds", [Choice(kind, kind, on=False) for kind in ("odd", "even")])]
needs_chromium = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome")


def facts(block: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json">(.*)</script>', block)[1])


def schema_faults(block: str) -> list[str]:
    """What Vega-Lite's own schema says against the block's specification."""
    return [error.message for error in SCHEMA.iter_errors(facts(block)["specification"])]


def test_the_schema_finds_what_is_no_vega_lite() -> None:
    assert schema_faults(charts.block(CHART, ROWS)) == []
    wrong = Chart({"mark": "pont"}, "", "")
    assert schema_faults(charts.block(wrong, ROWS))


def test_the_vendored_scripts_are_the_published_ones_with_their_licence() -> None:
    text = (VENDOR / "LICENSE").read_text()
    assert {path.name for path in VENDOR.glob("*.js")} == set(SHA256)
    for name, digest in SHA256.items():
        size = f"{(VENDOR / name).stat().st_size:,} bytes"
        assert files.sha256_file(VENDOR / name) == digest and digest in text and size in text
    assert "6.4.0" in text and "6.4.3" in text and "Redistributions in binary form" in text


def test_the_book_loads_the_scripts_on_no_page_by_itself() -> None:
    assert "vega" not in (book.SOURCES / "_config.yml").read_text()
    assert not list((book.SOURCES / "_static").glob("*vega*"))
    assert (book.SOURCES / "_static" / "charts.js").stat().st_size < 16_000


def test_a_block_is_hidden_one_line_and_cannot_end_its_script() -> None:
    rows = [{**ROWS[0], "says": "</script><b>\n\nx"}]
    block = charts.block(CHART, rows, KINDS)
    assert block.startswith('<div class="mvl-chart"') and "hidden>" in block and "\n" not in block
    assert block.count("</script>") == 1 and "<b>" not in block
    assert "http" not in block, "nothing is asked of the network"
    assert facts(block)["texts"] == ["</script><b>\n\nx"]


def test_what_rows_say_stands_once_and_no_row_is_no_chart() -> None:
    found = facts(charts.block(CHART, [*ROWS, *ROWS], KINDS))
    assert len(found["texts"]) == 3 and [row["says"] for row in found["rows"]] == [0, 1, 2] * 2
    assert charts.block(CHART, []) == ""


def test_a_number_that_json_has_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        charts.block(CHART, [{"x": float("nan")}])


def test_a_plain_notebook_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    charts.show("")
    assert shown == []
    charts.show(charts.block(CHART, ROWS))
    html = shown[0]["text/html"]
    assert shown[0]["text/plain"] == "" and " hidden>" in html
    assert re.findall(r"<script[^>]*>", html) == ['<script type="application/json">']


def test_an_outline_is_matplotlibs_marker_in_its_box() -> None:
    square = charts.outline("s")
    numbers = [float(word) for word in re.findall(r"-?[\d.]+(?:e-?\d+)?", square)]
    assert square.startswith("M") and square.endswith("Z") and set(map(abs, numbers)) == {1}
    up = re.findall(r"(-?[\d.e-]+),(-?[\d.e-]+)", charts.outline("^"))
    top = min(up, key=lambda place: float(place[1]))
    assert float(top[0]) == 0 and float(top[1]) == -1, "points up, where SVG counts down"
    assert "C" in charts.outline("o")


def test_looks_follow_the_switches() -> None:
    marked = charts.looks("arm", [charts.arm_choice("vit_baseline")])
    lined = charts.looks("arm", [charts.arm_choice("vit_baseline", dash=(6, 3))])
    assert set(marked) == {"color", "shape"} and set(lined) == {"color", "strokeDash"}
    assert marked["color"]["scale"]["domain"] == ["vit_baseline"]
    assert lined["strokeDash"]["scale"]["range"] == [(6, 3)]


def page(folder: Path, block: str, scripts: bool = True) -> str:
    """A page with a still figure and the block, in a folder that stands for the book."""
    if scripts:
        (folder / "vega").symlink_to(VENDOR)
    static = (book.SOURCES / "_static").as_uri()
    (folder / "there.html").write_text("<!doctype html><title>there</title>")
    (folder / "p.html").write_text(
        "<!doctype html><html lang='en' data-theme='light' data-content_root='./'><head><title>t"
        "</title><meta charset='utf-8'><style>:root { --pst-color-text-base: #222;"
        " --pst-color-text-muted: #555; --pst-color-link: #0b57b4; --pst-color-background: #fff }"
        f"</style><link rel='stylesheet' href='{static}/charts.css'><script>window.warned = [];"
        " console.warn = (...words) => warned.push(words.join(' '));</script><script"
        f" src='{static}/charts.js'></script></head><body><main class='bd-content'><h1>t</h1><p>"
        f"<span class='mvl-figure'>still</span></p>{block}</main></body></html>"
    )
    return (folder / "p.html").as_uri()


def drawn(browser: Browser, address: str) -> None:
    """Open a page and wait until its first chart is drawn."""
    browser.open(address)
    waited(browser, "document.querySelector('.mvl-chart').dataset.state === 'drawn'")


def middle(browser: Browser, place: int) -> tuple[float, float]:
    """The place on the screen of a mark."""
    x, y = browser.evaluate(
        f"(() => {{ const mark = document.querySelectorAll('g.marks_marks > path')[{place}];"
        " mark.scrollIntoView({block: 'center'}); const box = mark.getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    return x, y


def in_chromiums_words(browser: Browser) -> CDPSession:
    """What Playwright has for new contexts alone."""
    return browser.page.context.new_cdp_session(browser.page)


def waited(browser: Browser, script: str) -> Any:
    """The value of an expression once it is true, on this page or on the one that follows."""
    return browser.page.wait_for_function(script, timeout=20_000).json_value()


TIP = "(tip => tip.hidden ? '' : tip.innerText)(document.querySelector('.mvl-tip'))"
COUNT = "document.querySelectorAll('g.marks_marks > path').length"


@needs_chromium
def test_chromium_filters_the_rows_says_their_words_and_leads_on(tmp_path: Path) -> None:
    address = page(tmp_path, charts.block(CHART, ROWS, KINDS))
    with Browser() as browser:
        browser.show(1440, 900, False)
        drawn(browser, address)
        assert browser.evaluate(COUNT) == 3
        assert browser.evaluate("document.querySelector('details .mvl-figure').innerText === ''")

        browser.evaluate("document.querySelector('input[value=odd]').click()")
        assert waited(browser, f"{COUNT} === 2")
        assert browser.evaluate("document.querySelector('.mvl-count').textContent").startswith(
            "2 of 3 dots shown"
        )
        browser.page.mouse.move(*middle(browser, 1))
        assert waited(browser, TIP).split() == ["three:", "3", "more"]
        browser.page.mouse.click(*middle(browser, 1))
        assert waited(browser, "document.title === 'there' && location.hash") == "#three"

        drawn(browser, address)
        browser.evaluate("document.querySelector('.mvl-plot').focus()")
        for key in ("ArrowDown", "ArrowDown"):
            browser.page.keyboard.press(key)
        assert waited(browser, TIP).startswith("two: 2")
        assert browser.evaluate("document.querySelector('.mvl-said').textContent").startswith(
            "2 of 3: two: 2"
        )
        browser.page.keyboard.press("Enter")
        assert waited(browser, "document.title === 'there' && location.hash") == "#two"
        assert browser.faults() == []


@needs_chromium
def test_a_finger_gets_the_words_first_and_a_link(tmp_path: Path) -> None:
    with Browser() as browser:
        browser.show(390, 844, True)
        chromium = in_chromiums_words(browser)
        chromium.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
        drawn(browser, page(tmp_path, charts.block(CHART, ROWS, KINDS)))
        x, y = middle(browser, 0)
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            chromium.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        link = "document.querySelector('.mvl-tip.stays a')"
        assert waited(browser, f"{link} && {link}.href").endswith("there.html#one")
        assert browser.evaluate("document.title") == "t"


@needs_chromium
def test_a_page_with_a_chart_is_in_order_on_each_screen(tmp_path: Path) -> None:
    page(tmp_path, charts.block(CHART, ROWS, KINDS))
    themes = (
        "<script>document.documentElement.dataset.theme ="
        " matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'</script></head>"
    )
    path = tmp_path / "p.html"
    path.write_text(path.read_text().replace("</head>", themes))
    with Browser() as browser:
        for width, height in book_check.SCREENS:
            faults = book_check.page_faults(browser, path, width, height)
            assert [fault for fault in faults if "theme" not in fault] == []
        # Vega-Lite says so of every chart whose height follows its rows
        usual = 'WARN Dropping "fit-y" because spec has discrete height.'
        assert set(browser.evaluate("window.warned")) <= {usual}


@needs_chromium
@pytest.mark.parametrize("missing", ["scripts", "javascript"])
def test_without_scripts_the_still_figure_stays_and_no_empty_box(
    tmp_path: Path, missing: str
) -> None:
    address = page(tmp_path, charts.block(CHART, ROWS, KINDS), scripts=missing != "scripts")
    with Browser() as browser:
        browser.show(390, 844, False)
        if missing == "javascript":
            in_chromiums_words(browser).send(
                "Emulation.setScriptExecutionDisabled", {"value": True}
            )
        browser.open(address)
        assert browser.evaluate("document.querySelector('.mvl-figure').innerText") == "still"
        assert browser.evaluate("document.querySelector('.mvl-chart').offsetHeight") == 0
