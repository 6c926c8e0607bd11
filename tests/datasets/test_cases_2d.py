"""Two-dimensional cases on the network's grid and back: pictures in pixels, slices in
millimetres."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from mvl.core.config import DataConfig
from mvl.datasets.case_store import CaseStore
from mvl.datasets.cases_2d import read_plane, tensors
from mvl.datasets.masks import read_mask
from mvl.datasets.pictures import png_bytes
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData

DATA = DataConfig(img_size=(48, 40))


def test_a_picture_is_normalised_resized_and_comes_back_upright(few_shapes):
    task, root = few_shapes
    cases = TaskData(task, root).cases
    store = CaseStore(TaskData(task, root), tuple(case.case_id for case in cases[:4]), DATA)
    for index, case in enumerate(cases[:4]):
        image, label = store.get(index)
        native = store.native(index)
        raw, mask, spacing = read_plane(task, case)
        assert (
            image.shape == (1, 48, 40) and label.shape == (1, 48, 40) and label.dtype == torch.uint8
        )
        assert spacing == native.spacing_mm == (1.0, 1.0) and np.array_equal(native.label, mask)
        small = torch.nn.functional.interpolate(
            torch.as_tensor((raw - raw.mean()) / raw.std())[None], (48, 40), mode="bilinear"
        )[0]
        assert torch.allclose(image, small, atol=1e-4)
        back = store.to_native(index, label.float())
        assert back.shape == (1, *mask.shape)
        both = ((back[0].numpy() > 0.5) & (mask > 0)).sum()
        assert 2 * both / ((back[0].numpy() > 0.5).sum() + mask.sum()) > 0.9


def test_pad_crop_keeps_pixels_and_what_it_cut_comes_back_as_nothing(few_shapes):
    task, root = few_shapes
    store = CaseStore(
        TaskData(task, root),
        ("shape_000",),
        dataclasses.replace(DATA, img_size=(64, 120), resample="pad_crop"),
    )
    image, label = store.get(0)
    mask = store.native(0).label
    back = store.to_native(0, torch.ones(1, 64, 120))[0].numpy()
    assert (
        image.shape == (1, 64, 120)
        and back.shape == mask.shape
        and back.sum() == pytest.approx(64 * mask.shape[1], rel=1e-3)
    )
    assert abs(int(label.sum()) - int(mask.sum())) <= int(mask.sum()) * 0.5


def test_a_slice_has_its_spacing_in_mm(few_phantoms, monkeypatch):
    monkeypatch.setattr("mvl.datasets.task_data.make", lambda task, folder: folder)
    task = find_task("phantoms_slices")
    case = next(
        case for case in TaskData(task, few_phantoms).cases if case.case_id.endswith("z020")
    )
    pair = tensors(task, case)
    store = CaseStore(
        TaskData(task, few_phantoms), (case.case_id,), dataclasses.replace(DATA, labels="all")
    )
    native = store.native(0)
    assert pair["image"].shape[1:] == native.label.shape and native.affine[
        0, 0
    ] == native.spacing_mm[0] == float(pair["image"].affine[0, 0])
    assert set(store.get(0)[1].unique().tolist()) <= {0, 1, 2} and store.to_native(
        0, torch.rand(3, 48, 40)
    ).shape == (3, *native.label.shape)


def test_dimensions_of_grid_and_task_must_agree(few_shapes):
    task, root = few_shapes
    with pytest.raises(TaskError, match="cases are 2-D"):
        CaseStore(TaskData(task, root), ("shape_000",), DataConfig())


def test_a_bad_picture_is_named_with_its_remedy(few_shapes, tmp_path):
    folder = tmp_path / "shapes"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
        Image.new("L", (20, 20), 7).save(folder / kind / "x.png")
    (folder / "images" / "x.png").write_bytes(b"not a picture")
    task = dataclasses.replace(few_shapes[0], name="pics", folder="shapes")
    with pytest.raises(TaskError, match=r"images/x\.png: not a whole picture .*get the file again"):
        CaseStore(TaskData(task, tmp_path), ("x",), DATA).get(0)


def test_a_mask_that_is_written_as_png_is_read_back(few_shapes, tmp_path):
    task, root = few_shapes
    mask = CaseStore(TaskData(task, root), ("shape_000",), DATA).native(0).label
    (tmp_path / "out.png").write_bytes(png_bytes(mask))
    assert np.array_equal(read_mask(tmp_path / "out.png"), mask)
