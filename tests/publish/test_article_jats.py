"""The article as JATS: the words, tables and figures of the page, and nothing where the tool is
absent or fails."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mvl.publish import article_jats

TEXT = """# Does it help?

It does *not*, see [the page](claims.html). <span class="mvl-pdf"></span>

![A drawing.](landing.svg)

**Figure 1.** What was drawn.

| a | b |
|---|---|
| 1 | 2 |
"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><text>nine</text></svg>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the article's one figure."""
    (tmp_path / "landing.svg").write_text(SVG)
    return tmp_path


@pytest.mark.skipif(not article_jats.has_tool(), reason="no mystmd or no Node")
def test_it_holds_what_the_page_holds(folder: Path) -> None:
    out = article_jats.write_jats(TEXT, folder, folder)
    assert out == folder / "article.xml"
    tree = ElementTree.fromstring(out.read_text())
    assert tree.findtext("./front/article-meta/title-group/article-title") == "Does it help?"
    assert [cell.text for cell in tree.iter("td")] == ["1", "2"]
    [graphic] = tree.iter("graphic")
    assert graphic.get("{http://www.w3.org/1999/xlink}href") == "landing.svg"
    names = "".join("".join(each.itertext()) for each in tree.iter("contrib"))
    assert article_jats.read_citation()["authors"][0]["name"].split()[-1] in names
    assert "mvl-pdf" not in out.read_text()


@pytest.mark.parametrize("fault", ["absent", "silent", "slow"])
def test_without_the_tool_or_its_file_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    def run(command: list[str], **options: object) -> None:
        if fault == "slow":
            raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(article_jats, "has_tool", lambda: fault != "absent")
    monkeypatch.setattr(subprocess, "run", run)
    assert article_jats.write_jats(TEXT, folder, folder) is None
    assert "article.xml" in capsys.readouterr().err and not (folder / "article.xml").exists()
