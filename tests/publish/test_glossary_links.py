"""A term of the glossary is linked where a page first uses it, and nowhere else."""

import re

from mvl.publish.glossary_links import link_terms, linked, read_terms

GLOSSARY = (
    '<article><dl><dt id="term-block-token-block">block, token block<a>#</a></dt>'
    '<dt id="term-Dice">Dice</dt><dt id="term-random-frozen-block">random frozen block</dt></dl>'
    "</article>"
)


def test_the_first_use_alone_is_linked_and_names_keep_their_letters():
    terms = read_terms(GLOSSARY)
    text, count = linked("<p>Blocks: a block, Dice and dice, Dice.</p>", terms, "g.html")
    assert count == 2
    assert text == (
        '<p><a class="mvl-term" href="g.html#term-block-token-block">Blocks</a>: a block, '
        '<a class="mvl-term" href="g.html#term-Dice">Dice</a> and dice, Dice.</p>'
    )


def test_headings_links_code_and_drawings_stay_as_they_are():
    body = (
        "<h2>Dice</h2><a href='x'><b>Dice</b></a><code>Dice</code><svg><g><text>Dice</text></g>"
        "</svg><p>a-block<br>block-wise <img src='x'></p><p>Dice</p>"
    )
    text, count = linked(body, read_terms(GLOSSARY), "g.html")
    assert count == 1 and text.endswith('#term-Dice">Dice</a></p>')
    assert text.startswith(body[: body.index("<p>Dice")])


def test_the_longest_term_wins():
    text, _ = linked("<p>the random frozen block</p>", read_terms(GLOSSARY), "g.html")
    assert re.findall(r"#(term-[\w-]+)", text) == ["term-random-frozen-block"]


def test_every_page_gets_its_own_links_and_the_glossary_none(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "glossary.html").write_text(GLOSSARY)
    for name in ("a.html", "notebooks/b.html"):
        (tmp_path / name).write_text("<nav>Dice</nav><article><p>Dice</p></article>")
    assert link_terms(tmp_path) == 2
    assert (tmp_path / "glossary.html").read_text() == GLOSSARY
    assert (
        '<nav>Dice</nav><article><p><a class="mvl-term" href="glossary.html#term-Dice">'
        in (tmp_path / "a.html").read_text()
    )
    assert 'href="../glossary.html#term-Dice"' in (tmp_path / "notebooks/b.html").read_text()
