"""Grouped splits: near duplicates never part, blocks are balanced in size and kind, prefixes
too."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.core.seeds import draw_seed
from mvl.datasets.registry import find_task
from mvl.datasets.split_groups import (
    KNOWN_RULE,
    PATIENT_RULE,
    RULE,
    deal,
    find_groups,
    kind_of,
    known_groups,
    patients,
    person_groups,
    rule_of,
    sequence_of,
    shared_stems,
    stated_folds,
    training_order,
    units,
)
from mvl.datasets.splits import make_split, read_split, select, split_file
from mvl.datasets.task import Case, TaskError
from mvl.datasets.task_data import MANIFESTS, open_task

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
    kinds = [kind_of(case) for case in ("benign_003", "normal_1", "patient_3", "benign_x_3", "x")]
    assert kinds == ["benign", "normal", "case", "case", "case"]
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
    data = open_task("Task02_Heart_half")
    vars(data)["cases"] = cases
    split = make_split("Task02_Heart_half", [case.case_id for case in cases], seed=1)
    (tmp_path / "heart.json").write_text(json.dumps(split))
    with pytest.raises(TaskError, match="la_005 and la_026 lie in different blocks"):
        split_file(data)


def like(**changes):
    """A task of the registry with other settings."""
    return dataclasses.replace(find_task("phantoms"), **changes)


def refused(function, *arguments) -> str:
    """The words with which a TaskError refuses."""
    with pytest.raises(TaskError) as caught:
        function(*arguments)
    return str(caught.value)


def test_what_the_registry_keeps_together_are_named_cases_and_frames_of_a_sequence():
    task = like(together=(("b", "a", "x"), ("d", "c"), ("e", "y")))
    assert known_groups(task, ["a", "b", "c", "d", "e"]) == [["a", "b"], ["c", "d"]]
    task = like(sequence_ends=(2, 3, 12))
    assert known_groups(task, ["12", "5", "3", "2", "1"]) == [["1", "2"], ["12", "5"]]
    assert [sequence_of(task, case) for case in ("1", "2", "3", "4", "12")] == [1, 1, 2, 3, 3]
    assert refused(sequence_of, task, "13") == (
        "phantoms: case 13 is no frame of its sequences (1 to 12); remove it from the data folder"
    )
    assert known_groups(find_task("phantoms"), ["1", "2"]) == []


def test_two_cases_of_a_person_have_numbers_2k_minus_1_and_2k():
    task = like(persons="pairs")
    cases = ["c_x_006", "c_x_003", "c_x_004", "c_x_001", "c_x_002", "c_x_007", "c_x_010"]
    assert person_groups(task, cases) == [["c_x_001", "c_x_002"], ["c_x_003", "c_x_004"]]
    assert refused(person_groups, like(), cases) == (
        "phantoms: its case names do not tell persons, so it has no split by person; set data.split"
        " to folds"
    )


def test_the_rule_says_where_groups_come_from():
    assert rule_of(like(together=(("a", "b"),))) == rule_of(like(sequence_ends=(3,))) == KNOWN_RULE
    assert rule_of(like(layout="busi")) == rule_of(like(layout="pairs")) == RULE
    assert rule_of(like()) == PATIENT_RULE


def test_groups_are_the_registrys_else_patients_joined_with_near_duplicates(tmp_path, monkeypatch):
    asked = []

    def duplicates(names, images, least):
        asked.append((names, [path.name for path in images], least))
        return [["a", "e"], ["c", "d"]]

    monkeypatch.setattr("mvl.datasets.duplicates.duplicate_groups", duplicates)
    cases = [Case(name, Path(f"{name}.png"), tmp_path) for name in "bacdefg"]
    pictures = like(layout="pairs", least_correlation=0.9)
    assert find_groups(pictures, cases, tmp_path) == [["a", "e"], ["c", "d"]]
    assert asked == [(list("bacdefg"), [f"{name}.png" for name in "bacdefg"], 0.9)]
    assert find_groups(like(), cases, tmp_path) == []
    stated = {"b": "2", "a": "2", "f": "1", "g": "1", "c": "3"}
    (tmp_path / "dataset.json").write_text(json.dumps({"patients": stated}))
    assert find_groups(like(), cases, tmp_path) == [["a", "b"], ["f", "g"]]
    joined = [["a", "b", "e"], ["c", "d"], ["f", "g"]]
    for layout in ("pairs", "busi"):
        assert find_groups(like(layout=layout), cases, tmp_path) == joined
    known = like(together=(("c", "a"),), layout="pairs")
    assert find_groups(known, cases, tmp_path) == [["a", "c"]]
    frames = [Case(name, tmp_path, tmp_path) for name in ("1", "2", "3")]
    assert find_groups(like(sequence_ends=(2, 3)), frames, tmp_path) == [["1", "2"]]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_gives_each_case_its_patient(tmp_path, mark, encoding):
    """Whatever a spreadsheet writes between fields, around them and before the first; a comma in a
    field is no mark where another one is used."""
    second = "Ä;2" if mark == "," else "Ä,2"
    rows = [("Patient ", "CASE", "X"), ("p 1", "a.nii.gz"), ("", ""), (f" {second}", "b", "")]
    text = "\r\n".join(mark.join(row) for row in rows)
    (tmp_path / "groups.csv").write_text(text + "\r\n\r\n", encoding=encoding)
    (tmp_path / "dataset.json").write_text('{"patients": {"a": "other"}}')
    assert patients(tmp_path, ["a", "b"]) == {"a": "p 1", "b": second}


def test_a_case_and_a_table_may_write_an_accent_in_two_ways(tmp_path):
    (tmp_path / "groups.csv").write_text("case,patient\nu\u0308,1\n", encoding="utf-8")
    assert patients(tmp_path, ["ü"]) == {"ü": "1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "case,patient\n",
        "case,person\na,1\n",
        "name,patient\na,1\n",
        "case,patient\na,\n",
        "case,patient\n,1\na,1\n",
        "case,patient\na,1\na,1\n",
        "case,patient\na\n",
    ],
)
def test_a_table_without_a_patient_for_each_case_is_refused(tmp_path, text):
    (tmp_path / "groups.csv").write_text(text)
    assert refused(patients, tmp_path, ["a"]) == (
        f"{tmp_path / 'groups.csv'}: needs the columns case and patient, with both filled and each"
        " case once"
    )


def test_a_table_of_other_cases_or_in_another_encoding_is_refused(tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("case,patient\na,1\nc,1\n")
    assert refused(patients, tmp_path, ["a", "b"]) == (
        f"{table}: b is in the table or among the cases, but not in both (2 such); give each case"
        " one row"
    )
    table.write_bytes("case,patient\nä,1\n".encode("latin-1"))
    message = f"{table}: is not in UTF-8; save it as CSV in UTF-8"
    assert refused(patients, tmp_path, ["ä"]) == message


def test_patients_are_a_mapping_or_a_pattern(tmp_path):
    path = tmp_path / "dataset.json"
    assert patients(tmp_path, ["a"]) == {}

    def describe(stated) -> None:
        path.write_text(json.dumps({"patients": stated}), encoding="utf-8-sig")

    path.write_text("{}")
    assert patients(tmp_path, ["a"]) == {}
    describe({"a_1.nii.gz": "ä", "u\u0308": "ä"})
    assert patients(tmp_path, ["a_1", "ü", "b"]) == {"a_1": "ä", "ü": "ä"}
    describe({"a_1": "ä", "gone": "b", "a_2_0000": "ä"})
    assert refused(patients, tmp_path, ["a_1", "a_2"]) == (
        f"{path}: `patients` names a_2_0000, which is no case (2 such); write the cases by their"
        " names, e.g. a_1, or take it out"
    )
    for pattern in ("(.+)_([0-9])", "(.+)_[0-9]"):
        describe(pattern)
        assert patients(tmp_path, ["a_1", "b_b_2"]) == {"a_1": "a", "b_b_2": "b_b"}
    for stated in (["a"], 3, {"a": 1}, {"a": ""}):
        describe(stated)
        assert refused(patients, tmp_path, ["a"]) == (
            f"{path}: `patients` is neither a mapping of cases to patients nor a pattern; write"
            ' e.g. "patients": {"a_0": "a", "a_1": "a"}, or "patients": "case_(.+)_[0-9]+"'
        )
    describe("(")
    assert refused(patients, tmp_path, ["a"]).startswith(
        f"{path}: `patients` is no regular expression (missing )"
    )
    for pattern, case in ((".+", "a_1"), ("(.+)_1", "a_10"), ("a(.*)_1", "a_1")):
        describe(pattern)
        assert refused(patients, tmp_path, [case]) == (
            f"{path}: `patients` is {pattern!r}, which gives case {case} no patient; write a"
            " pattern that fits every case's whole name, its first group the patient"
        )


def test_beginnings_that_several_names_share_and_that_hold_a_number():
    assert shared_stems(["p2_t1", "p2_t2", "p1_t1", "p1_t2", "p3_t1", "q_1", "q_2"]) == ["p1", "p2"]
    assert shared_stems(["p1-x-1", "p1-x-2", "z"]) == ["p1-x"]
    assert shared_stems(["p1_a-1", "p1_a-2", "p1_b-1", "r"]) == ["p1"]
    assert shared_stems(["case1_01", "case1_02"]) == shared_stems(["a_1", "a_2", "b"]) == []


def test_folds_are_a_whole_number_between_the_fewest_and_the_most(tmp_path):
    path = tmp_path / "dataset.json"
    assert stated_folds(tmp_path, 10, 4) == 10
    for stated, folds in (({}, 10), ({"folds": 4}, 4), ({"folds": 7}, 7), ({"folds": 10}, 10)):
        path.write_text(json.dumps(stated))
        assert stated_folds(tmp_path, 10, 4) == folds
    for odd in (3, 11, True, "5", 5.0, None):
        path.write_text(json.dumps({"folds": odd}))
        message = f"{path}: folds is {odd!r}; write a number from 4 to 10"
        assert refused(stated_folds, tmp_path, 10, 4) == message
    path.write_text(json.dumps({"folds": True}))
    assert "folds is True" in refused(stated_folds, tmp_path, 10, 1)


KINDS = ["benign"] * 17 + ["malignant"] * 9 + ["normal"] * 5 + ["other"] * 3
CASES = [f"{kind}_{i:02d}" for i, kind in enumerate(KINDS)]
GROUPS = [CASES[:4], CASES[15:19], CASES[20:22], CASES[30:33]]


def parts(unit):
    """How many cases of each kind a unit holds."""
    return Counter("case" if case.startswith("other") else case[:-3] for case in unit)


@pytest.mark.parametrize("blocks", [4, 7])
@pytest.mark.parametrize("seed", [0, 3])
def test_whole_groups_are_dealt_by_the_rule(blocks, seed):
    """The rule once more, with exact shares: larger units first, each to the block with the
    smallest share of its kinds, then the fewest cases, then the first."""
    all_units = units(CASES, GROUPS)
    assert sorted(case for unit in all_units for case in unit) == sorted(CASES)
    assert all_units == sorted(all_units) and set(map(tuple, GROUPS)) < set(all_units)
    total, out = parts(CASES), [[] for _ in range(blocks)]
    left = list(all_units)
    while left:
        unit = min(left, key=lambda u: (-len(u), draw_seed(seed, "blocks", "T", u[0])))
        left.remove(unit)
        shares = []
        for block in out:
            held, weight = parts(block), parts(unit)
            share = sum(Fraction(weight[k] * held[k], total[k]) for k in weight)
            shares.append((share, len(block)))
        out[shares.index(min(shares))].extend(unit)
    assert deal("T", all_units, seed, blocks) == [sorted(block) for block in out]


@pytest.mark.parametrize(("fold", "seed"), [(0, 0), (5, 0), (5, 3)])
def test_the_training_list_interleaves_the_kinds_by_the_rule(fold, seed):
    """A unit stands where the middle of its cases lies among those of its commonest kind."""
    all_units, members = units(CASES, GROUPS), CASES[2:4] + CASES[:2] + CASES[8:]
    chosen = [unit for unit in all_units if unit[0] in members]
    chosen.sort(key=lambda unit: draw_seed(seed, "train", "T", fold, unit[0]))
    places = []
    for i, unit in enumerate(chosen):
        (kind, _), *_ = parts(unit).most_common()
        before = sum(len(u) for u in chosen[:i] if parts(u).most_common()[0][0] == kind)
        places.append(((before + len(unit) / 2) / parts(members)[kind], i, unit))
    wanted = [case for _, _, unit in sorted(places) for case in unit]
    assert training_order("T", members, all_units, fold, seed) == wanted
    assert sorted(wanted) == sorted(members)
