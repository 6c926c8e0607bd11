"""Drawn figures put into the page itself, so that their words are text of the page and follow its
theme."""

from __future__ import annotations

import html
import re
from pathlib import Path

from mvl.publish.figure_data import KEY

IMAGE = re.compile(r'<img\b[^>]*?\bsrc="([^":?#]+\.svg)"[^>]*?/?>')
"An image of the site's own that is an SVG."
NAMED = re.compile(r'\bid="([^"]+)"')
LINK = re.compile(r'((?:xlink:)?href="#|url\(#)([^")]+)')
CARD = "#fcfcfa"
"The figures' paper, which gives way to the page's own."
SMALLEST = 0.75
"A figure is never drawn smaller than this share of its own size, at which 9 pt are 9 pixels."


def inline_figures(site: Path) -> int:
    """Put every SVG of the built pages into its page, in the place of the image; returns how many.

    A figure wider than its column scrolls in a box of its own once it would have to shrink below
    `SMALLEST`.
    """
    count = 0
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        parts = []
        end = 0
        for place in IMAGE.finditer(text):
            drawn = page.parent / place[1]
            if not drawn.is_file() or "_static" in place[1]:
                continue
            parts += [text[end : place.start()], _figure(drawn, place[0], count)]
            end = place.end()
            count += 1
        if parts:
            page.write_text("".join([*parts, text[end:]]), encoding="utf-8")
    return count


def _figure(drawn: Path, tag: str, number: int) -> str:
    """Return the SVG as an element of a page, named as the image was and with ids of its own."""
    text = drawn.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    key = re.search(rf"{KEY}[0-9a-f]{{16}}", text)
    mark = f' data-figure="{key[0]}"' if key else ""
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)

    # lines on a scan keep their colours, on a light card: turned round, they would name other arms
    pictures = "<image" in text
    if not pictures:
        text = text.replace(f"fill: {CARD}", "fill: none")

    # two figures of one page may use the same ids for clip paths and markers
    names = set(NAMED.findall(text))
    text = NAMED.sub(lambda found: f'id="f{number}-{found[1]}"', text)
    text = LINK.sub(
        lambda found: found[1] + (f"f{number}-" if found[2] in names else "") + found[2], text
    )

    box = re.search(r'\bviewBox="[\d.-]+ [\d.-]+ ([\d.]+)', text)
    assert box is not None
    width = float(box[1]) * 96 / 72
    alt = re.search(r'\balt="([^"]*)"', tag)
    label = html.escape(html.unescape(alt[1]) if alt else drawn.stem)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    style = f"max-width: {width:.0f}px; min-width: {SMALLEST * width:.0f}px"
    named = f'{head}{mark} role="img" aria-label="{label}" style="{style}">'
    kind = "mvl-figure pictures" if pictures else "mvl-figure"
    holder = f'<span class="{kind}" tabindex="0" role="group" aria-label="Figure">'
    return f"{holder}{named}{rest.rstrip()}</span>"
