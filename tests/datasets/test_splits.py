"""Splits: ten disjoint blocks, nested subsets, and every kind of damage refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest

from mvl.core.config import ROOT, Config, DataConfig
from mvl.core.seeds import draw_seed
from mvl.datasets import split_groups, splits
from mvl.datasets.registry import find_task
from mvl.datasets.splits import (
    NUM_FOLDS,
    RULE,
    Split,
    check_cases,
    load_split,
    make_split,
    path_beside_runs,
    read_split,
    run_split,
    select,
    split_file,
    split_name,
    split_path,
    uneven,
    write_split_file,
)
from mvl.datasets.task import OWN, Case, TaskError
from mvl.datasets.task_data import MANIFESTS, TaskData, open_task

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


def refused(function, *arguments, **named) -> str:
    """The words with which a TaskError refuses."""
    with pytest.raises(TaskError) as caught:
        function(*arguments, **named)
    return str(caught.value)


def sha256(*parts) -> str:
    """Of a JSON list."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@pytest.mark.parametrize(("cases", "distinct"), [(["a"] * 10, 1), ([f"c{i}" for i in range(9)], 9)])
def test_too_few_or_repeated_cases_are_refused(cases, distinct):
    assert refused(make_split, "T", cases) == (
        f"T: {len(cases)} cases ({distinct} distinct) cannot be dealt to 10 blocks; add cases until"
        " there are 10, each under one name"
    )
    repeated = [*(f"c{i}" for i in range(20)), "c0"]
    assert "21 cases (20 distinct)" in refused(make_split, "T", repeated)


@pytest.mark.parametrize(("count", "num_folds"), [(10, 10), (33, 10), (5, 5), (23, 5)])
@pytest.mark.parametrize("seed", [0, 4])
def test_the_deal_by_the_rule(count, num_folds, seed):
    """Cases ordered by their draw are dealt in turn; a fold's training list has an order of its
    own."""
    cases = [f"c{i}" for i in range(count)]
    order = sorted(cases, key=lambda case: draw_seed(seed, "blocks", "T", case))
    blocks = [[] for _ in range(num_folds)]
    for i, case in enumerate(order):
        blocks[i % num_folds].append(case)
    folds = []
    for fold in range(num_folds):
        val = [(fold + 1) % num_folds, (fold + 2) % num_folds]
        train = [c for k in range(num_folds) if k not in (fold, *val) for c in blocks[k]]
        train.sort(key=lambda case: draw_seed(seed, "train", "T", fold, case))
        folds.append({"test": fold, "val": val, "train": train})
    wanted = {"task": "T", "seed": seed, "rule": RULE, "folds": folds}
    wanted["blocks"] = [sorted(block) for block in blocks]
    if num_folds != 10:
        wanted["num_folds"] = num_folds
    assert make_split("T", cases, seed, num_folds=num_folds) == wanted
    if (seed, num_folds) == (0, 10):
        assert make_split("T", cases) == wanted


def test_the_deal_of_groups_by_the_rule():
    cases, groups = [f"c{i:02d}" for i in range(23)], [["c01", "c02", "c03"], ["c07", "c09"]]
    units = split_groups.units(cases, groups)
    blocks = split_groups.deal("T", units, 2, 5)
    made = make_split("T", cases, 2, groups, "as stated", 5)
    folds = []
    for fold in range(5):
        out = (fold, (fold + 1) % 5, (fold + 2) % 5)
        members = [case for k in range(5) if k not in out for case in blocks[k]]
        train = split_groups.training_order("T", members, units, fold, 2)
        folds.append({"test": fold, "val": list(out[1:]), "train": train})
    head = {"task": "T", "seed": 2, "num_folds": 5, "rule": "as stated"}
    assert made == {**head, "groups": groups, "blocks": blocks, "folds": folds}
    none = make_split("T", cases, groups=[])
    assert (none["groups"], none["rule"], none["seed"]) == ([], split_groups.RULE, 0)
    assert "num_folds" not in none and len(none["blocks"]) == 10


