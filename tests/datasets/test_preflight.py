"""What a run trusts: bytes of the manifest, verdicts kept by sha256, a split without a leak, and
test cases that stay closed."""

from __future__ import annotations

import json
import shutil
import time

import pytest

from mvl.core.config import DataConfig
from mvl.core.files import RunError
from mvl.datasets import preflight, sandbox
from mvl.datasets.case_store import CaseStore
from mvl.datasets.registry import find_task
from mvl.datasets.splits import Split, load_split
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData


@pytest.fixture
def own(own_data, tmp_path, monkeypatch):
    """(task, data root, folder) of twelve cases of your own."""
    folder = own_data(tmp_path / "data" / "Boxes", channels=1, shape=(16, 16, 16))
    monkeypatch.setattr(preflight, "_SOUND", {})
    return find_task("Boxes", folder.parent), folder.parent, folder


def test_verdicts_are_kept_by_sha256_and_asked_for_once(own, monkeypatch, tmp_path):
    task, root, folder = own
    asked = []
    real = sandbox.check_case
    monkeypatch.setattr(
        sandbox,
        "check_case",
        lambda task, case, *rest: (asked.append(case.case_id), real(task, case, *rest))[1],
    )
    split = load_split(TaskData(task, root), 0, 1.0)
    preflight.check_inputs(TaskData(task, root), split, tmp_path / "run")
    assert (
        len(asked) == 12
        and len(json.loads((root / "checked" / "Boxes.json").read_text())["sound"]) == 12
    )
    preflight._SOUND.clear()
    preflight.check_inputs(TaskData(task, root), split, tmp_path / "run")
    assert len(asked) == 12
    shutil.copy(folder / "labelsTr" / "case_00.nii.gz", folder / "labelsTr" / "case_01.nii.gz")
    preflight.check_inputs(TaskData(task, root), split, tmp_path / "run")
    assert asked[12:] == ["case_01"]


def test_pictures_and_registered_tasks_are_known_by_the_manifest(few_shapes, toy, tmp_path):
    for task, root in (few_shapes, toy):
        ids = [case.case_id for case in TaskData(task, root).cases]
        split = Split(tuple(ids[:6]), tuple(ids[6:8]), tuple(ids[8:12]), "s")
        preflight.check_inputs(TaskData(task, root), split, tmp_path / task.name)
        with pytest.raises(
            TaskError,
            match=f"case {ids[0]} is in train and in test; restore data/splits/{task.name}.json",
        ):
            preflight.check_inputs(
                TaskData(task, root),
                Split(split.train, split.val, (ids[0],), "s"),
                tmp_path / task.name,
            )
    task, root = toy
    path = root / "Toy" / "labelsTr" / "phantom_011.nii.gz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        TaskError,
        match=(
            r"phantom_011.nii.gz: its bytes differ from the manifest's sha256 .* as do 0 more; run"
            r" `mvl verify Toy --data-dir .*/data`"
        ),
    ):
        preflight.check_inputs(TaskData(task, root), split, tmp_path / "Toy")


def test_a_run_keeps_its_split(tmp_path):
    split = Split(("a",), ("b",), ("c",), "1" * 64)
    preflight.keep_split(tmp_path, split)
    preflight.keep_split(tmp_path, split)
    with pytest.raises(
        RunError,
        match=r"split.json: the run was begun with another split .*restore data/splits, or delete",
    ):
        preflight.keep_split(tmp_path, Split(("a",), ("b",), ("c",), "2" * 64))
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(RunError, match=r"split.json: cannot be read .*delete"):
        preflight.keep_split(tmp_path, split)


def test_closed_cases_open_again_whatever_happens(toy):
    task, root = toy
    data = DataConfig(img_size=(8, 8, 8))
    store = CaseStore(TaskData(task, root), ("phantom_000", "phantom_001"), data)
    store.get(0)
    with pytest.raises(RuntimeError, match="stop"), preflight.closed(store.cases[:1]):
        for ask in (store.get, store.native):
            with pytest.raises(
                TaskError,
                match=(
                    r"phantom_000.nii.gz: a test case, closed until .*train and select on the"
                    r" split's train and val"
                ),
            ):
                ask(0)
            ask(1)
        raise RuntimeError("stop")
    store.get(0)


def test_the_start_of_a_run_costs_little(tmp_path):
    task = find_task("hippocampus_40")
    split, start = load_split(TaskData(task), 0, 1.0), time.process_time()
    preflight.check_inputs(TaskData(task), split, tmp_path)
    assert time.process_time() - start < 2


def test_a_run_by_persons_is_told_of_the_persons_file(tmp_path):
    task = find_task("hippocampus")
    split = Split(("hippocampus_001",), (), ("hippocampus_001",), "x")
    for kind, name in (
        ("folds", "Task04_Hippocampus.json"),
        ("persons", "Task04_Hippocampus_persons.json"),
    ):
        with pytest.raises(TaskError, match=f"restore data/splits/{name}"):
            preflight.check_inputs(TaskData(task), split, tmp_path / kind, kind=kind)
