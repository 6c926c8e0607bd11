"""Figures inside their page: words are text, ids do not clash, names stay, foreign images too."""

import re

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from mvl.publish.figure_data import figures_of
from mvl.publish.inline_figures import inline_figures
from mvl.publish.style import styled, svg


@styled
def drawn(words: str) -> Figure:
    figure = Figure(figsize=(4, 3))
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1])
    axis.set_title(words)
    return figure


def site(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "notebooks").mkdir()
    for name in ("one", "two"):
        (tmp_path / "_images" / f"{name}.svg").write_text(svg(drawn(f"Dice of {name}")))
    (tmp_path / "index.html").write_text(
        '<p><img alt="A &lt; B" src="_images/one.svg" /> and <img src="_images/two.svg" alt="Two"/>'
        '<img src="https://elsewhere.org/x.svg" alt="x"><img src="photo.png" alt="p"></p>'
    )
    (tmp_path / "notebooks" / "a.html").write_text('<img alt="One" src="../_images/one.svg" />')
    return tmp_path


def test_each_drawn_figure_becomes_text_of_its_page(tmp_path):
    folder = site(tmp_path)
    before = figures_of(folder)
    assert inline_figures(folder) == 3
    assert figures_of(folder) == before and len(before["index"]) == 2, "the data's hashes stay"
    page = (folder / "index.html").read_text()
    assert "Dice of one" in page and "Dice of two" in page and page.count("<svg") == 2
    assert 'aria-label="A &lt; B"' in page and 'aria-label="Two"' in page
    assert 'src="https://elsewhere.org/x.svg"' in page and 'src="photo.png"' in page
    assert "Dice of one" in (folder / "notebooks" / "a.html").read_text()
    assert "<?xml" not in page and "#fcfcfa" not in page


def test_no_id_stands_twice_and_every_reference_has_its_target(tmp_path):
    folder = site(tmp_path)
    inline_figures(folder)
    page = (folder / "index.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(ids) == len(set(ids))
    asked = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert asked and set(asked) <= set(ids)


def test_a_figure_is_not_squeezed_below_nine_pixels_of_type(tmp_path):
    folder = site(tmp_path)
    inline_figures(folder)
    found = re.search(
        r"max-width: (\d+)px; min-width: (\d+)px", (folder / "index.html").read_text()
    )
    assert (int(found[1]), int(found[2])) == (384, 288), "4 inches at 96 pixels, and three quarters"


def test_a_figure_of_pictures_is_marked_and_has_no_paper_of_its_own(tmp_path):
    folder = site(tmp_path)
    figure = drawn("masks on a scan")
    figure.axes[0].imshow([[0, 1], [1, 0]])
    (folder / "_images" / "two.svg").write_text(svg(figure))
    inline_figures(folder)
    page = (folder / "index.html").read_text()
    assert page.count('class="mvl-figure pictures"') == 1 and page.count('class="mvl-figure"') == 1
    assert "#fcfcfa" not in page and "<image" in page


def test_figures_are_numbered_by_page_and_carry_their_captions(tmp_path):
    folder = site(tmp_path)
    page = folder / "notebooks" / "02_hybrid.html"
    page.write_text('<img alt="Curves." src="../_images/one.svg"/><img src="../_images/two.svg"/>')
    (folder / "_images" / "one.svg").write_text(svg(drawn("x"), "The gain is < 1 & not > 2."))
    inline_figures(folder)
    text = page.read_text()
    assert re.findall(r'<a href="#(figure-\d)">(Figure [\d.]+)\.</a>', text) == [
        ("figure-1", "Figure 2.1"),
        ("figure-2", "Figure 2.2"),
    ]
    assert text.count('id="figure-1"') == text.count('id="figure-2"') == 1
    assert "The gain is &lt; 1 &amp; not &gt; 2.</span>" in text, "the caption stands under it"
    assert 'aria-label="Curves. The gain is &lt; 1 &amp; not &gt; 2."' in text
    index = (folder / "index.html").read_text()
    assert re.findall(r">(Figure [\d.]+)\.<", index) == ["Figure 1", "Figure 2"]
    assert "</a> Two</span>" in index, "without a caption, the image's text is one"