def test_a_block_is_uneven_that_is_empty_or_holds_more_than_three_shares_and_one_case():
    def of(*sizes):
        return [["c"] * size for size in sizes]

    assert uneven(of(0, 1, 1)) and not uneven(of(1, 2)) and not uneven(of(3, 3))
    assert not uneven(of(1, 1, 1, 13)) and uneven(of(1, 1, 1, 14))


def test_groups_too_few_or_too_large_are_refused_with_what_is_possible():
    cases = [f"c{i:02d}" for i in range(24)]
    seven = [cases[k : k + 4] for k in range(0, 12, 4)]
    seven += [cases[k : k + 3] for k in range(12, 24, 3)]
    assert refused(make_split, "T", cases, groups=seven) == (
        "T: 24 cases in 7 groups cannot be dealt evenly to 10 blocks: they would hold 4, 4, 4, 3,"
        " 3, 3, 3, 0, 0, 0 cases, the largest group (c00 ... c03) has 4; 7 folds are possible:"
        ' write "folds": 7 into the dataset.json of your own data, or add cases of other patients'
    )
    four = [cases[k : k + 6] for k in range(0, 24, 6)]
    assert "6; 4 folds are possible: write" in refused(make_split, "T", cases, groups=four)
    for number in (9, 8):
        groups = [cases[k::number] for k in range(number)]
        assert f"; {number} folds are possible" in refused(make_split, "T", cases, groups=groups)
    three = [cases[:10], cases[10:18], cases[18:]]
    assert refused(make_split, "T", cases, groups=three, num_folds=5) == (
        "T: 24 cases in 3 groups cannot be dealt evenly to 5 blocks: they would hold 10, 8, 6, 0, 0"
        " cases, the largest group (c00 ... c09) has 10; not even 4 folds are possible: add cases"
        " of other patients, or state in groups.csv (columns case, patient) which cases belong"
        " together"
    )


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


def test_no_such_fold_or_fraction():
    split, path = make_split("T", [f"c{i}" for i in range(30)]), Path("T.json")
    for fold in (10, -1):
        message = f"T.json: no fold {fold}; folds are 0-9"
        assert refused(select, split, fold, 1.0, path) == message
    for fraction in (0.0, 1.1, -0.1, float("nan")):
        message = f"T.json: fraction {fraction} is not in (0, 1]"
        assert refused(select, split, 0, fraction, path) == message


def test_the_lists_of_a_fold_and_their_digest():
    split = make_split("T", [f"c{i:02d}" for i in range(33)])
    blocks, train = split["blocks"], split["folds"][8]["train"]
    for fraction in (0.1, 0.37, 1.0):
        part = tuple(train[: round(fraction * len(train))])
        val, test = (*blocks[9], *blocks[0]), tuple(blocks[8])
        wanted = Split(part, val, test, sha256("T", part, val, test))
        assert select(split, 8, fraction, Path("T.json")) == wanted


@pytest.mark.parametrize(
    ("empty", "side"),
    [((0, 3, 4, 5), "trains on"), ((2, 3), "validates on"), ((1,), "tests")],
)
def test_a_fold_with_nothing_on_one_side_is_refused(empty, side):
    blocks = [[] if k in empty else [f"c{k}"] for k in range(6)]
    train = [case for k in (0, 4, 5) for case in blocks[k]]
    split = {"task": "T", "blocks": blocks, "folds": [{}, {"test": 1, "val": [2, 3]}]}
    split["folds"][1]["train"] = train
    sizes = ", ".join(str(len(block)) for block in blocks)
    assert refused(select, split, 1, 1.0, Path("T.json")) == (
        f"T.json: fold 1 {side} no case (its blocks hold {sizes}); take another fold, or, for your"
        " own data, delete this file to deal anew"
    )


