"""The papers' reported numbers, read from `data/paper_reported.csv`."""

from __future__ import annotations

import pandas as pd

from mvl.core.config import ROOT

PAPER_TABLE = ROOT / "data" / "paper_reported.csv"


def reported() -> pd.DataFrame:
    """Read `data/paper_reported.csv`: what the papers report, with source and confidence."""
    return pd.read_csv(PAPER_TABLE, dtype={"paper": str})


def paper_value(table: str, system: str, metric: str = "dice", paper: str = "P1") -> float:
    """Return one reported number.

    Raises:
        KeyError: the table has not exactly one such row; names what was asked for.
    """
    values = paper_values(paper=paper, table=table, system=system, metric=metric)
    if len(values) != 1:
        raise KeyError(
            f"{PAPER_TABLE}: {len(values)} rows for {paper}, {table}, {system}, {metric}; one is"
            " needed"
        )
    return values[0]


def paper_values(**wanted: str) -> list[float]:
    """Return the reported numbers whose columns are as given, in the order of the file."""
    rows = reported()
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows["value"].astype(float).tolist()
