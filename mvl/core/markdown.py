"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MARKS = {"l": "---", "r": "---:"}
"Column aligned to the left, or to the right."


def markdown_table(head: Sequence[str], align: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table of these rows; `align` has an `l` or an `r` for each column."""
    marks = "|".join(MARKS[letter] for letter in align)
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{marks}|", *lines[1:]])