def test_tiny_fraction_keeps_one_case(tmp_path):
    assert len(select(make_split("T", [f"c{i}" for i in range(30)]), 0, 0.001, tmp_path).train) == 1


def test_split_of_another_task_is_written_once_beside_the_data_where_the_clone_is_read_only(
    toy, monkeypatch
):
    task, root = toy
    monkeypatch.setattr("mvl.datasets.splits.os.access", lambda *_: False)
    path = split_path(TaskData(task, root))
    assert path == root / "splits" / "Toy.json"
    first = load_split(TaskData(task, root), 0, 1.0)
    text = path.read_text()
    write_split_file("Toy", ["other"] * 3, path)
    assert path.read_text() == text and load_split(TaskData(task, root), 0, 1.0) == first
    next((root / "Toy" / "imagesTr").iterdir()).unlink()
    with pytest.raises(TaskError, match="missing"):
        load_split(TaskData(task, root), 0, 1.0)


def test_a_run_takes_the_split_that_its_config_names(monkeypatch):
    asked, split = [], Split((), (), (), "")
    monkeypatch.setattr(splits, "load_split", lambda *given: asked.append(given) or split)
    here, there = open_task("phantoms"), open_task("phantoms", Path("there"))
    config = Config(fold=3, fraction=0.3, data=DataConfig(split="persons"))
    assert run_split(config, there) is split and run_split(Config(), here) is split
    assert asked == [(there, 3, 0.3, "persons"), (here, 0, 1.0, "folds")]


def test_slices_lie_where_their_volumes_do(monkeypatch, tmp_path):
    """The split is that of the volumes; each list holds their slices in order."""
    volumes = [f"v_z_{i}" for i in range(12)]
    names = [f"{volume}_z{z:03d}" for z in (0, 7) for volume in volumes]
    task = dataclasses.replace(find_task("phantoms"), name="Toy_slices", layout="slices")
    (tmp_path / "Toy.json").write_text(json.dumps(make_split("Toy", volumes)))
    asked = []

    def file_of(data, kind) -> Path:
        asked.append((data.task.layout, data.data_dir, kind))
        return tmp_path / "Toy.json"

    monkeypatch.setattr(splits, "split_file", file_of)
    data = TaskData(task, tmp_path)
    vars(data)["cases"] = [Case(name, tmp_path, tmp_path) for name in names]
    found = load_split(data, 2, 0.5, "persons")
    whole = select(make_split("Toy", volumes), 2, 0.5, tmp_path)
    lists = [
        tuple(f"{volume}_z{z:03d}" for volume in part for z in (0, 7))
        for part in (whole.train, whole.val, whole.test)
    ]
    assert found == Split(*lists, sha256("Toy_slices", *lists))
    assert asked == [("decathlon", tmp_path, "persons")]
    load_split(data, 2, 0.5)
    assert asked[1] == ("decathlon", tmp_path, "folds")
    assert refused(load_split, data, 10, 0.5).startswith(f"{tmp_path / 'Toy.json'}: no fold 10")


