"""Each check of the book finds the fault that it is there for, and nothing in a sound page."""

from __future__ import annotations

import contextlib
import hashlib

import pytest

from mvl.publish import book_check, charts
from mvl.publish.browser import Browser, find_browser

FILES = ("config.yaml", "environment.json", "history.csv", "cases.csv", "status.json")
HEAD = (
    "<!doctype html><html lang='en' data-theme='light'><head><title>t</title></head><body><main><h1"
    " id='top'>Chapter</h1>"
)


@pytest.fixture
def book(tmp_path):
    """A book of a landing page, a chapter and a page of runs, all well."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_sources" / "notebooks").mkdir(parents=True)
    (tmp_path / "records").mkdir()
    for name in FILES:
        (tmp_path / "records" / f"{name}.txt").touch()
    (tmp_path / "_sources" / "notebooks" / "01_a.ipynb").touch()
    (tmp_path / "searchindex.js").touch()
    links = "".join(f"<a href='records/{name}.txt'>{name}</a>" for name in FILES)
    (tmp_path / "runs_s.html").write_text(
        HEAD + f'<table><tr id="r" class="done"><td>{links}</td></tr></table>'
    )
    (tmp_path / "search.html").write_text(HEAD)
    (tmp_path / "index.html").write_text(
        HEAD + "<a href='notebooks/01_a.html#top'>1</a><a href='https://x.example/y#z'>2</a><a"
        " href='#top'>3</a>"
    )
    (tmp_path / "notebooks" / "01_a.html").write_text(
        HEAD + "<a href='../runs_s.html#r'>run</a><a"
        " href='https://colab.research.google.com/github/o/r'>Colab</a><a"
        " href='../_sources/notebooks/01_a.ipynb'>.ipynb</a><a"
        " href='https://github.com/o/r'>source</a><p>A U-Net and SmolLM2-135M</p>"
    )
    return tmp_path


def add(book, page, words):
    path = book / page
    path.write_text(path.read_text() + words)
    return book_check.static_faults(book)


def test_a_book_without_fault_has_none(book):
    assert book_check.static_faults(book) == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("<a href='gone.html'>x</a>", "gone.html leads nowhere"),
        ("<a href='runs_s.html#gone'>x</a>", "#gone has no such anchor"),
        ("<a href='#gone'>x</a>", "#gone has no such anchor"),
        ("<a href='../../outside.html'>x</a>", "leads nowhere"),
        ("<img src='records/cases.csv.txt' alt=''>", "has no words"),
        ("<p>&lt;IPython.core.display.Markdown object&gt;</p>", "an object in place of its words"),
        ("<p>the Medvisionllama</p>", "Medvisionllama should be MedVisionLlama"),
        ("<p>a UNet</p>", "UNet should be U-Net"),
        ("<img alt='LLM4SEG' src='records/cases.csv.txt'>", "LLM4SEG should be LLM4Seg"),
        ("<p>CMU-NeXt, smollm2 135m</p>", "CMU-NeXt should be CMUNeXt"),
    ],
)
def test_a_fault_is_found_and_named(book, words, fault):
    assert any(fault in line for line in add(book, "index.html", words))


def test_where_a_charts_marks_lead_is_a_link(book):
    chart = charts.Chart({}, "", "")
    block = charts.block(chart, [{"href": "runs_s.html#r"}, {"href": "runs_s.html#gone"}])
    assert add(book, "index.html", block) == [
        "index.html: runs_s.html#gone has no such anchor",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "<code>unet</code>",
        "<pre>medvisionllama_v3</pre>",
        "<p>UNet++, nnU-Net, Swin UNETR, UNETR, DynUNet, V-Net</p>",
        "<p>as llm4seg_random; see mvl/models/unet.py</p>",
        "<p>Llama-3.2-1B, MiniLM</p>",
    ],
)
def test_code_files_and_right_names_are_no_faults(book, words):
    assert add(book, "index.html", words) == []


def test_a_chapter_needs_its_buttons_and_its_runs(book):
    (book / "notebooks" / "01_a.html").write_text(HEAD)
    faults = "\n".join(book_check.static_faults(book))
    assert (
        all(f"no button for {what}" in faults for what in ("Colab", "download", "source"))
        and "leads to no run" in faults
    )


def test_a_recorded_run_needs_every_file(book):
    path = book / "runs_s.html"
    path.write_text(path.read_text().replace("records/cases.csv.txt", "records/status.json.txt"))
    assert any("has no cases.csv" in fault for fault in book_check.static_faults(book))


def test_without_a_browser_it_says_so_and_fails_in_ci(book, monkeypatch, capsys):
    monkeypatch.setattr(book_check, "find_browser", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    assert book_check.check_book(book) == [] and "NOT checked" in capsys.readouterr().err
    monkeypatch.setenv("CI", "true")
    assert "NOT checked" in book_check.check_book(book)[0]
    assert "make book" in book_check.check_book(book / "none")[0]


def test_axe_is_the_known_one():
    digest = hashlib.sha256(book_check.AXE.read_bytes()).hexdigest()
    assert digest == "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
    assert "Mozilla Public License" in (book_check.AXE.parent / "LICENSE").read_text()


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome")
def test_what_only_a_browser_sees_is_found(tmp_path):
    (tmp_path / "wide.html").write_text(
        HEAD.replace("lang='en' ", "") + "<div style='width: 600px'>wide</div><button></button>"
    )
    with Browser() as browser:
        faults = "\n".join(book_check.page_faults(browser, tmp_path / "wide.html", 390, 844))
    assert "scrolls sideways, 608 px" in faults
    assert "dark: the theme is 'light'" in faults and "light: the theme" not in faults
    assert "axe-core: html-has-lang" in faults and "axe-core: button-name" in faults


def test_a_page_that_only_sends_on_is_not_opened(book, monkeypatch):
    opened = []
    monkeypatch.setattr(
        book_check, "browse", lambda pages: opened.extend(page.name for page in pages) or []
    )
    monkeypatch.setattr(book_check, "search_faults", lambda browser, folder: [])
    monkeypatch.setattr(book_check, "Browser", contextlib.nullcontext)
    (book / "index.html").write_text('<meta http-equiv="Refresh" content="0; url=runs_s.html" />')
    assert book_check.browser_faults(book) == []
    assert sorted(opened) == ["01_a.html", "runs_s.html", "search.html"]
