"""A task with its data: what is found, that it is found once, and what is said where it is not."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mvl.core.config import Config, DataConfig
from mvl.datasets import task_data
from mvl.datasets.case_store import CaseStore
from mvl.datasets.preflight import check_inputs
from mvl.datasets.registry import find_task
from mvl.datasets.splits import run_split
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, is_other_copy, open_task


@pytest.fixture
def found(monkeypatch) -> Counter:
    """How often a list of cases, a folder that is made, and each manifest are looked for."""
    counts: Counter = Counter()
    read_cases, make, read_text = task_data.read_cases, task_data.make, Path.read_text

    def counted_cases(folder):
        counts["cases"] += 1
        return read_cases(folder)

    def counted_folder(task, folder):
        counts["folder"] += 1
        return make(task, folder)

    def counted_text(path, *rest, **more):
        counts[path.name] += path.name == "manifest.json"
        return read_text(path, *rest, **more)

    monkeypatch.setattr(task_data, "read_cases", counted_cases)
    monkeypatch.setattr(task_data, "make", counted_folder)
    monkeypatch.setattr(Path, "read_text", counted_text)
    return counts


def manifest_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*.nii.gz"))
    hashes = {p.relative_to(folder).as_posix(): task_data.sha256_file(p) for p in files}
    (folder / "manifest.json").write_text(json.dumps({"files": hashes}))
    return hashes


def test_split_check_and_stores_of_a_run_find_the_data_once(toy, tmp_path, found, monkeypatch):
    monkeypatch.setattr("mvl.datasets.splits.ROOT", tmp_path)  # where the split is dealt to
    task, root = toy
    hashes = manifest_of(root / "Toy")
    data, config = TaskData(task, root), Config(data=DataConfig(img_size=(8, 8, 8)))
    assert not found, "nothing is looked for before it is asked for"
    split = run_split(config, data)
    check_inputs(data, split, tmp_path / "run")
    stores = [CaseStore(data, part, config.data) for part in (split.train, split.val, split.test)]
    assert found["cases"] == found["manifest.json"] == 1
    assert data.whole is data and data.folder == root / "Toy" and data.manifest == hashes
    assert sum(len(store) for store in stores) == len(data.cases) == 12
    assert all(store.manifest is data.manifest for store in stores)


def test_slices_and_their_volumes_find_each_list_once(few_phantoms, monkeypatch, found):
    data = open_task("phantoms_slices", few_phantoms)
    monkeypatch.setattr(task_data, "make", lambda task, folder: folder)
    for _ in range(2):
        assert data.whole.task == dataclasses.replace(find_task("phantoms"), folder="phantoms")
        assert len(data.whole.cases) == 12 < len(data.cases)
    assert found["cases"] == 1 and data.whole is data.whole
    assert {case.case_id.rpartition("_z")[0] for case in data.cases} == {
        case.case_id for case in data.whole.cases
    }


def test_what_is_made_is_made_once(tmp_path, found):
    data = open_task("phantoms", tmp_path)
    assert data.folder == data.folder == data.place == tmp_path / "phantoms"
    assert found["folder"] == 1


def test_what_was_not_there_is_looked_for_again_and_a_copy_knows_nothing(toy, tmp_path, found):
    task, root = toy
    shutil.move(root / "Toy", tmp_path / "aside")
    data = TaskData(task, root)
    for _ in range(2):
        with pytest.raises(TaskError, match="no data of Toy there"):
            _ = data.cases
    shutil.move(tmp_path / "aside", root / "Toy")
    assert len(data.cases) == 12 and found["cases"] == 1
    assert dataclasses.replace(data) == data
    assert len(dataclasses.replace(data).cases) == 12 and found["cases"] == 2
    assert pickle.loads(pickle.dumps(data)).cases == data.cases and found["cases"] == 2


def test_a_manifest_that_cannot_be_read_is_named(toy):
    task, root = toy
    for text in ("", "[]", '{"file": {}}', '{"files": 3}'):
        (root / "Toy" / "manifest.json").write_text(text)
        with pytest.raises(TaskError, match=r"manifest\.json: not a manifest"):
            _ = TaskData(task, root).manifest
    (root / "Toy" / "manifest.json").unlink()
    assert TaskData(task, root).manifest == {}
    assert open_task("hippocampus", root).committed.is_file()
    assert open_task("hippocampus_slices").committed == open_task("hippocampus").committed


def test_commands_name_the_data_folder_where_it_is_not_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_DATA", str(tmp_path))
    assert open_task("spleen").task_command("fetch") == "mvl fetch Task09_Spleen"
    assert open_task("spleen", tmp_path).task_command("verify") == "mvl verify Task09_Spleen"
    other = tmp_path / "other"
    words = open_task("spleen", other).task_command("verify")
    assert words == f"mvl verify Task09_Spleen --data-dir {other}"


def test_absent_data_say_how_to_get_them(tmp_path):
    with pytest.raises(TaskError, match="mvl fetch Task09_Spleen"):
        open_task("spleen", tmp_path).cases


def test_desktop_droppings_are_no_cases_and_a_missing_file_is_named(tmp_path):
    folder = open_task("phantoms", tmp_path).folder
    (folder / "imagesTr" / "._phantom_000.nii.gz").write_bytes(b"x")
    dropping = {
        "image": "./imagesTr/._phantom_000.nii.gz",
        "label": "./labelsTr/._phantom_000.nii.gz",
    }
    described = json.loads((folder / "dataset.json").read_text())
    described["training"].append(dropping)
    (folder / "dataset.json").write_text(json.dumps(described))
    assert len(open_task("phantoms", tmp_path).cases) == 80
    (folder / "labelsTr" / "phantom_003.nii.gz").unlink()
    with pytest.raises(TaskError, match=r"phantom_003.nii.gz: missing.*mvl verify"):
        open_task("phantoms", tmp_path).cases


def test_another_copy_is_told_from_a_damaged_one(few_shapes):
    folder = few_shapes[1] / "shapes"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert not is_other_copy(files, folder) and is_other_copy(
        dict.fromkeys(files, "0" * 64), folder
    )
    assert not is_other_copy({**files, "images/shape_000.png": "0" * 64}, folder)