def test_where_a_split_lies(tmp_path, monkeypatch):
    """In the clone; beside your own data; beside them too where the clone has none and is read
    only; beside the runs where it was written there."""
    ours, own = find_task("phantoms"), dataclasses.replace(find_task("phantoms"), licence=OWN)
    unknown = dataclasses.replace(ours, name="Unknown")
    assert (split_name("T"), split_name("T", "persons"), split_name("T", "folds")) == (
        "data/splits/T.json",
        "data/splits/T_persons.json",
        "data/splits/T.json",
    )
    assert split_path(TaskData(ours, tmp_path)) == ROOT / "data/splits/phantoms.json"
    assert (
        split_path(TaskData(unknown, tmp_path), "persons")
        == ROOT / "data/splits/Unknown_persons.json"
    )
    assert split_path(TaskData(own, tmp_path)) == tmp_path / "splits" / "phantoms.json"
    assert (
        split_path(TaskData(own, tmp_path), "persons")
        == tmp_path / "splits" / "phantoms_persons.json"
    )
    monkeypatch.setenv("MVL_DATA", str(tmp_path / "data"))
    assert split_path(TaskData(own)) == tmp_path / "data" / "splits" / "phantoms.json"

    asked = []

    def access(path, mode) -> bool:
        asked.append((Path(path), mode))
        return False

    monkeypatch.setattr(splits.os, "access", access)
    assert split_path(TaskData(ours, tmp_path)) == ROOT / "data/splits/phantoms.json"
    beside = tmp_path / "splits" / "Unknown.json"
    assert split_path(TaskData(unknown, tmp_path)) == beside
    assert asked == [(ROOT / "data/splits", os.W_OK)] * 2
    monkeypatch.setattr(splits, "default_results_dir", lambda: tmp_path / "runs")
    aside = path_beside_runs(beside)
    digest = hashlib.sha256(str(beside).encode()).hexdigest()[:8]
    assert aside == tmp_path / "runs" / "splits" / f"Unknown-{digest}.json"
    aside.parent.mkdir(parents=True)
    aside.touch()
    assert split_path(TaskData(unknown, tmp_path)) == aside
    beside.parent.mkdir()
    beside.touch()
    assert split_path(TaskData(unknown, tmp_path)) == beside
    monkeypatch.chdir(tmp_path)
    assert path_beside_runs(Path("splits/Unknown.json")) == aside
    monkeypatch.setattr(splits, "ROOT", tmp_path / "bare")
    asked.clear()
    split_path(TaskData(unknown, tmp_path))
    assert asked == [(tmp_path / "bare", os.W_OK)]


@pytest.fixture
def dealt(tmp_path):
    """A function that deals a task of these settings and cases, in a folder of its own."""

    def deal(cases, described=None, kind="folds", **changes) -> Path:
        folder = tmp_path / "data" / "Mine"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(described or {}))
        listed = [Case(name, tmp_path, tmp_path) for name in cases]
        settings = {"name": "Mine", "licence": OWN, **changes}
        task = dataclasses.replace(find_task("phantoms"), **settings)
        data = TaskData(task, tmp_path / "data")
        vars(data).update(cases=listed, folder=folder)
        return split_file(data, kind)

    return deal


def test_a_split_is_dealt_by_what_is_known_of_the_cases(dealt, tmp_path, capsys, monkeypatch):
    plain = [f"c{i}" for i in range(12)]
    path = dealt(plain)
    assert path == tmp_path / "data" / "splits" / "Mine.json"
    assert json.loads(path.read_text()) == make_split("Mine", plain)
    path.unlink()
    dealt(plain, {"folds": 5})
    assert json.loads(path.read_text()) == make_split("Mine", plain, num_folds=5)
    monkeypatch.setattr(splits, "split_path", lambda *_: path)
    path.unlink()
    dealt(plain, {"folds": 5}, licence="MIT")
    assert json.loads(path.read_text()) == make_split("Mine", plain)
    monkeypatch.undo()
    path.unlink()
    dealt(plain, {"patients": {"c1": "p", "c2": "p"}, "folds": 4})
    rule = split_groups.PATIENT_RULE
    wanted = make_split("Mine", plain, groups=[["c1", "c2"]], rule=rule, num_folds=4)
    assert json.loads(path.read_text()) == wanted
    path.unlink()
    dealt(plain, together=(("c3", "c4"),))
    known = split_groups.KNOWN_RULE
    wanted = make_split("Mine", plain, groups=[["c3", "c4"]], rule=known)
    assert json.loads(path.read_text()) == wanted
    numbered = [f"c_{i:03d}" for i in range(1, 25)]
    persons = dealt(numbered, kind="persons", persons="pairs")
    pairs = [numbered[k : k + 2] for k in range(0, 24, 2)]
    assert persons == path.with_name("Mine_persons.json")
    wanted = make_split("Mine", numbered, groups=pairs, rule=split_groups.PERSON_RULE)
    assert json.loads(persons.read_text()) == wanted
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("layout", ["pairs", "busi"])
def test_pictures_without_near_duplicates_have_groups_none_the_less(dealt, layout, monkeypatch):
    monkeypatch.setattr("mvl.datasets.duplicates.duplicate_groups", lambda *_: [])
    plain = [f"c{i}" for i in range(12)]
    wanted = make_split("Mine", plain, groups=[], rule=split_groups.RULE)
    assert json.loads(dealt(plain, layout=layout).read_text()) == wanted


