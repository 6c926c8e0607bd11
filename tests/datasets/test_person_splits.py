"""Splits by person: the two sides of a person never part, and every stage of a run reads the file
that the config names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mvl.bench import overhead
from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import ROOT, Config, load_config
from mvl.datasets import split_groups
from mvl.datasets.registry import find_task
from mvl.datasets.splits import (
    NUM_FOLDS,
    load_split,
    make_split,
    read_split,
    run_split,
    select,
    split_path,
)
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.publish.run_pages import Row, split_files
from mvl.study.tables import TableError, check_split, read_rows
from mvl.training.evaluate import evaluate_run
from mvl.training.run import train_run

HIPPOCAMPUS = find_task("Task04_Hippocampus")
PATH = ROOT / "data" / "splits" / "Task04_Hippocampus_persons.json"
STUDY = """
title: test
tasks: [phantoms]
grid: [{name: all, systems: [by_scan, by_person], folds: [0], seeds: [0]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 1, batch_size: 16}
arms:
  by_scan: {system: vit_baseline}
  by_person: {system: vit_baseline, data: {split: persons}}
"""


def person(case: str) -> int:
    """Number of the person, by the rule of pairs, written here anew."""
    number = int(case[-3:])
    return number // 2 if number % 2 == 0 else (number + 1) // 2


@pytest.fixture(scope="module")
def committed() -> dict:
    return read_split(PATH)


def test_the_committed_file_follows_from_the_rule_and_holds_the_same_cases(committed: dict) -> None:
    first = read_split(ROOT / "data" / "splits" / "Task04_Hippocampus.json")
    everyone = sorted(case for block in committed["blocks"] for case in block)
    assert everyone == sorted(case for block in first["blocks"] for case in block)
    pairs = split_groups.person_groups(HIPPOCAMPUS, everyone)
    made = make_split("Task04_Hippocampus", everyone, groups=pairs, rule=split_groups.PERSON_RULE)
    assert made == committed and len(pairs) == 90
    assert len({person(case) for case in everyone}) == 170
    assert {len(block) for block in committed["blocks"]} == {26}


def test_no_person_lies_on_two_sides_of_any_fold_and_in_the_first_file_many_do(
    committed: dict,
) -> None:
    first = read_split(ROOT / "data" / "splits" / "Task04_Hippocampus.json")
    parted = 0
    for fold in range(NUM_FOLDS):
        lists = select(committed, fold, 1.0, PATH)
        sides = [set(map(person, part)) for part in (lists.train, lists.val, lists.test)]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        old = select(first, fold, 1.0, PATH)
        parted += len(set(map(person, old.train)) & set(map(person, old.test)))
    assert parted > 50


def test_a_prefix_of_the_training_list_parts_at_most_one_person(committed: dict) -> None:
    for fold in range(NUM_FOLDS):
        whole = select(committed, fold, 1.0, PATH).train
        for fraction in (0.1, 0.3):
            some = select(committed, fold, fraction, PATH).train
            assert some == whole[: len(some)]
            assert len(set(map(person, some)) & set(map(person, whole[len(some) :]))) <= 1


def test_the_file_is_named_by_the_setting_and_other_tasks_have_none() -> None:
    assert split_path(TaskData(HIPPOCAMPUS), kind="persons") == PATH
    assert (
        split_path(TaskData(HIPPOCAMPUS)).name
        == split_path(TaskData(HIPPOCAMPUS), kind="copies").name
        == "Task04_Hippocampus.json"
    )
    with pytest.raises(TaskError, match="do not tell persons"):
        load_split(open_task("phantoms"), 0, 1.0, kind="persons")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory):
    """Phantoms whose numbers are taken for persons, with split files in a folder of their own."""
    root = tmp_path_factory.mktemp("splits")
    task = dataclasses.replace(find_task("phantoms"), persons="pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mvl.datasets.task_data.find_task", lambda *_: task)
        patch.setattr(
            "mvl.datasets.splits.split_path",
            lambda data, kind="folds": (
                root / f"{data.task.name}{'_persons' if kind == 'persons' else ''}.json"
            ),
        )
        yield task, root


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("study") / "paired.yaml"
    path.write_text(STUDY)
    return str(path)


def test_training_evaluation_and_plan_use_the_split_by_person(
    paired, study: str, tmp_path: Path
) -> None:
    task, _ = paired
    config: Config = load_config(study, "phantoms", "by_person")
    wanted, other = run_split(config, TaskData(task)), load_split(TaskData(task), 0, 1.0)
    assert set(wanted.test) != set(other.test)
    folder = train_run(config, tmp_path, progress=False)
    assert run_folder.read_status(folder)["split_sha256"] == wanted.sha256 != other.sha256
    tested = [row["case"] for row in read_rows(folder / "cases.csv", CASE_COLUMNS)]
    assert tuple(tested) == wanted.test
    assert [row["case"] for row in evaluate_run(folder)] == tested
    assert overhead.counted_steps(config) == 4


def test_a_file_that_parts_a_person_is_refused(paired) -> None:
    task, root = paired
    load_split(TaskData(task), 0, 1.0, kind="persons")
    path = root / "phantoms_persons.json"
    text = path.read_text()
    everyone = [case for block in json.loads(text)["blocks"] for case in block]
    path.write_text(json.dumps(make_split("phantoms", everyone)))
    with pytest.raises(TaskError, match="lie in different blocks"):
        load_split(TaskData(task), 0, 1.0, kind="persons")
    path.write_text(text)


def test_a_studys_page_links_the_split_that_its_runs_used() -> None:
    config = load_config("hippocampus", "Task04_Hippocampus", "vit_baseline")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, split="persons"))
    rows = [Row("b", config, config.task, config.system, 1.0, 0, 0, {})]
    assert list(split_files(rows)) == ["Task04_Hippocampus_persons"]


def test_runs_with_other_splits_are_told_which_file_to_restore(tmp_path: Path) -> None:
    config = load_config("hippocampus", "Task04_Hippocampus", "vit_baseline")
    for kind, name in (("folds", "Task04_Hippocampus.json"), ("persons", PATH.name)):
        asked = dataclasses.replace(config, data=dataclasses.replace(config.data, split=kind))
        seen: dict = {}
        for digest in ("a", "b"):
            files.write_json(
                tmp_path / kind / digest / "status.json", {"state": "done", "split_sha256": digest}
            )
        check_split(tmp_path / kind / "a", asked, seen)
        with pytest.raises(TableError, match=f"restore data/splits/{name}"):
            check_split(tmp_path / kind / "b", asked, seen)
