"""Checks of a built book: links, names, search and buttons in its pages; and what a browser sees,
on a phone and a desk, light and dark."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mvl.core.config import ROOT
from mvl.publish import figure_data
from mvl.publish.browser import Browser, find_browser
from mvl.publish.run_pages import ALWAYS, NUMBERED
from mvl.publish.spelling import misspelt

AXE = ROOT / "tests" / "_vendor" / "axe-core" / "axe.min.js"
"axe-core, MPL-2.0: only this check loads it, no page of the book."
SCREENS = ((390, 844), (1440, 900))
"A phone and a desk, CSS pixels."
BROWSERS = 2
UNSPELT = ("script", "style", "code", "pre", "kbd", "svg", "cite", "head")
"Text in these elements is code, or the title of somebody's work."
AXE_RUN = """axe.run(document, {resultTypes: ['violations']}).then(found => found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.id} (${v.impact}): ${v.nodes.length} of `
    + `${v.nodes[0].target.join(' ')}: ${v.help}`))"""
THEME = "document.documentElement.dataset.theme"
WIDEST = """(() => {
  const wide = document.scrollingElement.scrollWidth;
  const out = [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.tagName + '.' + e.className).slice(0, 3);
  return wide > innerWidth ? `${wide} px wide: ${out.join(', ')}` : '';
})()"""


class Page(HTMLParser):
    """What the checks need of a page: its ids, its links, its buttons and its words."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path, self.ids, self.links = path, set[str](), list[str]()
        self.words, self._quiet, self.unnamed = list[str](), list[str](), list[str]()
        self.feed(path.read_text(errors="replace"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ids, addresses and pictures without words."""
        values = {key: value or "" for key, value in attrs}
        self.ids |= {
            values[key] for key in ("id", "name") if values.get(key) and (key == "id" or tag == "a")
        }
        self.links += [
            values[key]
            for key in ("href", "src", "data-src")
            if key in values and tag != "base" and values.get("rel") != "canonical"
        ]
        if tag == "img" and not values.get("alt", "").strip():
            self.unnamed.append(values.get("src", "")[:60])
        if tag in UNSPELT:
            self._quiet.append(tag)
        self.words += [
            values[key]
            for key in ("alt", "title", "aria-label")
            if key in values and not self._quiet
        ]

    def handle_endtag(self, tag: str) -> None:
        """Leave code behind."""
        if self._quiet and tag == self._quiet[-1]:
            self._quiet.pop()

    def handle_data(self, data: str) -> None:
        """Keep what is prose, and where a chart's marks lead."""
        if self._quiet[-1:] == ["script"] and data.startswith('{"specification"'):
            self.links += {row["href"] for row in json.loads(data)["rows"] if row.get("href")}
        if not self._quiet and data.strip():
            self.words.append(data)


def read_pages(folder: Path) -> dict[Path, Page]:
    """Every page of a built book, by its path."""
    return {
        path: Page(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts
    }


def dead_links(pages: dict[Path, Page], folder: Path) -> Iterator[str]:
    """Links within the book whose file or anchor is not there, or that lead out of the book's
    folder."""
    for path, page in pages.items():
        for address in dict.fromkeys(page.links):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not address or address == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_relative_to(folder.resolve()) or not target.is_file():
                yield f"{path.relative_to(folder)}: {address} leads nowhere"
            elif (
                target in pages
                and parts.fragment
                and unquote(parts.fragment) not in pages[target].ids
            ):
                yield f"{path.relative_to(folder)}: {address} has no such anchor"


def missing_parts(pages: dict[Path, Page], folder: Path) -> Iterator[str]:
    """A page without search; a chapter without its buttons for Colab, download and source; a
    picture without words."""
    for path, page in pages.items():
        place = str(path.relative_to(folder))
        yield from (
            f"{place}: the picture {source} has no words for who cannot see it"
            for source in page.unnamed
        )
        if path.parent.name == "notebooks":
            wanted = {
                "Colab": "colab.research.google.com/github/",
                "download": f"_sources/notebooks/{path.stem}.ipynb",
                "source": "https://github.com/",
            }
            yield from (
                f"{place}: no button for {what}"
                for what, part in wanted.items()
                if not any(part in link for link in page.links)
            )
    if not (folder / "searchindex.js").is_file() or folder / "search.html" not in pages:
        yield "search.html: no search"


def untraced(pages: dict[Path, Page], folder: Path) -> Iterator[str]:
    """A landing page, claims or chapters of recorded runs that lead to none of them, and rows of
    recorded runs that lack a file."""
    for path, page in pages.items():
        links = [link for link in page.links if re.search(r"runs_[\w-]+\.html#|records/", link)]
        shows = path.parent.name == "notebooks" or path.stem in NUMBERED
        if shows and not links and "No run is recorded yet." not in " ".join(page.words):
            yield f"{path.relative_to(folder)}: leads to no run"
    for path in sorted(folder.glob("runs_*.html")):
        for row in re.findall(r'<tr id="[^"]*" class="done".*?</tr>', path.read_text(), re.S):
            for name in ALWAYS:
                if f"/{name}.txt" not in row:
                    yield f"{path.name}: {row[8:80]} has no {name}"


OBJECT = re.compile(r"<[\w.]+ object(?: at 0x\w+)?>")
"What a notebook shows of an object that has no words."


def static_faults(folder: Path) -> list[str]:
    """What is wrong with a built book, by reading it."""
    pages = read_pages(folder)
    spelt = (
        f"{path.relative_to(folder)}: {fault}"
        for path, page in pages.items()
        for fault in dict.fromkeys(misspelt(page.words))
    )
    shown = (
        f"{path.relative_to(folder)}: shows {found}, an object in place of its words"
        for path, page in pages.items()
        for found in OBJECT.findall(" ".join(page.words))
    )
    return [
        *dead_links(pages, folder),
        *spelt,
        *shown,
        *missing_parts(pages, folder),
        *untraced(pages, folder),
    ]


def page_faults(browser: Browser, page: Path, width: int, height: int) -> list[str]:
    """What a browser finds on one page, light and dark: console errors, requests that leave,
    overflow, serious findings of axe-core.

    A phone is dark when the page loads and turns light, a desk the other way round; a page that
    does not turn is loaded anew.
    """
    out: list[str] = []
    schemes = ("dark", "light") if width < 600 else ("light", "dark")
    for scheme in schemes:
        browser.show(width, height, scheme == "dark")
        if scheme == schemes[0] or browser.evaluate(THEME) != scheme:
            browser.open(page.resolve().as_uri())
            browser.evaluate(AXE.read_text() + "; null")
        out += [
            f"{page.name} at {width} px, {scheme}: {fault}"
            for fault in screen_faults(browser, scheme)
        ]
    return out


def screen_faults(browser: Browser, scheme: str) -> list[str]:
    """What is wrong with the page as the browser shows it now."""
    theme, wide = browser.evaluate(THEME), browser.evaluate(WIDEST)
    out = [f"the theme is {theme!r}"] * (theme != scheme) + [f"scrolls sideways, {wide}"] * bool(
        wide
    )
    return [
        *browser.faults(),
        *out,
        *(f"axe-core: {finding}" for finding in browser.evaluate(AXE_RUN)),
    ]


def search_faults(browser: Browser, folder: Path, word: str = "baseline") -> list[str]:
    """The search page finds a word that every book has, from the file system, without a server."""
    browser.show(*SCREENS[1], False)
    browser.open(f"{(folder / 'search.html').resolve().as_uri()}?q={word}")
    count = "document.querySelectorAll('#search-results li').length"
    end = time.monotonic() + 20
    while not (found := browser.evaluate(count)) and time.monotonic() < end:
        time.sleep(0.2)
    return [
        f"search.html: {fault}"
        for fault in ([] if found else [f"found nothing for {word!r}"]) + browser.faults()
    ]


def browse(pages: Sequence[Path]) -> list[str]:
    """Open these pages, one after another in one browser, on each screen in each colour scheme."""
    with Browser() as browser:
        return [
            fault
            for page in pages
            for width, height in SCREENS
            for fault in page_faults(browser, page, width, height)
        ]


SENT_ON = re.compile(r'<meta[^>]+http-equiv="refresh"', re.I)
"A page that only sends its reader on; the one it leads to is looked at."


def browser_faults(folder: Path) -> list[str]:
    """What browsers find in a whole book, `BROWSERS` of them side by side."""
    pages = sorted(
        (path for path in read_pages(folder) if not SENT_ON.search(path.read_text())),
        key=lambda path: -path.stat().st_size,
    )
    with ThreadPoolExecutor(BROWSERS + 1) as pool:
        jobs = [pool.submit(browse, pages[start::BROWSERS]) for start in range(BROWSERS)]
        with Browser() as browser:
            found = search_faults(browser, folder)
        return found + [fault for job in jobs for fault in job.result()]


def check_book(folder: Path) -> list[str]:
    """Every fault of a built book, one line each; without a browser, its part is left out in words,
    or a fault where `CI` is set."""
    if not (folder / "index.html").is_file():
        return [f"{folder}: no book; build it with `make book`"]
    faults = static_faults(folder)
    if find_browser():
        return faults + browser_faults(folder)
    words = "no Chromium or Chrome (or CHROMIUM=path): what a browser sees was NOT checked"
    print(f"[check] {words}", file=sys.stderr)
    return [*faults, words] if os.environ.get("CI") else faults


def main() -> int:
    """Check the published book, or that in the folder given; return 1 when something is wrong."""
    asked = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "book" / "_build" / "html"
    folder = asked.resolve()
    begun, faults = time.monotonic(), check_book(folder)
    if len(sys.argv) < 2:
        faults += [
            f"{page}: {number - equal - absent} of {number} figures have other data than"
            " data/figures.csv; where they are meant to, `mvl book --record` keeps theirs"
            for page, equal, number, absent in figure_data.compared(folder)
            if equal + absent < number
        ]
    print("\n".join(faults))
    print(
        json.dumps(
            {
                "book": folder.name,
                "faults": len(faults),
                "seconds": round(time.monotonic() - begun, 1),
            }
        ),
        file=sys.stderr,
    )
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
