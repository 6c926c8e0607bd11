"""The registry, where data lie, and what a dataset.json may say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mvl.datasets.decathlon import read_cases
from mvl.datasets.phantoms import ensure_phantoms
from mvl.datasets.registry import aliases, find_task, load_tasks
from mvl.datasets.task import TaskError, data_root
from mvl.datasets.task_data import open_task


def test_registry_holds_the_ten_tasks_and_the_phantoms():
    tasks = load_tasks()
    assert (
        len(tasks) == 20
        and {"phantoms", "BUSI", "shapes"} < set(tasks)
        and sum(t.num_cases for t in tasks.values() if t.url) == 1741
    )
    for task in tasks.values():
        assert (
            task.labels
            and min(task.labels) == 1
            and task.nsd_tolerance_mm > 0
            and task.channels
            and task.citation
        )
        assert not task.url or (
            task.url.endswith(f"/{task.name}.tar")
            and len(task.md5) == 32
            and task.licence == "CC-BY-SA 4.0"
        )
    assert tasks["Task04_Hippocampus"].labels == {1: "anterior", 2: "posterior"}


def test_pictures_are_measured_in_pixels():
    tasks = load_tasks()
    pictures = ["BUSI", "shapes", "ISIC2017_256", "PH2_256", "Kvasir_SEG_256", "CVC_ClinicDB_256"]
    assert [name for name, task in tasks.items() if task.unit == "px"] == pictures
    assert [name for name, task in tasks.items() if task.dims == 2] == pictures
    assert all(len(tasks[name].channels) == 3 for name in pictures[2:])
    assert (
        tasks["BUSI"].folder == "Dataset_BUSI_with_GT"
        and tasks["BUSI"].num_cases == 780
        and tasks["BUSI"].licence == "CC BY 4.0"
    )


def test_md5_sums_are_those_of_monai():
    from monai.apps import DecathlonDataset

    assert {
        name: task.md5 for name, task in load_tasks().items() if task.url
    } == DecathlonDataset.md5


def test_no_two_tasks_share_a_name_and_reduced_copies_keep_theirs():
    names = [alias for name in load_tasks() for alias in aliases(name)]
    assert len(set(names)) == len(names)
    assert find_task("heart").name == "Task02_Heart"
    assert find_task("heart_half").name == "Task02_Heart_half"
    assert find_task("ph2").name == find_task("PH2_256").name == "PH2_256"


def test_a_task_that_is_cropped_by_its_label_says_so():
    task = find_task("LeftAtrium2018_half")
    assert "cropped by its label" in task.title and "Decathlon" not in task.citation


def test_task_is_found_by_folder_name_or_last_word():
    assert (
        find_task("hippocampus") is find_task("Task04_Hippocampus")
        and find_task("phantoms").num_cases == 80
    )
    with pytest.raises(TaskError, match="did you mean 'hippocampus'"):
        find_task("hipocampus")


def test_data_root_is_the_argument_then_the_variable_then_the_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("MVL_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path) == tmp_path and data_root() == tmp_path / "env"
    assert open_task("phantoms").place.parts[-3:] == ("data", "raw", "phantoms")
    monkeypatch.delenv("MVL_DATA")
    assert data_root().parts[-2:] == ("data", "raw")


def rewrite(folder, change):
    path = folder / "dataset.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["training"].append(
                {"image": "./imagesTr/../../secret.nii.gz", "label": "./labelsTr/a.nii.gz"}
            ),
            "leaves the folder",
        ),
        (
            lambda d: d["training"].append({"image": "/etc/hostname", "label": "/etc/hostname"}),
            "leaves the folder",
        ),
        (lambda d: d["training"].append(d["training"][0]), "phantom_000 is listed twice"),
        (lambda d: d.pop("training"), "not a Decathlon dataset.json"),
    ],
)
def test_dataset_json_is_not_trusted(tmp_path, change, message):
    folder = ensure_phantoms(tmp_path / "phantoms", 2)
    rewrite(folder, change)
    with pytest.raises(TaskError, match=message):
        read_cases(folder)


def test_import_is_light():
    code = (
        "import mvl.datasets.registry, sys; print([m for m in ('torch', 'monai', 'nibabel',"
        " 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
