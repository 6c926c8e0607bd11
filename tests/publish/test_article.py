"""The article is one page that stands by itself, with four figures and two tables, and a PDF where
a browser is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mvl.publish import article, book
from mvl.publish.browser import BrowserError, find_browser

TEXT = """# Does it <help>?

Yes, [here](second_study.md#the-table) and [there](notebooks/02_llm_hybrid.ipynb), as others
say {cite:p}`somebody`. [Start](intro.md). [Elsewhere](https://example.org/a.md)

![A drawing.](landing.svg) <span class="mvl-pdf"></span>

| a | b |
|---|---|
| 1 | 2 |
"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><text>nine</text></svg>'


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders of staged sources and of a built site, on a machine without MyST's tool."""
    monkeypatch.setattr(article, "write_jats", lambda *_: None)
    staging, site = tmp_path / "staging", tmp_path / "site"
    staging.mkdir()
    site.mkdir()
    (staging / article.SOURCE).write_text(TEXT)
    (staging / "landing.svg").write_text(SVG)
    return staging, site


def test_links_lead_to_the_books_pages_and_nothing_of_the_builders_language_stays(staged) -> None:
    staging, site = staged
    page = article.write_article(staging, site)
    text = page.read_text()
    assert re.findall(r'href="([^"]*)"', text) == [
        "index.html",
        "second_study.html#the-table",
        "notebooks/02_llm_hybrid.html",
        "index.html",
        "https://example.org/a.md",
    ]
    assert "{cite" not in text and "<title>Does it" in text and "&lt;help&gt;" not in text[:400]
    assert '<div class="scroll" tabindex="0" role="region" aria-label="Table 1"><table>' in text
    assert (site / "landing.svg").read_text() == SVG
    assert not list(book.network_requests(site))


def test_a_book_that_only_shows_that_it_works_has_no_article(staged) -> None:
    staging, site = staged
    (staging / article.SOURCE).write_text("\n")
    assert article.write_article(staging, site) is None and not list(site.iterdir())


def test_the_source_has_four_figures_two_tables_and_no_typed_result() -> None:
    text = (book.SOURCES / "article" / article.SOURCE).read_text()
    assert (
        len(re.findall(r"^!\[", text, re.M)) == len(re.findall(r"^\*\*Figure \d", text, re.M)) == 4
    )
    assert len(re.findall(r"^\*\*Table \d", text, re.M)) == 2
    prose = re.sub(r"\{[{%].*?[%}]\}|Figure \d|Table \d", "", text)
    # sizes that the texts of the book state as well; every other number comes from a record
    assert set(re.findall(r"\d[\d.]*", prose)) <= {"3", "135", "95", "4", "40", "0", "1", "2"}


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome")
def test_the_browser_prints_it_and_the_pages_name_the_pdf(staged) -> None:
    staging, site = staged
    article.write_article(staging, site)
    (site / "cite.html").write_text(f"<p>{article.LINK}</p>")
    pdf = article.print_article(site)
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF") and b"/StructTreeRoot" in data
    for name in ("cite.html", article.PAGE):
        assert 'href="article.pdf"' in (site / name).read_text()


@pytest.mark.parametrize("why", ["none", "fails"])
def test_without_a_browser_that_prints_no_page_names_a_pdf(
    staged, monkeypatch, capsys, why
) -> None:
    staging, site = staged

    def broken() -> None:
        raise BrowserError("it did not start")

    monkeypatch.setattr(article, "find_browser", lambda: None if why == "none" else "chromium")
    monkeypatch.setattr(article, "Browser", broken)
    article.write_article(staging, site)
    assert article.print_article(site) is None
    assert "article.pdf" in capsys.readouterr().err
    assert (
        not (site / article.PDF).exists() and article.PDF not in (site / article.PAGE).read_text()
    )


def test_figure_1_is_the_network_of_the_second_study() -> None:
    words = article.svg(article.architecture())
    assert "Frozen LLM block" in words and "smollm2-135m" in words
