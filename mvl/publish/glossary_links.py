"""Terms of the glossary linked where a page first uses them, once the pages are built: chapters
that are computed from runs get the links like any other page."""

from __future__ import annotations

import html
import re
from pathlib import Path

TERM = re.compile(r'<dt id="(term-[^"]+)">(.*?)<', re.DOTALL)
TAG = re.compile(r"(<!--.*?-->|<[^>]+>)", re.DOTALL)
CLOSED = frozenset(
    "a h1 h2 h3 h4 h5 h6 code pre script style svg summary button nav th title figcaption dt label"
    " math select".split()
)
"Elements whose words stay as they are."
VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
ALSO = {"token block": "block", "random block": "random frozen block"}
"Other words for a term of the glossary."


def link_terms(site: Path) -> int:
    """Link each term of the glossary at its first use in the text of every built page; returns how
    many links that is."""
    glossary = site / "glossary.html"
    if not glossary.is_file():
        return 0
    terms = read_terms(glossary.read_text(encoding="utf-8"))
    count = 0
    for page in sorted(site.rglob("*.html")):
        if page == glossary or page.relative_to(site).parts[0].startswith("_"):
            continue
        text = page.read_text(encoding="utf-8")
        start, end = text.find("<article"), text.rfind("</article>")
        if start < 0:
            continue
        up = "../" * (len(page.relative_to(site).parts) - 1)
        body, links = linked(text[start:end], terms, f"{up}glossary.html")
        if links:
            page.write_text(text[:start] + body + text[end:], encoding="utf-8")
        count += links
    return count


def read_terms(glossary: str) -> dict[str, str]:
    """Return word -> anchor for each term of the built glossary; `block, token block` is two."""
    terms = {}
    for anchor, words in TERM.findall(glossary):
        for word in html.unescape(words).split(","):
            terms[word.strip()] = anchor
    for word, term in ALSO.items():
        if term in terms:
            terms.setdefault(word, terms[term])
    return terms


def linked(body: str, terms: dict[str, str], address: str) -> tuple[str, int]:
    """Return the body of a page with each term's first use linked, and the number of links."""
    left = dict(terms)
    parts = TAG.split(body)
    closed: list[str] = []
    count = 0
    for place, part in enumerate(parts):
        if place % 2:
            _follow(part, closed)
            continue
        if closed or not part.strip() or not left:
            continue
        parts[place], used = _first_uses(part, left, address)
        count += len(used)
        left = {word: anchor for word, anchor in left.items() if anchor not in used}
    return "".join(parts), count


def _follow(tag: str, closed: list[str]) -> None:
    """Keep the stack of elements inside the outermost one whose words stay as they are."""
    found = re.match(r"</?([a-zA-Z][\w-]*)", tag)
    if not found or tag.endswith("/>") or found[1].lower() in VOID:
        return
    name = found[1].lower()
    if tag.startswith("</"):
        if closed and closed[-1] == name:
            closed.pop()
    elif closed or name in CLOSED or 'class="headerlink"' in tag:
        closed.append(name)


def _first_uses(text: str, terms: dict[str, str], address: str) -> tuple[str, set[str]]:
    """Return a run of text with the first use of each anchor linked, and the anchors used."""
    used: set[str] = set()
    # the longest first: "random frozen block" holds "block"
    words = "|".join(re.escape(word) for word in sorted(terms, key=len, reverse=True))
    lookup = {word.lower(): word for word in terms}

    def link(found: re.Match[str]) -> str:
        word = lookup[found[1].lower()]
        anchor = terms[word]
        # Dice and IoU are names, whose small letters mean something else
        named = word[:1].isupper() and not found[1].startswith(word[:1])
        if anchor in used or named:
            return found[0]
        used.add(anchor)
        return f'<a class="mvl-term" href="{address}#{anchor}">{found[0]}</a>'

    pattern = rf"(?<![\w-])({words})s?(?![\w-])"
    return re.sub(pattern, link, text, flags=re.IGNORECASE), used
