"""Your own data: found by name or path, described by its own dataset.json, and refused with file
and remedy where something is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvl.core.config import ROOT, Config, DataConfig
from mvl.datasets.case_store import CaseStore
from mvl.datasets.own_data import own_task, read_nnunet
from mvl.datasets.preflight import check_inputs
from mvl.datasets.registry import find_task, settle, task_facts, task_of_run
from mvl.datasets.splits import load_split, split_path
from mvl.datasets.task import TaskError, UnknownTask
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify

NAME = "Dataset123_Boxes"


@pytest.fixture(scope="session")
def boxes(own_data, tmp_path_factory):
    """A data root with twelve cases of two channels; not to be changed."""
    root = tmp_path_factory.mktemp("own")
    own_data(root / NAME, channels=2, nsd_tolerance_mm=1)
    return root


@pytest.fixture
def copy(boxes, tmp_path):
    """A copy that may be broken: its folder."""
    return Path(shutil.copytree(boxes / NAME, tmp_path / "data" / NAME))


def describe(folder, **changes):
    """Change dataset.json; None takes a key out."""
    described = json.loads((folder / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(
        json.dumps({key: value for key, value in described.items() if value is not None})
    )


def test_a_folder_is_a_task(boxes):
    task = find_task(NAME, boxes)
    assert (task.name, task.channels, task.labels) == (
        NAME,
        ("channel 0", "channel 1"),
        {1: "core", 2: "rim"},
    )
    assert (task.num_cases, task.nsd_tolerance_mm, task.licence, task.own, task.dims) == (
        12,
        1.0,
        "own data",
        True,
        3,
    )
    cases = TaskData(task, boxes).cases
    assert len(cases) == 12 and [path.name for path in cases[3].images] == [
        "case_03_0000.nii.gz",
        "case_03_0001.nii.gz",
    ]
    assert cases[3].label.name == "case_03.nii.gz" and verify(TaskData(task, boxes)) == []
    assert (
        find_task("hippocampus", boxes).own is False
        and own_task("nothing", boxes) is None
        and own_task("..", boxes) is None
    )


def test_a_task_is_given_by_name_or_by_path(boxes, monkeypatch):
    assert settle(NAME, boxes) == (NAME, boxes)
    assert settle(str(boxes / NAME)) == (NAME, boxes) == settle(f"{boxes}/./{NAME}/")
    monkeypatch.chdir(boxes)
    assert settle(f"./{NAME}") == (NAME, boxes)
    monkeypatch.setenv("MVL_DATA", str(boxes))
    assert settle(NAME) == (NAME, None) and settle("hippocampus") == ("Task04_Hippocampus", None)
    for text in ("no/such/folder", "./nothing"):
        with pytest.raises(TaskError, match="no such folder"):
            settle(text)
    with pytest.raises(UnknownTask, match=r"unknown task 'Dataset1'.*of your own data in"):
        settle("Dataset1", boxes)


def test_names_that_mean_something_else_or_cannot_be_a_path_are_refused(own_data, tmp_path):
    for name, message in (
        ("Hippocampus", "means the task Task04_Hippocampus, whose .*; rename"),
        ("BUSI", "means the task BUSI, whose folder is called Dataset_BUSI_with_GT; rename"),
        ("my data", "rename it with letters"),
    ):
        own_data(tmp_path / name, cases=1)
        with pytest.raises(TaskError, match=message):
            settle(str(tmp_path / name))


def test_a_folder_that_is_called_slices_is_itself(own_data, tmp_path):
    for name, cases in (("brain", 1), ("brain_slices", 2)):
        names = [f"case_{k:02d}" for k in range(cases)]
        rows = [
            {"image": f"imagesTr/{case}_0000.nii.gz", "label": f"labelsTr/{case}.nii.gz"}
            for case in names
        ]
        own_data(tmp_path / name, cases=cases, training=rows)
    for asked in (("brain_slices", tmp_path), settle(str(tmp_path / "brain_slices"))):
        assert find_task(*asked).num_cases == 2
        assert open_task(*asked).folder == tmp_path / "brain_slices"
    shutil.rmtree(tmp_path / "brain_slices")
    assert find_task("brain_slices", tmp_path).layout == "slices"


def test_both_channels_reach_the_network_in_order(boxes):
    task = find_task(NAME, boxes)
    store = CaseStore(
        TaskData(task, boxes), ("case_04",), DataConfig(img_size=(20, 18, 16), labels="all")
    )
    image, label = store.get(0)
    assert image.shape == (2, 20, 18, 16) and label.unique().tolist() == [0, 1, 2]
    rim, core = label[0] == 2, label[0] == 1
    assert (
        image[1][rim].mean() - image[1][core].mean()
        > image[0][rim].mean() - image[0][core].mean() + 0.2
    )


def test_the_decathlons_layout_needs_no_registry_row(toy):
    root = toy[1]
    task = find_task("Toy", root)
    assert (
        task.own
        and task.layout == "decathlon"
        and task.channels == ("phantom",)
        and task.labels == {1: "anterior", 2: "posterior"}
    )
    assert [case.case_id for case in TaskData(task, root).cases] == [
        case.case_id for case in TaskData(toy[0], root).cases
    ]


def test_the_split_lies_beside_the_data_and_never_in_the_clone(copy):
    task, root = find_task(NAME, copy.parent), copy.parent
    split = load_split(TaskData(task, root), 0, 1.0)
    assert (
        split_path(TaskData(task, root)) == root / "splits" / f"{NAME}.json"
        and split_path(TaskData(task, root)).is_file()
    )
    assert not (ROOT / "data" / "splits" / f"{NAME}.json").exists()
    assert sorted((*split.train, *split.val, *split.test)) == [f"case_{k:02d}" for k in range(12)]
    for file in copy.rglob("case_00*"):
        file.unlink()
    describe(copy, numTraining=11)
    with pytest.raises(
        TaskError,
        match=(
            r"splits/Dataset123_Boxes.json: case case_00 is in the split but not on disk.*delete"
            r" this file to deal anew"
        ),
    ):
        load_split(open_task(NAME, root), 0, 1.0)


def test_fewer_than_ten_cases_cannot_be_dealt(own_data, tmp_path):
    own_data(tmp_path / "Few", cases=9)
    with pytest.raises(
        TaskError,
        match=r"Few: 9 cases .* cannot be dealt to 10 blocks; add cases until there are 10",
    ):
        load_split(open_task("Few", tmp_path), 0, 1.0)
    [finding] = verify(open_task("Few", tmp_path))
    assert finding.path == str(tmp_path / "Few") and "cannot be dealt" in finding.fault
    assert finding.remedy == "add cases until there are 10, each under one name"


def test_verify_deals_on_trial_and_writes_nothing(copy):
    for stated, path, fault in (
        ({"folds": 3}, "dataset.json", "folds is 3"),
        ({"folds": 10, "patients": {"gone": "p"}}, "dataset.json", "`patients` names gone"),
        ({"patients": "("}, "dataset.json", "`patients` is no regular expression"),
        ({"patients": "(case)_.*"}, ".", "12 cases in 1 groups cannot be dealt evenly"),
    ):
        describe(copy, **stated)
        [finding] = verify(open_task(NAME, copy.parent))
        assert finding.path == str(copy / path) and finding.fault.startswith(fault)
        assert finding.remedy
    (copy / "groups.csv").write_text("case,patient\n")
    [finding] = verify(open_task(NAME, copy.parent))
    assert finding.path == str(copy / "groups.csv")
    assert sorted(copy.parent.iterdir()) == [copy]


def test_verify_looks_at_the_split_that_is_there(copy):
    split = load_split(open_task(NAME, copy.parent), 0, 1.0)
    assert verify(open_task(NAME, copy.parent)) == []
    describe(copy, patients={split.train[0]: "p", split.test[0]: "p"})
    [finding] = verify(open_task(NAME, copy.parent))
    assert finding.path == str(copy.parent / "splits" / f"{NAME}.json")
    assert "lie in different blocks" in finding.fault


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channel_names": None}, r"lacks channel_names; add"),
        ({"channel_names": {"0": "a", "2": "b"}}, r"keys 0, 2, expected 0, 1; number"),
        ({"labels": None}, r"lacks labels; add"),
        (
            {"labels": {"background": 0, "all": [1, 2]}},
            r"'all' is a region of \[1, 2\]; regions are not supported",
        ),
        ({"labels": {"background": 0, "core": 1, "rim": 3}}, r"values \[0, 1, 3\]; number them"),
        ({"labels": {"core": 1}}, r"values \[1\]; number"),
        (
            {"labels": {"background": 0, "core": 1.0}},
            r"'core' has the value 1.0; write a whole number",
        ),
        (
            {"labels": {"background": 0, "core": 1, "ignore": 2}},
            r"`ignore` is not supported; leave out",
        ),
        ({"file_ending": None}, r"file_ending is None, expected .nii.gz"),
        ({"file_ending": ".png"}, r"'.png', expected .nii.gz or .nii; convert"),
        ({"numTraining": None}, r'lacks numTraining, a number; write "numTraining": 12'),
        ({"numTraining": 13}, r"numTraining is 13, labelled cases are 12; bring back"),
        ({"nsd_tolerance_mm": "2"}, r"nsd_tolerance_mm is '2'; write millimetres"),
        ({"dataset": {}}, r"`dataset` mapping is not read; put the files"),
        (
            {"channel_names": {"0": "a"}},
            r"case_00_0001.nii.gz: channel 1 is not in channel_names \(1 channels\); add it there",
        ),
    ],
)
def test_a_wrong_description_is_named_with_the_remedy(copy, changes, message):
    describe(copy, **changes)
    with pytest.raises(TaskError, match=rf"{NAME}/.*{message}"):
        find_task(NAME, copy.parent)


def test_a_description_that_is_missing_or_no_json_is_named(copy):
    for text, message in (
        ("{", r"cannot be read \(JSONDecodeError"),
        ("[]", "expected a mapping"),
        (None, "missing; own data need one"),
    ):
        (
            (copy / "dataset.json").unlink()
            if text is None
            else (copy / "dataset.json").write_text(text)
        )
        with pytest.raises(TaskError, match=rf"{NAME}/dataset.json: {message}"):
            find_task(NAME, copy.parent)


def test_files_without_a_partner_are_named(copy):
    (copy / "imagesTr" / "case_03_0001.nii.gz").unlink()
    with pytest.raises(
        TaskError,
        match=(
            r"case_03_0001.nii.gz: missing, with 0 more.*mvl verify.*then bring them back, or take"
            r" their cases out"
        ),
    ):
        open_task(NAME, copy.parent).cases
    (copy / "labelsTr" / "case_05.nii.gz").unlink()
    with pytest.raises(
        TaskError,
        match=(
            r"case_05_0000.nii.gz: no label labelsTr/case_05.nii.gz; add it, or move the image to"
            r" imagesTs"
        ),
    ):
        read_nnunet(copy)
    (copy / "imagesTr" / "a.nii.gz").touch()
    with pytest.raises(
        TaskError,
        match=(
            r"imagesTr/a.nii.gz: the name does not end in a channel number; rename it to"
            r" a_0000.nii.gz"
        ),
    ):
        read_nnunet(copy)
    shutil.rmtree(copy / "labelsTr")
    with pytest.raises(TaskError, match=r"labelsTr: no such folder; nnU-Net's layout"):
        read_nnunet(copy)


def moved(voxels, affine):
    affine[0, 3] += 3
    return voxels, affine


BREAKS = {
    "labelsTr/case_00.nii.gz: label lies up to 3 mm away": ("labelsTr/case_00", moved),
    "case_00_0001.nii.gz: channel lies up to 3 mm away": ("imagesTr/case_00_0001", moved),
    r"labelsTr/case_00.nii.gz: label grid \(20, 18, 15\) differs": (
        "labelsTr/case_00",
        lambda v, a: (v[..., :-1], a),
    ),
    "labelsTr/case_00.nii.gz: 1 values are not labels of .* 0.999": (
        "labelsTr/case_00",
        lambda v, a: (np.where(v == 1, np.float32(0.999), v), a),
    ),
    "labelsTr/case_00.nii.gz: 1 values are not labels of .* 7": (
        "labelsTr/case_00",
        lambda v, a: (np.where(v == 1, v.dtype.type(7), v), a),
    ),
    "case_00_0000.nii.gz: 1 voxels are NaN": (
        "imagesTr/case_00_0000",
        lambda v, a: (np.where(v == v.max(), np.float32(np.nan), v), a),
    ),
    "case_00_0001.nii.gz: constant image": ("imagesTr/case_00_0001", lambda v, a: (v * 0, a)),
}


@pytest.mark.parametrize("message", BREAKS)
def test_broken_files_stop_a_run_and_are_listed(copy, nifti, message):
    name, change = BREAKS[message]
    path = copy / f"{name}.nii.gz"
    file = nibabel.load(path)
    nifti(path, *change(np.asarray(file.dataobj), file.affine.copy()))
    task = find_task(NAME, copy.parent)
    store = CaseStore(
        TaskData(task, copy.parent), ("case_00", "case_01"), DataConfig(img_size=(8, 8, 8))
    )
    with pytest.raises(
        TaskError, match=rf"{message}.*put the file right, or take its case out.*mvl verify"
    ):
        store.get(0)
    store.get(1)
    assert [
        (finding.path, finding.remedy[:18]) for finding in verify(TaskData(task, copy.parent))
    ] == [(str(path), "put the file right")]


def test_a_case_without_foreground_is_a_healthy_one(copy, nifti):
    path = copy / "labelsTr" / "case_00.nii.gz"
    nifti(path, np.asarray(nibabel.load(path).dataobj) * 0)
    task = find_task(NAME, copy.parent)
    assert verify(TaskData(task, copy.parent)) == []
    assert (
        not CaseStore(TaskData(task, copy.parent), ("case_00",), DataConfig(img_size=(8, 8, 8)))
        .get(0)[1]
        .any()
    )


def test_labels_that_are_all_empty_are_refused_before_an_empty_mask_scores_1(copy, nifti, tmp_path):
    for path in (copy / "labelsTr").iterdir():
        nifti(path, np.asarray(nibabel.load(path).dataobj) * 0)
    data = TaskData(find_task(NAME, copy.parent), copy.parent)
    message = f"every mask of {NAME} is empty: there is nothing to learn"
    [finding] = verify(data)
    assert finding.path == str(copy) and finding.fault.startswith(message)
    assert finding.remedy == "write each structure as its value in dataset.json"
    with pytest.raises(TaskError, match=message):
        check_inputs(data, load_split(data, 0, 1.0), tmp_path / "run")


def test_a_run_keeps_what_its_network_needs_to_know(boxes):
    task = find_task(NAME, boxes)
    status = json.loads(json.dumps({"task": task_facts(task)}))
    kept = task_of_run(Config(task=NAME), status)
    assert (kept.name, kept.channels, kept.labels, kept.own, kept.dims, kept.layout) == (
        NAME,
        task.channels,
        task.labels,
        True,
        3,
        "nnunet",
    )
    assert str(boxes) not in json.dumps(status)
    assert task_of_run(Config(task="phantoms"), {"state": "done"}) is find_task("phantoms")


def test_pictures_with_masks_need_no_description(tmp_path):
    for k in range(11):
        pixels = np.random.default_rng(k).integers(0, 255, (12, 10), dtype=np.uint8)
        for kind, values in (("images", pixels), ("masks", (pixels > 128).astype(np.uint8) * 255)):
            (tmp_path / "Skin" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "Skin" / kind / f"p{k}.png")
    task = find_task("Skin", tmp_path)
    assert (task.dims, task.layout, task.unit, task.channels, task.num_cases) == (
        2,
        "pairs",
        "px",
        ("grey",),
        11,
    )
    image, label = CaseStore(TaskData(task, tmp_path), ("p3",), DataConfig(img_size=(8, 8))).get(0)
    assert image.shape == (1, 8, 8) and label.unique().tolist() == [0, 1]
