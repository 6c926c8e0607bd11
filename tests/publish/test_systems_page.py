"""The table of systems: every system once, its counts, and a measured step where there is one."""

from __future__ import annotations

import pytest

from mvl.core.config import named, system_names
from mvl.models.describe import listed_parameters
from mvl.publish import systems_page


def rows_by_name() -> dict[str, list[str]]:
    """The cells of each system's row."""
    lines = systems_page.systems_table().splitlines()
    width = lines[0].count("|")
    assert all(line.count("|") == width for line in lines), "a row has another number of cells"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(cells) == len({row[0] for row in cells})
    return {row[0].strip("`"): row for row in cells}


def test_every_system_has_one_row_with_its_parameters() -> None:
    rows = rows_by_name()
    assert list(rows) == system_names()
    for name, row in rows.items():
        assert row[4:6] == [str(count) for count in listed_parameters(name)]
        assert row[3] == named("systems", name)["differs"].strip()


def test_a_step_is_shown_only_where_one_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"seconds": 1.234, "peak_memory_mb": 5678.0, "share": 0.456}
    monkeypatch.setattr(systems_page, "read_bench", lambda: {"systems": {"unet": step}})
    rows = rows_by_name()
    assert rows["unet"][6:] == ["1.23", "5.7", "0.46"]
    assert rows["vit_baseline"][6:] == ["", "", ""]


def test_flags_of_a_source_keep_their_two_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"source": "main.py --use_llm", "differs": "nothing"}
    monkeypatch.setattr(systems_page, "system_names", lambda: ["unet"])
    monkeypatch.setattr(systems_page, "named", lambda folder, name: about)
    assert "main.py `--use_llm` |" in systems_page.systems_table()
