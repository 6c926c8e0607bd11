"""Splits: ten disjoint blocks, nested subsets, and every kind of damage refused by name."""

from __future__ import annotations

import json

import pytest

from mvl.core.config import ROOT
from mvl.datasets.registry import MANIFESTS, find_task
from mvl.datasets.splits import (
    NUM_FOLDS,
    check_cases,
    load_split,
    make_split,
    read_split,
    select,
    split_path,
    write_split_file,
)
from mvl.datasets.task import TaskError

COMMITTED = ["Task04_Hippocampus", "phantoms"]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_split_covers_every_case_once_and_follows_from_the_rule(name):
    path = ROOT / "data" / "splits" / f"{name}.json"
    split, cases = read_split(path), find_task(name).num_cases
    everyone = sorted(case for block in split["blocks"] for case in block)
    assert len(everyone) == cases and {len(block) for block in split["blocks"]} == {cases // 10}
    assert make_split(name, everyone) == split
    assert (
        sorted(case for k in range(NUM_FOLDS) for case in select(split, k, 1.0, path).test)
        == everyone
    )


def test_committed_split_has_the_cases_of_the_manifest():
    split = read_split(ROOT / "data" / "splits" / "Task04_Hippocampus.json")
    files = json.loads((MANIFESTS / "Task04_Hippocampus.json").read_text())["files"]
    assert {
        f"{kind}/{case}.nii.gz"
        for block in split["blocks"]
        for case in block
        for kind in ("imagesTr", "labelsTr")
    } == set(files)


@pytest.mark.parametrize("name", COMMITTED)
@pytest.mark.parametrize("fold", range(NUM_FOLDS))
def test_roles_are_disjoint_and_subsets_are_nested(name, fold):
    path = ROOT / "data" / "splits" / f"{name}.json"
    split = read_split(path)
    tenth, third, whole = (select(split, fold, f, path) for f in (0.1, 0.3, 1.0))
    n = find_task(name).num_cases
    assert (len(whole.train), len(whole.val), len(whole.test)) == (
        n * 7 // 10,
        n * 2 // 10,
        n // 10,
    )
    assert len({*whole.train, *whole.val, *whole.test}) == n
    assert (
        whole.train[: len(third.train)] == third.train
        and third.train[: len(tenth.train)] == tenth.train
    )
    assert len(third.train) == round(0.3 * len(whole.train)) and len(tenth.train) == round(
        0.1 * len(whole.train)
    )
    assert tenth.test == whole.test == tuple(split["blocks"][fold]) and tenth.val == whole.val
    assert whole.val == tuple(split["blocks"][(fold + 1) % 10] + split["blocks"][(fold + 2) % 10])
    assert len({s.sha256 for s in (tenth, third, whole)}) == 3


def test_subsets_are_not_the_first_blocks():
    split = make_split("T", [f"c{i:03d}" for i in range(100)])
    tenth = select(split, 0, 0.2, ROOT).train
    assert len({k for k, block in enumerate(split["blocks"]) if set(block) & set(tenth)}) > 3


def test_order_of_case_names_does_not_matter_and_the_seed_does():
    cases = [f"c{i}" for i in range(30)]
    assert make_split("T", cases) == make_split("T", cases[::-1]) != make_split("T", cases, seed=1)


@pytest.mark.parametrize("cases", [["a"] * 10, [f"c{i}" for i in range(9)]])
def test_too_few_or_repeated_cases_are_refused(cases):
    with pytest.raises(TaskError, match="cannot be dealt"):
        make_split("T", cases)


def put(split, path, value):
    *keys, last = path
    for key in keys:
        split = split[key]
    split[last] = value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["blocks"].pop(), "9 blocks, expected 10"),
        (lambda s: s["folds"].pop(), "fold 9 is missing"),
        (
            lambda s: s["blocks"][3].append(s["blocks"][1][0]),
            r"case \w+ is in block 1 and again in block 3",
        ),
        (
            lambda s: s["blocks"][3].append(s["blocks"][3][0]),
            r"case \w+ is in block 3 and again in block 3",
        ),
        (
            lambda s: s["folds"][2]["train"].append(s["blocks"][2][0]),
            r"case \w+ is both trained on and held out in fold 2",
        ),
        (
            lambda s: s["folds"][2]["train"].append(s["folds"][2]["train"][0]),
            r"case \w+ is twice in the training list of fold 2",
        ),
        (
            lambda s: s["folds"][2]["train"].pop(),
            r"case \w+ and the training list of fold 2 do not belong together",
        ),
        (lambda s: put(s, ("folds", 4, "val"), [4, 5]), "fold 4 holds out blocks"),
        (lambda s: s.pop("folds"), "not a split file"),
    ],
)
def test_damage_is_refused_by_name(tmp_path, damage, message):
    split = make_split("T", [f"c{i}" for i in range(30)])
    damage(split)
    path = tmp_path / "T.json"
    path.write_text(json.dumps(split))
    with pytest.raises(TaskError, match=message) as caught:
        read_split(path)
    assert str(path) in str(caught.value)


def test_disk_and_split_must_hold_the_same_cases(tmp_path):
    split = make_split("T", [f"c{i}" for i in range(30)])
    with pytest.raises(TaskError, match="case extra is on disk but in no block"):
        check_cases(split, [*(f"c{i}" for i in range(30)), "extra"], tmp_path / "T.json")
    with pytest.raises(TaskError, match="case c7 is in the split but not on disk"):
        check_cases(split, [f"c{i}" for i in range(30) if i != 7], tmp_path / "T.json")


@pytest.mark.parametrize(
    ("fold", "fraction"), [(10, 1.0), (-1, 1.0), (0, 0.0), (0, 1.1), (0, float("nan"))]
)
def test_no_such_fold_or_fraction(fold, fraction, tmp_path):
    with pytest.raises(TaskError, match=r"no fold|not in \(0, 1\]"):
        select(make_split("T", [f"c{i}" for i in range(30)]), fold, fraction, tmp_path)


def test_tiny_fraction_keeps_one_case(tmp_path):
    assert len(select(make_split("T", [f"c{i}" for i in range(30)]), 0, 0.001, tmp_path).train) == 1


def test_split_of_another_task_is_written_once_beside_the_data_where_the_clone_is_read_only(
    toy, monkeypatch
):
    task, root = toy
    monkeypatch.setattr("mvl.datasets.splits.os.access", lambda *_: False)
    path = split_path(task, root)
    assert path == root / "splits" / "Toy.json"
    first = load_split(task, 0, 1.0, root)
    text = path.read_text()
    write_split_file("Toy", ["other"] * 3, path)
    assert path.read_text() == text and load_split(task, 0, 1.0, root) == first
    next((root / "Toy" / "imagesTr").iterdir()).unlink()
    with pytest.raises(TaskError, match="missing"):
        load_split(task, 0, 1.0, root)
