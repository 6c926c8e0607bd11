"""The papers' numbers come from one file, each asked for by its whole key."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.evidence import reported
from mvl.evidence.reported import paper_value, paper_values

HEAD = "paper,table,system,metric,value,sd,source,confidence"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of three rows in place of the file."""
    path = tmp_path / "paper.csv"
    rows = ("P1,average,A,dice,0.5,,s,high", "P1,average,B,dice,0.75,,s,high")
    path.write_text("\n".join([HEAD, *rows, "P2,average,A,dice,0.25,,s,low"]) + "\n")
    monkeypatch.setattr(reported, "PAPER_TABLE", path)
    return path


def test_each_number_of_the_file_is_found_by_its_whole_key() -> None:
    with open(ROOT / "data" / "paper_reported.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    for row in rows:
        key = {name: row[name] for name in ("paper", "table", "system", "metric")}
        same = [
            float(other["value"])
            for other in rows
            if all(other[name] == word for name, word in key.items())
        ]
        assert paper_values(**key) == pytest.approx(same, abs=0, rel=1e-15)


def test_the_papers_are_kept_apart(small: Path) -> None:
    assert paper_value("average", "A") == 0.5
    assert paper_value("average", "A", paper="P2") == 0.25


def test_rows_keep_the_order_of_the_file(small: Path) -> None:
    assert paper_values(paper="P1", metric="dice") == [0.5, 0.75]
    assert paper_values(paper="P1-v1") == []


def test_a_number_that_is_not_there_or_stands_twice_is_refused(small: Path) -> None:
    with pytest.raises(KeyError, match="0 rows for P1, average, C, dice"):
        paper_value("average", "C")
    small.write_text(small.read_text() + "P1,average,A,dice,0.6,,s,high\n")
    with pytest.raises(KeyError, match="2 rows for P1, average, A, dice"):
        paper_value("average", "A")


def test_a_number_in_words_is_refused(small: Path) -> None:
    small.write_text(small.read_text() + "P1,odd,A,dice,about half,,s,low\n")
    with pytest.raises(ValueError, match="about half"):
        paper_value("odd", "A")
