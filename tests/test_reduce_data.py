"""The script that reduces public data: sizes, masks, halves of volumes and their place in space, on
made-up originals."""

from __future__ import annotations

import importlib.util
import json
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvl.core.config import ROOT
from mvl.datasets.decathlon import read_cases
from mvl.datasets.masks import read_case
from mvl.datasets.pictures import read_pairs
from mvl.datasets.registry import find_task
from mvl.datasets.task_data import TaskData

SPEC = importlib.util.spec_from_file_location("reduce_data", ROOT / "workflow" / "reduce_data.py")
reduce_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reduce_data)


@pytest.mark.parametrize(
    ("name", "image", "mask", "shape"),
    [
        (
            "isic",
            "ISIC-2017_Training_Data/ISIC_0000001.jpg",
            "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000001_segmentation.png",
            (256, 256),
        ),
        (
            "ph2",
            "IMD003/IMD003_Dermoscopic_Image/IMD003.bmp",
            "IMD003/IMD003_lesion/IMD003_lesion.bmp",
            (192, 256),
        ),
        ("kvasir", "Kvasir-SEG/images/abc.jpg", "Kvasir-SEG/masks/abc.jpg", (256, 256)),
        ("cvc", "CVC/Original/12.tif", "CVC/Ground Truth/12.tif", (256, 256)),
    ],
)
def test_pictures_get_their_size_and_masks_stay_black_and_white(tmp_path, name, image, mask, shape):
    drawn = np.zeros((300, 400), np.uint8)
    drawn[75:150, 100:300] = 255
    colours = np.stack(
        [np.where(drawn, 200, 40), np.full_like(drawn, 90), np.full_like(drawn, 30)], -1
    )
    for part, values in ((image, colours.astype(np.uint8)), (mask, drawn)):
        (tmp_path / "in" / part).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "in" / part)
    folder = reduce_data.main(name, tmp_path / "in", tmp_path / "out")
    task = find_task(folder.name)
    [case] = read_pairs(folder)
    pixels, label = read_case(case, len(task.channels))
    assert pixels.shape == (3, *shape) and label.mean() == pytest.approx(0.125, abs=0.01)
    assert (
        pixels[0][label > 0].mean() > 190
        and pixels[0][label == 0].mean() < 50
        and pixels[1].mean() == pytest.approx(90, abs=3)
    )
    assert set(np.unique(np.asarray(Image.open(case.label)))) == {0, 255}


def test_a_halved_heart_lies_where_the_whole_one_lay(tmp_path):
    """The centre of mass of the label, in mm, moves by less than a fine voxel."""
    label = np.zeros((320, 260, 12), np.uint8)
    label[120:180, 100:160, 4:10] = 1
    affine = np.diag([1.25, 1.25, 1.37, 1])
    affine[:3, 3] = (-100, 30, 7)
    for part, voxels in (("imagesTr", label * 100.0 + 5), ("labelsTr", label)):
        (tmp_path / "Task02_Heart" / part).mkdir(parents=True)
        nibabel.save(
            nibabel.Nifti1Image(voxels, affine), tmp_path / "Task02_Heart" / part / "la_003.nii.gz"
        )
    folder = reduce_data.main("heart", tmp_path, tmp_path / "out")
    [case] = read_cases(folder)
    image, small = nibabel.load(case.image), nibabel.load(case.label)
    assert image.shape == small.shape == (128, 128, 6)
    assert nibabel.affines.voxel_sizes(small.affine) == pytest.approx([2.5, 2.5, 2.74])
    centres = [
        nibabel.affines.apply_affine(a, np.argwhere(v)).mean(0)
        for a, v in ((affine, label), (small.affine, small.get_fdata()))
    ]
    assert centres[0] == pytest.approx(centres[1], abs=1e-3)
    assert image.get_fdata()[small.get_fdata() > 0].mean() == pytest.approx(105)
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1


def test_the_committed_scans_follow_from_the_rule(tmp_path):
    blocks = json.loads((ROOT / "data/splits/Task04_Hippocampus.json").read_text())["blocks"]
    everyone = [case for block in blocks for case in block]
    committed = ROOT / "data/scans/Task04_Hippocampus_40"
    names = [case.case_id for case in read_cases(committed)]
    assert reduce_data.cases_of_persons("Task04_Hippocampus", 40, everyone) == names
    manifests = [
        json.loads((ROOT / "data/manifests" / f"{task}.json").read_text())["files"]
        for task in ("Task04_Hippocampus", "Task04_Hippocampus_40")
    ]
    assert manifests[1].items() <= manifests[0].items(), "the archive's bytes"
    folder = reduce_data.take_scans("Task04_Hippocampus", 5, committed, tmp_path / "five")
    five = read_cases(folder)
    assert len(five) == 5 and all(
        case.image.read_bytes() == (committed / "imagesTr" / case.image.name).read_bytes()
        for case in five
    )


@pytest.mark.parametrize("name", ["isic", "ph2", "kvasir", "cvc", "heart", "hippocampus"])
def test_a_folder_without_the_set_is_refused_and_nothing_is_written(name, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(SystemExit, match=r"in: no .* in it; give the folder"):
        reduce_data.main(name, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_that_the_atrium_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SystemExit, match="needs the package h5py; run `pip install h5py`"):
        reduce_data.main("atrium", tmp_path, tmp_path / "out")


def test_scans_of_the_clone_are_found_whatever_the_data_root_is(tmp_path, monkeypatch):
    task, name = find_task("hippocampus_40"), "Task04_Hippocampus_40"
    for root in (None, tmp_path):
        monkeypatch.setenv("MVL_DATA", str(root or ""))
        assert (
            TaskData(task).folder == TaskData(task, root).folder == ROOT / "data" / "scans" / name
        )
    (tmp_path / name).mkdir()
    assert TaskData(task).place == tmp_path / name, "a copy in the data root goes first"
