"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MARKS = {"l": "---", "r": "---:"}
"Column aligned to the left, or to the right."


def markdown_table(head: str | Sequence[str], align: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table of these rows; `align` has an `l` or an `r` for each column, and a head that
    is one text has bars between its names."""
    names = head if isinstance(head, str) else " | ".join(head)
    marks = "|".join(MARKS[letter] for letter in align)
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    return "\n".join([f"| {names} |", f"|{marks}|", *lines])
