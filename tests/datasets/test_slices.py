"""Axial slices: chosen by the rule, read upright, grouped by volume in the split of their
volumes."""

from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pytest

from mvl.datasets.registry import find_task
from mvl.datasets.slices import EMPTY_STEP, read_slice, read_slices
from mvl.datasets.splits import load_split
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task


def volume_of(case_id):
    return case_id.rpartition("_z")[0]


def test_slices_of_a_task_are_a_task(few_phantoms):
    task = find_task("phantoms_slices")
    assert (task.name, task.dims, task.folder, task.labels) == (
        "phantoms_slices",
        2,
        "phantoms",
        find_task("phantoms").labels,
    )
    assert TaskData(task).whole.task == dataclasses.replace(
        find_task("phantoms"), folder="phantoms"
    ) and open_task("BUSI").whole.task is find_task("BUSI")
    assert find_task("hippocampus_slices").name == "Task04_Hippocampus_slices"
    with pytest.raises(TaskError, match="no volumes to slice"):
        find_task("BUSI_slices")


def test_every_slice_with_foreground_and_each_fourth_other_is_a_case(few_phantoms):
    folder = few_phantoms / "phantoms"
    cases = read_slices(folder)
    for volume in ("phantom_000", "phantom_007"):
        label = nibabel.funcs.as_closest_canonical(
            nibabel.nifti1.load(folder / "labelsTr" / f"{volume}.nii.gz")
        )
        voxels, image = (
            np.asarray(label.dataobj),
            nibabel.nifti1.load(folder / "imagesTr" / f"{volume}.nii.gz"),
        )
        present = (voxels > 0).any(axis=(0, 1))
        mine = [case for case in cases if volume_of(case.case_id) == volume]
        assert [case.z for case in mine] == [
            z for z in range(len(present)) if present[z] or z % EMPTY_STEP == 0
        ]
        assert mine[0].case_id == f"{volume}_z000" and not present[0]
        shown = next(case for case in mine if present[case.z])
        picture, mask, spacing = read_slice(shown)
        upright = np.asarray(nibabel.funcs.as_closest_canonical(image).dataobj)
        assert np.array_equal(picture[0], upright[:, :, shown.z]) and np.array_equal(
            mask, voxels[:, :, shown.z]
        )
        assert spacing == pytest.approx(label.header.get_zooms()[:2]) and mask.dtype == np.uint8


def test_a_slice_that_is_not_there_is_refused(few_phantoms):
    case = dataclasses.replace(read_slices(few_phantoms / "phantoms")[0], z=999)
    with pytest.raises(TaskError, match="slice 999"):
        read_slice(case)


def test_slices_share_their_volumes_fold(few_phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("mvl.datasets.splits.ROOT", tmp_path)
    monkeypatch.setattr("mvl.datasets.task_data.make", lambda task, folder: folder)
    task = find_task("phantoms_slices")
    whole, volumes = (
        load_split(TaskData(task, few_phantoms), 0, 1.0),
        load_split(open_task("phantoms", few_phantoms), 0, 1.0),
    )
    for part in ("train", "val", "test"):
        assert {volume_of(case) for case in getattr(whole, part)} == set(getattr(volumes, part))
    assert sorted((*whole.train, *whole.val, *whole.test)) == [
        case.case_id for case in TaskData(task, few_phantoms).cases
    ]
    some, few = (
        load_split(TaskData(task, few_phantoms), 0, 0.3),
        load_split(open_task("phantoms", few_phantoms), 0, 0.3),
    )
    assert whole.train[: len(some.train)] == some.train and {
        volume_of(case) for case in some.train
    } == set(few.train)
    assert some.sha256 != whole.sha256 and sorted(
        p.name for p in (tmp_path / "data" / "splits").iterdir()
    ) == ["phantoms.json"]
