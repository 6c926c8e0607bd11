"""Pictures: which files belong together, and pixels of every mode, orientation and kind of
damage."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvl.datasets import pictures
from mvl.datasets.masks import read_case, read_mask
from mvl.datasets.nifti import FileFault
from mvl.datasets.pictures import (
    list_busi,
    list_pairs,
    png_bytes,
    read_busi,
    read_image,
    read_pairs,
)
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import open_task

BUSI = Path(os.environ.get("MVL_DATA", "")) / "Dataset_BUSI_with_GT"
RAMP = (np.arange(12 * 8, dtype=np.uint8) * 2).reshape(12, 8)


def put(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    picture.save(path, **options)
    return path


def square(low=2, high=6, value=255):
    mask = np.zeros((12, 8), np.uint8)
    mask[low:high, low:high] = value
    return mask


def test_busi_layout_unites_masks_and_names_cases(tmp_path):
    put(tmp_path / "benign" / "benign (4).png", RAMP)
    put(tmp_path / "benign" / "benign (4)_mask.png", square())
    put(tmp_path / "benign" / "benign (4)_MASK_1.PNG", square(5, 7))
    put(tmp_path / "normal" / "normal (12).PNG", RAMP)
    put(tmp_path / "normal" / "normal (12)_mask.png", square(value=0))
    (tmp_path / "normal" / "Thumbs.db").write_bytes(b"x")
    cases = read_busi(tmp_path)
    assert [case.case_id for case in cases] == ["benign_004", "normal_012"] and list_busi(
        tmp_path
    ).strays == []
    image, label = read_case(cases[0], 1)
    assert image.shape == (1, 12, 8) and np.array_equal(image[0], RAMP)
    assert (
        np.array_equal(label, (square() > 0) | (square(5, 7) > 0))
        and read_case(cases[1], 1)[1].max() == 0
    )


@pytest.mark.parametrize("layout", ["apart", "beside"])
def test_pairs_in_two_folders_or_beside_each_other(tmp_path, layout):
    masks = tmp_path / "Masks" if layout == "apart" else tmp_path
    images = tmp_path / "Images" if layout == "apart" else tmp_path
    for name in ("a 1", "b"):
        put(images / f"{name}.JPG", RAMP)
        put(masks / (f"{name}.png" if layout == "apart" else f"{name}_mask.png"), square())
    (images / "notes.txt").write_text("hello")
    assert [case.case_id for case in read_pairs(tmp_path)] == ["a 1", "b"]
    assert [path.name for path in list_pairs(tmp_path).strays] == ["notes.txt"]


@pytest.mark.parametrize(
    ("gone", "message"),
    [("benign (1).png", "mask without an image"), ("benign (1)_mask.png", "image without a mask")],
)
def test_a_file_without_its_partner_is_named(tmp_path, gone, message):
    for name in ("benign (1).png", "benign (1)_mask.png"):
        if name != gone:
            put(tmp_path / "benign" / name, square())
    with pytest.raises(TaskError, match=message) as caught:
        read_busi(tmp_path)
    assert "benign (1)" in str(caught.value) and "mvl verify" in str(caught.value)


def test_two_images_of_one_case_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(TaskError, match=r"images/x\.png"):
        read_pairs(tmp_path)
    for name in ("x.png", "x.jpg", "x_mask.png"):
        put(tmp_path / name, square())
    with pytest.raises(TaskError, match="second image of case x"):
        read_pairs(tmp_path)


def test_a_misplaced_class_is_a_stray(tmp_path):
    put(tmp_path / "benign" / "malignant (1).png", RAMP)
    assert [path.name for path in list_busi(tmp_path).strays] == ["malignant (1).png"]


def test_modes_come_out_as_grey_or_colour(tmp_path):
    rgb = np.stack([RAMP, RAMP // 2, RAMP // 3], -1)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    colour = put(tmp_path / "rgb.png", rgb)
    assert np.array_equal(read_image(colour, 1)[0], luma) and np.array_equal(
        read_image(colour, 3), np.moveaxis(rgb, -1, 0)
    )
    palette = put(tmp_path / "p.png", Image.fromarray(rgb).quantize(255))
    assert np.abs(read_image(palette, 1)[0] - luma).max() < 12
    alpha = np.dstack([rgb, np.where(RAMP > 100, 255, 0).astype(np.uint8)])
    assert np.array_equal(
        read_image(put(tmp_path / "a.png", alpha), 1)[0], np.where(RAMP > 100, luma, 0)
    )
    deep = put(tmp_path / "deep.png", RAMP.astype(np.uint16) * 300)
    assert np.array_equal(read_image(deep, 1)[0], RAMP * np.float32(300))
    with pytest.raises(FileFault, match="no 3 channels"):
        read_image(deep, 3)
    with pytest.raises(FileFault, match="no 2 channels"):
        read_image(colour, 2)


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = put(tmp_path / "turned.png", RAMP, exif=exif)
    assert np.array_equal(read_image(path, 1)[0], np.rot90(RAMP, -1))


def test_masks_black_and_white_labels_palettes_and_smooth_edges(tmp_path):
    want = (square() > 0).astype(np.uint8)
    index = Image.fromarray(want, mode="P")
    index.putpalette([0, 0, 0, 200, 10, 10])
    edge = square()
    edge[1, 2:6], edge[6, 2:6] = 100, 200
    for name, values in {
        "l": square(),
        "one": square(value=1),
        "bit": square() > 0,
        "p": index,
        "rgb": np.dstack([square()] * 3),
        "deep": square().astype(np.uint16) * 257,
    }.items():
        assert np.array_equal(read_mask(put(tmp_path / f"{name}.png", values)), want), name
    smooth = read_mask(put(tmp_path / "smooth.png", edge))
    assert smooth[6, 3] == 1 and smooth[1, 3] == 0
    assert read_mask(put(tmp_path / "two.png", square(value=2)), top=2).max() == 2
    for name, values, fault in (
        ("odd", square(value=2), "values up to 2"),
        ("ink", np.dstack([square(), square(), RAMP]), "coloured"),
    ):
        with pytest.raises(FileFault, match=fault):
            read_mask(put(tmp_path / f"{name}.png", values))


def damaged(kind):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)).save(
        out, format="PNG"
    )
    raw = out.getvalue()
    return {
        "empty": b"",
        "short": raw[: len(raw) // 2],
        "text": b"hello",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "flipped": raw[:1500] + bytes([raw[1500] ^ 255]) + raw[1501:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "short", "text", "lfs", "flipped"])
def test_damaged_files_are_refused_by_name(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(damaged(kind))
    put(tmp_path / "x_mask.png", square())
    with pytest.raises(TaskError, match=r"x\.png: .*(empty file|not a whole picture|Git-LFS)"):
        read_case(read_pairs(tmp_path)[0], 1)


def test_a_bomb_and_an_animation_are_refused_before_their_pixels_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 95)
    path = put(tmp_path / "x.png", RAMP)
    with pytest.raises(FileFault, match="8 x 12 pixels, the cap is 95"):
        read_image(path, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(FileFault, match="cap"):
        read_image(path, 1)
    monkeypatch.undo()
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy())]
    frames[0].save(tmp_path / "x.tiff", save_all=True, append_images=frames[1:])
    with pytest.raises(FileFault, match="2 frames"):
        read_image(tmp_path / "x.tiff", 1)


def test_image_and_mask_of_different_sizes_are_refused(tmp_path):
    put(tmp_path / "x.png", RAMP)
    put(tmp_path / "x_mask.png", square()[:-1])
    with pytest.raises(TaskError, match="11 x 8 pixels, its image has 12 x 8"):
        read_case(read_pairs(tmp_path)[0], 1)


def test_png_of_a_mask_reads_back(tmp_path):
    (tmp_path / "m.png").write_bytes(png_bytes((square() > 0).astype(np.uint8)))
    assert np.array_equal(read_mask(tmp_path / "m.png"), square() > 0)


@pytest.mark.skipif(not BUSI.is_dir(), reason="needs BUSI under MVL_DATA")
def test_real_busi_has_its_780_cases_and_17_with_several_masks():
    cases = open_task("BUSI").cases
    kinds = [case.case_id.split("_")[0] for case in cases]
    assert [kinds.count(kind) for kind in ("benign", "malignant", "normal")] == [437, 210, 133]
    assert sum(bool(case.more_labels) for case in cases) == 17
    several = next(case for case in cases if case.case_id == "benign_195")
    single = [np.count_nonzero(read_mask(path)) for path in (several.label, *several.more_labels)]
    assert len(single) == 3 and max(single) < np.count_nonzero(read_case(several, 1)[1]) <= sum(
        single
    )
    assert read_case(next(case for case in cases if case.case_id == "normal_001"), 1)[1].max() == 0
