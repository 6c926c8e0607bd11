"""The whole story as one page without sidebars, `article.html`, and as a PDF that a browser
prints."""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mvl.core.config import load_config
from mvl.core.files import atomic_write
from mvl.publish.article_jats import JATS, write_jats
from mvl.publish.browser import Browser, BrowserError, find_browser
from mvl.publish.style import svg
from mvl.study.grid import load_study

SOURCE, PAGE, PDF = "article.md", "article.html", "article.pdf"
ARCHITECTURE = "article_architecture.svg"
DRAWN = ("hippocampus2_published", "medvisionllama_v3")
"Study and system of the network that Figure 1 shows."
LINK = '<span class="mvl-pdf"></span>'
"Where pages of the book name the PDF once it is printed."
"A4, in inches."
MARGIN = "0.6in"
ROLE = re.compile(r"\s*\{[\w:]+\}`[^`]*`")
"A citation or reference that only the book's builder understands."
OWN_PAGE = re.compile(r"\]\(((?:[\w-]+/)*[\w-]+)\.(?:md|ipynb)(#[^)]*)?\)")
"A Markdown link to another page of the book."
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<script>
(() => {{
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const page = document.documentElement;
  const turn = () => {{ page.dataset.theme = dark.matches ? 'dark' : 'light'; }};
  dark.addEventListener('change', turn);
  turn();
}})();
</script>
<style>{style}</style>
</head>
<body>
<nav><a href="index.html">The book</a></nav>
<main>
{body}
</main>
</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --line: #d0d7de; --link: #0b57b4; }
html[data-theme="dark"] { --ink: #e6e8eb; --paper: #14181e; --line: #3d444d; --link: #86b7f7; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 1.02rem/1.55 "Source Serif 4", Georgia, "Liberation Serif", serif; }
nav, main { max-width: 46rem; margin: 0 auto; padding: 0.8rem 1.1rem; }
h1 { font-size: 1.75rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 1.6rem 0 0.4rem; }
a { color: var(--link); }
code { font-size: 0.86em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.84rem; line-height: 1.35; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.5rem; text-align: left;
  vertical-align: top; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); }
.mvl-figure { display: block; overflow-x: auto; max-width: 100%; margin-top: 1rem; }
.mvl-figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
html[data-theme="dark"] .mvl-figure:not(.pictures) svg { filter: invert(1) hue-rotate(180deg); }
.mvl-figure:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); }
.mvl-caption { display: none; }  /* the article has captions of its own */
@media print {
  nav, .mvl-pdf { display: none; }
  body { font-size: 9.6pt; line-height: 1.38; }
  main { max-width: none; padding: 0; }
  h1 { font-size: 16pt; } h2 { font-size: 11.5pt; break-after: avoid; }
  table { font-size: 8pt; } tr { break-inside: avoid; }
  .mvl-figure { break-inside: avoid; break-after: avoid; overflow: hidden; }
  .mvl-figure svg { min-width: 0 !important; width: auto; max-width: 100% !important;
    max-height: 9.2cm; }
}
"""


def write_article(staging: Path, site: Path) -> Path | None:
    """Write the article's page into a built site, its figures beside it; None where the staged
    text is empty, as in a book that only shows that everything works."""
    text = (staging / SOURCE).read_text()
    if not text.strip():
        return None
    (staging / ARCHITECTURE).write_text(svg(architecture()))
    for name in re.findall(r"\]\(([\w-]+\.svg)\)", text):
        shutil.copy(staging / name, site / name)
    page = site / PAGE
    text = with_own_links(text)
    page.write_text(as_page(text), encoding="utf-8")
    write_jats(text, staging, site)
    return page


def architecture() -> Figure:
    """Return the drawing of the network that the article is about."""
    from mvl.publish.figure_architecture import draw

    study, system = DRAWN
    return draw(load_config(study, load_study(study).tasks[0], system))


def with_own_links(text: str) -> str:
    """Return the Markdown with links to the book's built pages and without roles of its builder."""
    text = OWN_PAGE.sub(lambda found: f"]({_page_of(found[1])}{found[2] or ''})", text)
    return ROLE.sub("", text)


def as_page(text: str) -> str:
    """Return the page of an article in Markdown; wide tables scroll in boxes of their own."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    box = '<div class="scroll" tabindex="0" role="region" aria-label="Table {}">'
    for number in range(1, body.count("<table>") + 1):
        body = body.replace("<table>", box.format(number) + "<table >", 1)
    body = body.replace("</table>", "</table></div>").replace("<table >", "<table>")
    body = body.replace("<th></th>", "<td></td>")
    title = re.search(r"<h1>(.*?)</h1>", body, re.DOTALL)
    plain = re.sub(r"<[^>]+>", "", title[1]) if title else "Article"
    return TEMPLATE.format(title=html.escape(html.unescape(plain)), style=STYLE, body=body)


def _page_of(name: str) -> str:
    return "index.html" if name == "intro" else f"{name}.html"


def print_article(site: Path) -> Path | None:
    """Print the article of a built site as a PDF beside it and name it where the pages leave room;
    None, with a word on stderr, where no browser is found or it does not print."""
    pdf = None
    if not find_browser():
        print(f"[book] no Chromium or Chrome: the book has no {PDF}", file=sys.stderr)
    else:
        try:
            with Browser() as browser:
                browser.show(1024, 1400, dark=False)
                browser.open((site / PAGE).resolve().as_uri())
                pdf = site / PDF
                atomic_write(pdf, printed(browser))
        except BrowserError as error:
            print(f"[book] the browser printed no {PDF}: {error}", file=sys.stderr)
            pdf = None
    there = {"PDF": PDF, "JATS": JATS}
    links = [f'<a href="{f}">{kind}</a>' for kind, f in there.items() if (site / f).is_file()]
    words = f"The same as {' and as '.join(links)}." if links else ""
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        if LINK in text:
            named = LINK.replace("></", f">{words}</")
            page.write_text(text.replace(LINK, named), encoding="utf-8")
    return pdf


def printed(browser: Browser) -> bytes:
    """Return the page that the browser shows as a PDF: A4, tagged for screen readers."""
    edges: Any = dict.fromkeys(("top", "bottom", "left", "right"), MARGIN)
    return bytes(browser.page.pdf(format="A4", margin=edges, print_background=True, tagged=True))
