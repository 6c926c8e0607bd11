"""Drawn figures put into the page itself, numbered and with their captions, so that their words are
text of the page and follow its theme."""

from __future__ import annotations

import html
import re
from pathlib import Path

from mvl.publish.figure_data import KEY

IMAGE = re.compile(r'<img\b[^>]*?\bsrc="([^":?#]+\.svg)"[^>]*?/?>')
"An image of the site's own that is an SVG."
CHAPTER = re.compile(r"(\d+)_\w+\.html")
"A page that a notebook made, with the chapter's number."
CAPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)
NAMED = re.compile(r'\bid="([^"]+)"')
LINK = re.compile(r'((?:xlink:)?href="#|url\(#)([^")]+)')
CARD = "#fcfcfa"
"The figures' paper, which gives way to the page's own."
SMALLEST = 0.75
"A figure is never drawn smaller than this share of its own size, at which 9 pt are 9 pixels."


def inline_figures(site: Path) -> int:
    """Put every SVG of the built pages into its page, in the place of the image; returns how many.

    Each is numbered by its place on its page, in a chapter after the chapter's number, and can be
    cited by the anchor `#figure-<place>`. Its caption is the one that was drawn with it, else the
    image's alternative text.
    A figure wider than its column scrolls in a box of its own once it would have to shrink below
    `SMALLEST`.
    """
    count = 0
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        chapter = CHAPTER.match(page.name)
        before = f"{int(chapter[1])}." if chapter else ""
        parts = []
        end = 0
        place_on_page = 0
        for place in IMAGE.finditer(text):
            drawn = page.parent / place[1]
            if not drawn.is_file() or "_static" in place[1]:
                continue
            place_on_page += 1
            number = f"{before}{place_on_page}"
            figure = _figure(drawn, place[0], count, number)
            parts += [text[end : place.start()], figure]
            end = place.end()
            count += 1
        if parts:
            page.write_text("".join([*parts, text[end:]]), encoding="utf-8")
    return count


def _figure(drawn: Path, tag: str, count: int, number: str) -> str:
    """Return the SVG as an element of a page, with ids of its own, its number and its caption.

    The drawing is named by what the image's text says of its kind, and by what the caption finds.
    """
    text = drawn.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    key = re.search(rf"{KEY}[0-9a-f]{{16}}", text)
    mark = f' data-figure="{key[0]}"' if key else ""
    found = CAPTION.search(text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)

    # lines on a scan keep their colours: turned round, they would name other arms
    pictures = "<image" in text
    text = text.replace(f"fill: {CARD}", "fill: none")
    text = with_ids(text, f"f{count}-")
    box = re.search(r'\bviewBox="[\d.-]+ [\d.-]+ ([\d.]+)', text)
    assert box is not None
    width = float(box[1]) * 96 / 72
    alt = re.search(r'\balt="([^"]*)"', tag)
    kind = html.unescape(alt[1]) if alt else drawn.stem
    caption = html.unescape(found[1]) if found else kind
    label = html.escape(" ".join(dict.fromkeys([kind, caption])))
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    style = f"max-width: {width:.0f}px; min-width: {SMALLEST * width:.0f}px"
    named = f'{head}{mark} role="img" aria-label="{label}" style="{style}">'
    look = "mvl-figure pictures" if pictures else "mvl-figure"
    words = f"Figure {number}"
    anchor = f"figure-{number.split('.')[-1]}"
    return (
        f'<span class="mvl-numbered" id="{anchor}">'
        f'<span class="{look}" tabindex="0" role="group" aria-label="{words}">'
        f"{named}{rest.rstrip()}</span>"
        f'<span class="mvl-caption"><a href="#{anchor}">{words}.</a>'
        f" {html.escape(caption, quote=False)}</span></span>"
    )


def with_ids(svg: str, prefix: str) -> str:
    """Return the drawing with a prefix before each of its ids: two figures of one page may use the
    same for clip paths and markers."""
    names = set(NAMED.findall(svg))
    svg = NAMED.sub(lambda found: f'id="{prefix}{found[1]}"', svg)
    return LINK.sub(lambda found: found[1] + (prefix if found[2] in names else "") + found[2], svg)
