"""What mvl makes itself appears whole, is kept, is renewed for another recipe, and replaces nothing
else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvl.datasets.made import ensure_made
from mvl.datasets.task import TaskError


def made(folder: Path, number: int, writes: list[int] | None = None) -> Path:
    """A folder with a file that holds a number."""

    def write_all(partial: Path) -> None:
        partial.mkdir()
        (partial / "about.json").write_text(json.dumps({"numbers": {"number": number}}))
        (partial / "number").write_text(str(number))
        if writes is not None:
            writes.append(number)

    return ensure_made(folder, "numbers", "about.json", {"number": number}, write_all)


def test_it_is_made_once_and_anew_for_another_recipe(tmp_path: Path) -> None:
    writes: list[int] = []
    folder = tmp_path / "data"
    (tmp_path / "data.partial-left-by-sigkill").mkdir()
    assert made(folder, 1, writes) == made(folder, 1, writes) == folder
    made(folder, 2, writes)
    assert writes == [1, 2] and (folder / "number").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    folder = made(tmp_path / "data", 1)

    def full(partial: Path) -> None:
        partial.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(TaskError, match=r"could not write the numbers \(No space left"):
        ensure_made(folder, "numbers", "about.json", {"number": 2}, full)
    assert (folder / "number").read_text() == "1"
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("text", ["", "[]", '{"other": 1}'])
def test_other_data_are_never_replaced(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "about.json").write_text(text)
    with pytest.raises(TaskError, match="something other than numbers"):
        made(folder, 1)
    assert (folder / "about.json").read_text() == text
