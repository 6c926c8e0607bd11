"""Grouped splits: near duplicates never part, blocks are balanced in size and kind, prefixes
too."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.datasets.registry import MANIFESTS, find_task
from mvl.datasets.split_groups import (
    KNOWN_RULE,
    RULE,
    find_groups,
    kind_of,
    known_groups,
    rule_of,
    sequence_of,
    training_order,
    units,
)
from mvl.datasets.splits import make_split, read_split, select, split_file
from mvl.datasets.task import Case, TaskError

PATH = ROOT / "data" / "splits" / "BUSI.json"


@pytest.fixture(scope="module")
def busi():
    return read_split(PATH)


def test_committed_split_of_busi_follows_from_the_rule_and_the_manifest(busi):
    manifest = json.loads((MANIFESTS / "BUSI.json").read_text())
    everyone = sorted(case for block in busi["blocks"] for case in block)
    assert len(everyone) == 780 and busi["groups"] == manifest["groups"]
    images = {name for name in manifest["files"] if "_mask" not in name}
    assert {
        f"{kind_of(case)}/{kind_of(case)} ({int(case[-3:])}).png" for case in everyone
    } == images
    assert make_split("BUSI", everyone, groups=busi["groups"]) == busi


def test_groups_of_busi_lie_in_one_block_and_blocks_are_alike(busi):
    home = {case: k for k, block in enumerate(busi["blocks"]) for case in block}
    assert all(len({home[case] for case in group}) == 1 < len(group) for group in busi["groups"])
    assert (len(busi["groups"]), sum(map(len, busi["groups"]))) == (146, 336)
    for block in busi["blocks"]:
        kinds = Counter(map(kind_of, block))
        assert (
            len(block) == 78
            and kinds["benign"] in (43, 44)
            and kinds["malignant"] == 21
            and kinds["normal"] in (13, 14)
        )


@pytest.mark.parametrize("fold", range(10))
def test_prefixes_hold_the_kinds_in_proportion_and_cut_at_most_one_group(busi, fold):
    parts = [select(busi, fold, fraction, PATH) for fraction in (0.1, 0.3, 1.0)]
    group = {case: i for i, cases in enumerate(busi["groups"]) for case in cases}
    for part in parts:
        kinds, n = Counter(map(kind_of, part.train)), len(part.train)
        assert all(
            abs(kinds[kind] - n * share) <= 4
            for kind, share in (
                ("benign", 437 / 780),
                ("malignant", 210 / 780),
                ("normal", 133 / 780),
            )
        )
        rest = set(parts[-1].train) - set(part.train)
        assert (
            len(
                {group.get(case) for case in part.train}
                & {group.get(case) for case in rest} - {None}
            )
            <= 1
        )
    held = {group.get(case) for case in (*parts[-1].val, *parts[-1].test)} - {None}
    assert not held & {group.get(case) for case in parts[-1].train}


def test_a_split_that_parts_a_group_is_refused(tmp_path):
    cases = [f"c{i:02d}" for i in range(30)]
    split = make_split("T", cases, groups=[["c01", "c02", "c03"]])
    home = next(k for k, block in enumerate(split["blocks"]) if "c01" in block)
    assert {"c01", "c02", "c03"} <= set(split["blocks"][home])
    split["blocks"][home].remove("c01")
    split["blocks"][(home + 1) % 10].append("c01")
    (tmp_path / "T.json").write_text(json.dumps(split))
    with pytest.raises(TaskError, match="near duplicates c01 and c03 lie in different blocks"):
        read_split(tmp_path / "T.json")


def test_units_order_and_kinds():
    all_units = units(["a", "b", "c", "d"], [["c", "a"]])
    assert all_units == [("a", "c"), ("b",), ("d",)]
    order = training_order("T", ["a", "c", "d"], all_units, 0, 0)
    assert sorted(order) == ["a", "c", "d"] and abs(order.index("a") - order.index("c")) == 1
    assert [kind_of(case) for case in ("benign_003", "patient_3", "x")] == [
        "benign",
        "case",
        "case",
    ]
    assert find_groups(find_task("hippocampus"), [], Path("nowhere")) == []


REDUCED = [
    "Task02_Heart_half",
    "LeftAtrium2018_half",
    "ISIC2017_256",
    "PH2_256",
    "Kvasir_SEG_256",
    "CVC_ClinicDB_256",
]


@pytest.mark.parametrize("name", REDUCED)
def test_committed_splits_of_reduced_copies_follow_from_rule_and_manifest(name):
    task = find_task(name)
    split = read_split(ROOT / "data" / "splits" / f"{name}.json")
    everyone = sorted(case for block in split["blocks"] for case in block)
    files = json.loads((MANIFESTS / f"{name}.json").read_text())["files"]
    assert {Path(file).name.split(".")[0] for file in files} == set(everyone)
    assert len(everyone) == task.num_cases and len(files) == 2 * task.num_cases
    if name == "LeftAtrium2018_half":
        assert make_split(name, everyone) == split
        return
    groups = known_groups(task, everyone) or split["groups"]
    assert make_split(name, everyone, groups=groups, rule=rule_of(task)) == split
    assert split["rule"] == (KNOWN_RULE if task.together or task.sequence_ends else RULE)


def test_the_doubled_heart_lies_in_one_block():
    split = read_split(ROOT / "data" / "splits" / "Task02_Heart_half.json")
    assert [block for block in split["blocks"] if "la_005" in block] == [["la_005", "la_026"]]


def test_no_sequence_of_frames_lies_in_two_blocks():
    task = find_task("CVC_ClinicDB_256")
    ends = [sequence_of(task, case) for case in ("1", "25", "26", "205", "206", "592", "612")]
    assert ends == [1, 1, 2, 10, 11, 29, 29] and len(task.sequence_ends) == 29
    homes: dict[int, set[int]] = {}
    for k, block in enumerate(
        read_split(ROOT / "data" / "splits" / "CVC_ClinicDB_256.json")["blocks"]
    ):
        for case in block:
            homes.setdefault(sequence_of(task, case), set()).add(k)
    assert len(homes) == 29 and all(len(blocks) == 1 for blocks in homes.values())
    for case in ("613", "0", "la_005"):
        with pytest.raises(TaskError, match="is no frame of its sequences"):
            sequence_of(task, case)


def test_a_split_that_parts_what_the_registry_keeps_together_is_refused(tmp_path, monkeypatch):
    """A file without its groups passes every other check."""
    monkeypatch.setattr("mvl.datasets.splits.split_path", lambda *_: tmp_path / "heart.json")
    cases = [
        Case(name, tmp_path, tmp_path)
        for name in ("la_005", "la_026", *(f"la_1{i:02d}" for i in range(18)))
    ]
    monkeypatch.setattr("mvl.datasets.splits.list_cases", lambda *_: cases)
    split = make_split("Task02_Heart_half", [case.case_id for case in cases], seed=1)
    (tmp_path / "heart.json").write_text(json.dumps(split))
    with pytest.raises(TaskError, match="la_005 and la_026 lie in different blocks"):
        split_file(find_task("Task02_Heart_half"))
