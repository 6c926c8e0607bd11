"""`mvl verify` of pictures: every kind of damage is one finding with the file's name; whole data
have none."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mvl.datasets import picture_faults as picture_faults_module
from mvl.datasets.download import fetch
from mvl.datasets.picture_faults import picture_faults, picture_notes
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify


@pytest.fixture
def pics(few_shapes, tmp_path):
    """(task, folder, data root) of a private copy of sixteen pictures without a manifest."""
    task, root = few_shapes
    folder = tmp_path / "data" / "pics"
    shutil.copytree(root / "shapes", folder)
    (folder / "manifest.json").unlink()
    return dataclasses.replace(task, name="pics"), folder, tmp_path / "data"


def grey(path, change):
    values = np.asarray(Image.open(path)).copy()
    Image.fromarray(np.ascontiguousarray(change(values))).save(path)


def soften(mask):
    mask[:3, :3] = 90
    return mask


DAMAGE = {
    "images/shape_002.png": (lambda p: p.unlink(), "masks/shape_002.png", "mask without an image"),
    "masks/shape_003.png": (lambda p: p.unlink(), "images/shape_003.png", "image without a mask"),
    "images/shape_004.png": (
        lambda p: p.write_bytes(p.read_bytes()[:200]),
        "images/shape_004.png",
        "not a whole picture",
    ),
    "masks/shape_005.png": (
        lambda p: grey(p, lambda v: v[:-2]),
        "masks/shape_005.png",
        "pixels, its image has",
    ),
    "masks/shape_006.png": (
        lambda p: grey(p, soften),
        "masks/shape_006.png",
        "9 pixels are neither black nor white",
    ),
    "images/shape_007.png": (
        lambda p: grey(p, lambda v: v * 0 + 9),
        "images/shape_007.png",
        "constant image",
    ),
    "images/shape_008.png": (
        lambda p: grey(p, lambda v: (v > 50).astype(np.uint8) * 255),
        "images/shape_008.png",
        "swapped",
    ),
    "masks/shape_010.png": (
        lambda p: grey(p, lambda v: v // 255 * 7),
        "masks/shape_010.png",
        "values up to 7",
    ),
}


def test_every_damage_is_one_finding(pics):
    task, folder, root = pics
    assert picture_faults(TaskData(task, root)) == []
    for name, (harm, *_) in DAMAGE.items():
        harm(folder / name)
    found = {
        path.relative_to(folder).as_posix(): fault
        for path, fault in picture_faults(TaskData(task, root))
        if path != folder
    }
    assert set(found) == {where for _, where, _ in DAMAGE.values()}
    for _, where, fault in DAMAGE.values():
        assert fault in found[where]
    (folder / "images" / "readme.txt").write_text("x")
    assert [path.name for path, _ in picture_notes(TaskData(task, root))] == ["readme.txt"]
    assert (
        "holds 14 images with masks, pics has 16"
        in dict(picture_faults(TaskData(task, root)))[folder]
    )


def test_bytes_are_compared_with_the_manifest(few_shapes, tmp_path):
    task, root = few_shapes
    shutil.copytree(root / "shapes", tmp_path / "shapes")
    assert verify(TaskData(dataclasses.replace(task, name="copy", folder="shapes"), tmp_path)) == []
    grey(tmp_path / "shapes" / "masks" / "shape_001.png", lambda v: v // 255)
    found = verify(TaskData(dataclasses.replace(task, name="copy", folder="shapes"), tmp_path))
    assert [
        (f.path.endswith("masks/shape_001.png"), "differ from the manifest" in f.fault)
        for f in found
    ] == [(True, True)]


def test_one_picture_on_both_sides_of_a_split_is_found(pics):
    task, folder, root = pics
    shutil.copy(folder / "images" / "shape_000.png", folder / "images" / "shape_001.png")
    shutil.copy(folder / "masks" / "shape_000.png", folder / "masks" / "shape_001.png")
    from mvl.datasets.splits import make_split

    split = make_split("pics", [f"shape_{i:03d}" for i in range(16)], groups=[])
    (root / "splits").mkdir()
    (root / "splits" / "pics.json").write_text(json.dumps(split))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_faults_module, "split_path", lambda *_: root / "splits" / "pics.json")
        assert [
            "the same pixels as shape_000" in fault
            for _, fault in picture_faults(TaskData(task, root))
        ] == [True]


def test_masks_of_busi_must_fit_their_class(tmp_path, few_shapes):
    for kind, value in (("benign", 0), ("normal", 255)):
        (tmp_path / "Dataset_BUSI_with_GT" / kind).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (30, 30)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "Dataset_BUSI_with_GT" / kind / f"{kind} (1).png")
        Image.fromarray(np.full((30, 30), value, np.uint8)).save(
            tmp_path / "Dataset_BUSI_with_GT" / kind / f"{kind} (1)_mask.png"
        )
    faults = [finding.fault for finding in verify(open_task("BUSI", tmp_path))]
    assert any("holds 2 images with masks, BUSI has 780" in fault for fault in faults)
    assert any("another copy than the recorded runs used" in fault for fault in faults)
    assert any("no foreground in the mask of a lesion" in fault for fault in faults)
    assert any("foreground in the mask of a normal picture" in fault for fault in faults)
    assert any("the same pixels as benign_001" in fault for fault in faults)
    assert open_task("BUSI", tmp_path).manifest == {}


def test_fetch_says_where_a_person_downloads_busi(tmp_path):
    with pytest.raises(
        TaskError,
        match=r"no data of BUSI there; download it from https://scholar\.cu\.edu\.eg.*MVL_DATA",
    ):
        fetch(open_task("BUSI", tmp_path))
