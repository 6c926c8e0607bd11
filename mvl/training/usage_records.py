"""What a run recorded of the use of its block, read without the networks that measured it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mvl.core.columns import RUN_KEYS

FILE = "usage.csv"
"Where a run keeps its rows."


def read_usage(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's usage.csv, numbers as numbers; an empty size is nan. No file: no rows."""
    path = Path(run_dir) / FILE
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        for column in set(row) - {*RUN_KEYS, "intervention"}:
            row[column] = float(row[column] or "nan")
    return rows
