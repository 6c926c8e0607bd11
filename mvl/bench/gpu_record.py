"""`data/gpu.json`: what `make gpu` found, one line of JSON for each item and part, with its card;
and how the book shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvl.core import files
from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table

RECORD = ROOT / "data" / "gpu.json"
Line = dict[str, Any]
IDENTITY = ("card", "item", "part")
"What a line is of; a newer one takes the older one's place."
TITLES = {
    "facts": "The card",
    "attention": "Attention",
    "repeat": "Same bytes twice, and after an interruption",
    "agree": "Against the CPU",
    "steps": "A training step",
    "share": "Runs that share the card",
    "memory": "Out of memory",
    "evaluate": "`mvl evaluate` against `cases.csv`",
    "torchrun": "`torchrun` with one process",
}
"Items of `make gpu`, as numbered in `mvl/bench/gpu_checks.py`, and their headings in the book."


def read_lines(path: Path = RECORD) -> list[Line]:
    """Every line of the record; none where the file is absent."""
    return list(json.loads(path.read_text())) if path.is_file() else []


def keep_line(line: Line, path: Path = RECORD) -> None:
    """Put a line into the record in place of an older one of the same card, item and part; safe
    when several processes do so."""
    with files.waiting_lock(path.with_name(f".{path.name}.lock")):
        same = [line[key] for key in IDENTITY]
        lines = [old for old in read_lines(path) if [old[key] for key in IDENTITY] != same]
        texts = [json.dumps(one, sort_keys=True) for one in [*lines, line]]
        files.atomic_write(path, "[\n" + ",\n".join(texts) + "\n]\n")


def page(path: Path = RECORD) -> dict[str, str]:
    """What the book shows: a table for each card and item, or that no GPU has been measured yet."""
    lines = read_lines(path)
    cards = list(dict.fromkeys(line["card"] for line in lines))
    if not cards:
        return {"gpu": "No GPU has been measured yet: `data/gpu.json` is absent."}
    return {
        "gpu": "\n\n".join(
            _card(card, [line for line in lines if line["card"] == card]) for card in cards
        )
    }


def _card(card: str, lines: list[Line]) -> str:
    tables = [
        f"**{title}.**\n\n{_table([line for line in lines if line['item'] == item])}"
        for item, title in TITLES.items()
        if any(line["item"] == item for line in lines)
    ]
    return "\n\n".join([f"### {card}", *tables])


def _table(lines: list[Line]) -> str:
    """One row a line: its part, its state, and each of its facts in a column."""
    columns = list(dict.fromkeys(key for line in lines for key in line["facts"]))
    head = ["part", "state", *(column.replace("_", " ") for column in columns)]
    rows = [
        [
            line["part"] or "all",
            line["state"],
            *(_shown(line["facts"].get(column)) for column in columns),
        ]
        for line in lines
    ]
    return markdown_table(head, "l" * len(head), rows)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")
