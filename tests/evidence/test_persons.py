"""Persons by the numbers of the files: pairs, likeness and effect, by hand and on the committed
records."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mvl.core import run_folder
from mvl.evidence import persons
from mvl.study.tables import read_cases


def test_two_neighbours_from_an_odd_number_are_one_person() -> None:
    assert [persons.person_of(f"hippocampus_{n:03d}") for n in (1, 2, 3, 4, 393, 394)] == [
        1,
        1,
        2,
        2,
        197,
        197,
    ]
    assert (
        persons.pairs(["hippocampus_001", "hippocampus_002", "hippocampus_003", "hippocampus_005"])
        == 1
    )
    with pytest.raises(ValueError, match="ends in its number"):
        persons.person_of("hippocampus")


def test_likeness_is_over_neighbours() -> None:
    rng = np.random.default_rng(0)
    of_person = rng.normal(size=60)
    values = pd.DataFrame(
        {
            "volume": np.repeat(of_person, 2) + rng.normal(0, 0.1, 120),
            "intensity": rng.normal(size=120),
        },
        index=range(1, 121),
    )
    found = persons.likeness(values)
    assert (found["one person"]["pairs"], found["two persons"]["pairs"]) == (60, 59)
    assert found["one person"]["volume"] > 0.95 and abs(found["two persons"]["volume"]) < 0.4
    assert abs(found["one person"]["intensity"]) < 0.4


def test_the_effect_is_that_of_the_records() -> None:
    found = persons.effect(read_cases("hippocampus", run_folder.records_dir()))
    assert (found["beside"], found["all"]) == (71, 130)
    assert (round(100 * found["with"], 2), round(100 * found["without"], 2)) == (-0.10, -0.14)
    text = persons.sentence()
    assert (
        "180 of the 260 scans form 90 pairs" in text
        and "170 persons" in text
        and "r = 0.91" in text
    )


def test_the_record_is_of_the_scans() -> None:
    known = pd.read_csv(persons.RECORD, index_col="scan")
    some = persons.measure("hippocampus_40")
    assert len(known) == 260 and len(some) == 40
    assert known.loc[some.index, ["volume", "intensity"]].equals(some)
    assert len({persons.person_of(f"hippocampus_{number}") for number in some.index}) == 40