def test_names_that_look_like_patients_are_told_of_unless_patients_are_stated(
    dealt, tmp_path, capsys
):
    names = [f"p{k}_t{t}" for k in range(6) for t in range(2)]
    path = dealt(names)
    assert capsys.readouterr().err == (
        f"{tmp_path / 'data' / 'Mine'}: 6 beginnings of names are shared by several cases (e.g."
        " p0); if these are of one patient, state it (see `patients` in the book, Your own data)"
        f" and delete {path}\n"
    )
    dealt(names)
    path.unlink()
    dealt(names, {"patients": dict.fromkeys(names[:2], "p0")})
    assert capsys.readouterr().err == ""


def test_a_file_that_no_longer_fits_the_cases_or_what_belongs_together_is_refused(dealt):
    numbered = [f"c_{i:03d}" for i in range(1, 25)]
    path = dealt(numbered)
    words = refused(dealt, [*numbered, "c_025"])
    assert words.startswith(f"{path}: case c_025 is on disk but in no block")
    assert "c_001 and c_002 lie in" in refused(dealt, numbered, together=(("c_001", "c_002"),))
    path.with_name("Mine_persons.json").write_text(path.read_text())
    words = refused(dealt, numbered, kind="persons", persons="pairs")
    assert words.startswith(f"{path.with_name('Mine_persons.json')}: near duplicates c_0")
    dealt(numbered, persons="pairs")


def test_a_split_that_the_data_folder_refuses_lies_with_the_runs(dealt, tmp_path, monkeypatch):
    write, refusals = splits.write_split_file, []

    def nowhere(task_name, case_ids, path, **named) -> Path:
        if path in refusals:
            raise PermissionError(path)
        return write(task_name, case_ids, path, **named)

    monkeypatch.setattr(splits, "write_split_file", nowhere)
    monkeypatch.setattr(splits, "default_results_dir", lambda: tmp_path / "runs")
    beside = tmp_path / "data" / "splits" / "Mine.json"
    refusals.append(beside)
    plain = [f"c{i}" for i in range(12)]
    stated = {"patients": {"c1": "p", "c2": "p"}, "folds": 5}
    found = dealt(plain, stated)
    rule = split_groups.PATIENT_RULE
    wanted = make_split("Mine", plain, groups=[["c1", "c2"]], rule=rule, num_folds=5)
    assert found == path_beside_runs(beside) and json.loads(found.read_text()) == wanted
    found.unlink()
    refusals.append(found)
    monkeypatch.setattr(splits, "split_path", lambda *_: found)
    monkeypatch.setattr(splits, "path_beside_runs", lambda *_: found)
    with pytest.raises(PermissionError):
        dealt(plain, stated)


def test_a_split_file_is_made_by_its_arguments_and_its_folder_with_it(tmp_path):
    cases, path = [f"c{i}" for i in range(12)], tmp_path / "a" / "b" / "T.json"
    assert write_split_file("T", cases, path) == path
    assert json.loads(path.read_text()) == make_split("T", cases)
    other = path.with_name("U.json")
    write_split_file("T", cases, other, 3, [["c1", "c2"]], "stated", 5)
    assert json.loads(other.read_text()) == make_split("T", cases, 3, [["c1", "c2"]], "stated", 5)
    grouped = path.with_name("V.json")
    write_split_file("T", cases, grouped, groups=[])
    assert json.loads(grouped.read_text())["rule"] == split_groups.RULE
