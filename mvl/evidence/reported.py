"""The papers' reported numbers, read from `data/paper_reported.csv`."""

from __future__ import annotations

import pandas as pd

from mvl.core.config import ROOT

PAPER_TABLE = ROOT / "data" / "paper_reported.csv"


def reported() -> pd.DataFrame:
    """`data/paper_reported.csv`: what the papers report, with source and confidence."""
    return pd.read_csv(PAPER_TABLE, dtype={"paper": str})


def paper_value(table: str, system: str, metric: str = "dice", paper: str = "P1") -> float:
    """One reported number.

    Raises:
        KeyError: the table has not exactly one such row; names what was asked for.
    """
    rows = reported().query(
        "paper == @paper and table == @table and system == @system and metric == @metric"
    )
    if len(rows) != 1:
        raise KeyError(
            f"{PAPER_TABLE}: {len(rows)} rows for {paper}, {table}, {system}, {metric}; one is"
            " needed"
        )
    return float(rows["value"].iloc[0])
