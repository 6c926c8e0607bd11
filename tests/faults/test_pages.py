"""Group L: a notebook that does not end well fails the build and leaves nothing; parameters,
sources and pages are checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mvl.publish import book, book_facts, notebooks
from mvl.publish.notebooks import (
    LAST_WORDS,
    NotebookError,
    check_executed,
    check_parameters,
    check_sources,
    list_notebooks,
    run_notebook,
    write_notebook,
)
from tests.faults.figures import record_figure

ROWS = [f"L{k}" for k in range(1, 8)]
NOT_HERE: dict[str, str] = {}
HERE = {"L1", "L2", "L3", "L4", "L5", "L6", "L7"}
ENDS = {
    "raise": "1 / 0",
    "kill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "exit": "import sys; sys.exit(0)",
    "leave": "import os; os._exit(0)",
    "timeout": "import time; time.sleep(600)",
    "shell": "!false",
}


def cell(
    source: str, count: int | None = 1, outputs: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    return {
        "id": "x",
        "cell_type": "code",
        "metadata": {},
        "source": source,
        "outputs": list(outputs),
        "execution_count": count,
    }


def notebook(folder: Path, *sources: str) -> None:
    """`01_toy` with a cell of parameters and these."""
    first = {**cell('word: str = "quick"', None), "metadata": {"tags": ["parameters"]}}
    cells = [
        {**each, "id": f"toy-{k}"}
        for k, each in enumerate([first, *(cell(source, None) for source in sources)])
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "01_toy.ipynb").write_text(
        json.dumps(
            {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        )
    )


def test_every_row_is_here() -> None:
    assert HERE | set(NOT_HERE) == set(ROWS)


WORDS = {"output_type": "stream", "name": "stdout", "text": LAST_WORDS + "\n"}


@pytest.mark.parametrize(
    ("row", "cells", "message"),
    [
        (
            "L1-error",
            [
                cell(
                    "1 / 0",
                    1,
                    ({"output_type": "error", "ename": "ZeroDivisionError", "evalue": "by zero"},),
                ),
                cell("", 2, (WORDS,)),
            ],
            "01_toy.ipynb: code cell 1 ended in ZeroDivisionError: by zero",
        ),
        (
            "L1-dead",
            [cell("1"), cell("2", None), cell("3", None)],
            "01_toy.ipynb: code cell 2 of 3 never ran: the kernel died or left",
        ),
        ("L1-left", [cell("1"), cell("2", 2)], "01_toy.ipynb: the kernel left in the last cell"),
    ],
)
def test_what_papermill_calls_completed_is_looked_at(
    row: str, cells: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(NotebookError, match=re.escape(message)):
        check_executed({"cells": cells}, "01_toy.ipynb")


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        (
            "L2-shell",
            "x = 1\n!false",
            (
                r"01_toy.ipynb: code cell 2, line 2 is not plain Python; .* call"
                r" subprocess.run\(..., check=True\)"
            ),
        ),
        ("L2-magic", "%run x", "code cell 2, line 1 is not plain Python"),
        (
            "L2-bare",
            "try:\n    f()\nexcept:\n    pass",
            "code cell 2 catches every exception.*name the one that is expected",
        ),
        (
            "L2-all",
            "try:\n    f()\nexcept Exception as e:\n    print(e)",
            "code cell 2 catches every exception",
        ),
    ],
)
def test_a_cell_that_could_hide_a_failure_is_refused_before_it_runs(
    row: str, source: str, message: str, tmp_path: Path, tree_hash: Callable[[Path], str]
) -> None:
    notebook(tmp_path, source)
    before = tree_hash(tmp_path)
    with pytest.raises(NotebookError, match=message):
        run_notebook("01_toy", {}, tmp_path / "out.ipynb", tmp_path)
    assert tree_hash(tmp_path) == before


@pytest.mark.parametrize("row", ["L2-own"])
def test_the_books_own_notebooks_pass(row: str) -> None:
    for name in list_notebooks():
        check_sources(json.loads(notebooks.notebook_path(name).read_text()), name)


@pytest.mark.parametrize(
    ("row", "given", "message"),
    [
        (
            "L3-name",
            {"sead": 3},
            "here: no parameter 'sead'; did you mean 'seed'|here: no parameter 'sead'.*seed",
        ),
        ("L3-type", {"seed": "none"}, "here: seed: expected int, got 'none'"),
        ("L3-float", {"seed": 3.5}, "here: seed: expected int, got 3.5"),
        ("L4-code", {"x=1; import os; os.abort()": 1}, "here: no parameter .*it takes: seed"),
        ("L4-case", {"Seed": 1}, "here: no parameter"),
    ],
)
def test_parameters_are_those_declared(row: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(NotebookError, match=message):
        check_parameters(given, {"seed": ("int", 0)}, "here")


@pytest.mark.parametrize("row", ["L5"])
def test_each_notebook_shows_the_hashes_of_its_inputs(row: str) -> None:
    """The book executes every notebook anew, and each ends with the sha256 of the tables that it
    read (mvl.publish.chapter_page.inputs)."""
    for name in list_notebooks():
        text = "".join(
            "".join(part["source"])
            for part in json.loads(notebooks.notebook_path(name).read_text())["cells"]
        )
        assert "inputs(" in text, name
    assert "run_notebook(" in Path(book.__file__).read_text()


@pytest.mark.parametrize(
    ("row", "html", "found"),
    [
        (
            "L6-script",
            '<script src="https://example.org/x.js"></script>',
            "<script> https://example.org/x.js",
        ),
        (
            "L6-image",
            '<img src="//example.org/x.png" onerror="alert(1)">',
            "<img> //example.org/x.png",
        ),
    ],
)
def test_pages_ask_the_network_for_nothing(row: str, html: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html)
    assert list(book.network_requests(tmp_path)) == [f"page.html: {found}"]


@pytest.mark.parametrize("row", ["L6-own"])
def test_the_book_executes_only_notebooks_of_this_clone(row: str) -> None:
    assert {
        name for study in book_facts.PUBLISHED for name in book_facts.owned_notebooks(study)
    } <= set(list_notebooks())
    with pytest.raises(NotebookError, match="no notebook 'elsewhere'"):
        book.execute_one("elsewhere", Path("nowhere"), "quick", Path("nowhere"))


@pytest.mark.parametrize("row", ["L7"])
def test_a_notebook_is_whole_or_as_it_was(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_hash: Callable[[Path], str]
) -> None:
    path = tmp_path / "out.ipynb"
    write_notebook(path, {"cells": []})
    before = tree_hash(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"out.ipynb.*(free space|No space)"):
        write_notebook(path, {"cells": [cell("1")]})
    assert tree_hash(tmp_path) == before


@pytest.mark.faults
def test_notebooks_that_fail_at_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six ways to fail, with a real kernel: each is an error with the notebook's name, and no
    output is left."""
    monkeypatch.setattr(notebooks, "CELL_TIMEOUT_S", 5)
    failed = 0
    for end in ENDS.values():
        notebook(tmp_path, "print('fine')", end)
        try:
            run_notebook("01_toy", {}, tmp_path / "out.ipynb", tmp_path)
        except NotebookError as error:
            failed += "01_toy" in str(error) and not (tmp_path / "out.ipynb").exists()
    record_figure("notebooks", failed, len(ENDS), ", ".join(ENDS))
    assert failed == len(ENDS)
