"""The hash of what a figure shows: of its data and its numbers, of nothing else; and the count of a
book's figures that equal the published ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mvl.publish import figure_data
from mvl.publish.figure_data import SCAN, data_sha256
from mvl.publish.figures_cases import dice_by_case
from mvl.publish.style import hole, svg


def drawn(value: float = 0.7, number: str = "0.62", **look: object) -> Figure:
    """A line, a bar, dots, an area and a picture, with words and a number."""
    figure = Figure(figsize=look.pop("figsize", (4, 3)))
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.5, value, 0.8], **look)
    axes.bar([0, 1], [0.5, value], **look)
    axes.scatter([0, 1], [0.2, value])
    axes.fill_between([0, 1], [0, 0], [1, value])
    axes.imshow(np.eye(3))
    axes.text(0, 0, f"{look.get('label', 'Dice')} {number}")
    return figure


@pytest.mark.parametrize("look", [{"color": "red"}, {"label": "IoU"}, {"figsize": (8, 2)}])
def test_looks_and_words_are_not_in_it(look: dict[str, object]) -> None:
    assert data_sha256(drawn(**look)) == data_sha256(drawn())


def test_the_last_bit_is_not_in_it() -> None:
    assert data_sha256(drawn(np.nextafter(0.7, 1))) == data_sha256(drawn())


@pytest.mark.parametrize("change", [{"value": 0.70001}, {"number": "0.63"}])
def test_a_value_and_a_written_number_are(change: dict[str, object]) -> None:
    assert data_sha256(drawn(**change)) != data_sha256(drawn())


@pytest.mark.parametrize("part", ["lines", "patches", "collections", "images"])
def test_each_kind_of_mark_is(part: str) -> None:
    figure = drawn()
    getattr(figure.axes[0], part)[0].remove()
    assert data_sha256(figure) != data_sha256(drawn())


def test_scans_are_no_records() -> None:
    figure = drawn()
    beside = figure.add_axes((0, 0, 0.1, 0.1))
    beside.imshow(np.ones((2, 2)))
    assert data_sha256(figure) != data_sha256(drawn())
    beside.set_gid(SCAN)
    assert data_sha256(figure) == data_sha256(drawn())


def write_book(folder: Path, *figures: Figure) -> Path:
    """A built book whose chapter holds one figure as a file and the others inline."""
    (folder / "_images").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    (folder / "_images" / "a.svg").write_text(svg(figures[0]))
    inline = "".join(svg(figure) for figure in figures[1:])
    page = f'<img src="../_images/a.svg" alt="x">{inline}<img src="../_images/none.svg">'
    (folder / "notebooks" / "01.html").write_text(page)
    return folder


def test_a_books_figures_are_counted_against_the_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figure_data, "TABLE", tmp_path / "figures.csv")
    book = write_book(tmp_path / "book", drawn(), drawn(0.1))
    figure_data.write_table(book)
    assert figure_data.compared(book) == [("notebooks/01", 2, 2, 0)] and figure_data.main(book) == 0
    assert "figures: 2 of 2 equal" in capsys.readouterr().out
    other = write_book(tmp_path / "other", drawn(), drawn(0.2))
    assert (
        figure_data.compared(other) == [("notebooks/01", 1, 2, 0)] and figure_data.main(other) == 1
    )
    said = capsys.readouterr().out
    assert "1 of 2  DIFFERS" in said and "figures: 1 of 2 equal" in said
    assert figure_data.compared(tmp_path / "none") == [("notebooks/01", 0, 2, 0)]
    more = write_book(tmp_path / "more", drawn(), drawn(0.1), drawn(0.2))
    assert figure_data.compared(more) == [("notebooks/01", 2, 3, 0)] and figure_data.main(more) == 1


def test_a_figure_without_its_scans_is_counted_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figure_data, "TABLE", tmp_path / "figures.csv")
    figure_data.write_table(write_book(tmp_path / "book", drawn(), drawn(0.1)))
    bare = write_book(tmp_path / "bare", drawn(), hole("no scans here", scans=True))
    assert figure_data.compared(bare) == [("notebooks/01", 1, 2, 1)] and figure_data.main(bare) == 0
    assert "figures: 1 of 1 equal" in (said := capsys.readouterr().out) and "1 more show" in said
    other = write_book(tmp_path / "other", drawn(), hole("no records here"))
    assert figure_data.main(other) == 1, "a hole for want of records is a difference"


def test_dots_are_scattered_alike_each_time() -> None:
    rows = [
        {"task": "t", "system": "unet", "fold": 0, "case": f"c{i}", "dice": i / 9} for i in range(9)
    ]
    table = pd.DataFrame(rows)
    first = data_sha256(dice_by_case(table))
    np.random.uniform(size=5)
    assert data_sha256(dice_by_case(table)) == first


def test_the_published_table_names_the_chapters() -> None:
    lines = figure_data.TABLE.read_text().splitlines()
    pages = {line.split(",")[0] for line in lines[1:]}
    assert lines[0] == ",".join(figure_data.COLUMNS)
    assert {"intro", "claims", "notebooks/02_llm_hybrid", "notebooks/08_qualitative"} <= pages
