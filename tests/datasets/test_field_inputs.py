"""What people's files do to the package: one test for each row of field faults, each with several
instances."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvl.core import machine
from mvl.core.config import Config, DataConfig
from mvl.datasets import checks, nifti, splits
from mvl.datasets.case_store import CaseStore
from mvl.datasets.dicom import DicomFault, read_series
from mvl.datasets.duplicates import duplicate_groups
from mvl.datasets.label_noise import label_damage
from mvl.datasets.masks import check_upright, read_mask
from mvl.datasets.new_scans import check_scan, find_scans, series_as_nifti
from mvl.datasets.nifti_geometry import TOLERANCE_VOXELS, FileFault
from mvl.datasets.preflight import check_inputs
from mvl.datasets.registry import find_task
from mvl.datasets.split_files import read_split
from mvl.datasets.split_groups import shared_stems
from mvl.datasets.splits import load_split, make_split, uneven
from mvl.datasets.task import TaskError, case_name
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify

ROWS, COLUMNS = np.mgrid[:64, :64]
SQUARE = np.zeros((24, 20), bool)
SQUARE[6:16, 5:14] = True


# --- near duplicates swallow a data set ---------------------------------------------------------


def eye_ground(number):
    """A bright disc on black with a spot and vessels that no other has."""
    rng = np.random.default_rng(number)
    far = np.hypot(ROWS - 32, COLUMNS - 32)
    disc = far < 29
    values = (110 + rng.normal(0, 12)) * disc * (1 - 0.3 * far / 32)
    y, x = rng.integers(20, 44, 2)
    values = values + 60 * (np.hypot(ROWS - y, COLUMNS - x) < 4) * disc
    for _ in range(5):
        angle = rng.uniform(0, np.pi)
        line = np.abs((ROWS - y) * np.sin(angle) + (COLUMNS - x) * np.cos(angle)) < 1
        values = values - 25 * disc * line
    return np.clip(values + rng.normal(0, 3, disc.shape), 0, 255).astype(np.uint8)


def deep_grey(number):
    """A 16-bit picture far above 255, as microscopes write them."""
    rng = np.random.default_rng(number)
    return (2000 + 6000 * rng.random((8, 8)).repeat(8, 0).repeat(8, 1)).astype(np.uint16)


def ruler(number):
    """A pale skin with the same ruler at its edge and another lesion in each picture."""
    rng = np.random.default_rng(number)
    y, x = rng.integers(22, 42, 2)
    values = 190.0 - 90 * (np.hypot(ROWS - y, COLUMNS - x) < rng.integers(5, 9))
    for angle in rng.uniform(0, np.pi, 4):
        hair = np.abs((ROWS - y) * np.sin(angle) + (COLUMNS - x) * np.cos(angle)) < 1
        values = values - 60 * hair
    values[:, :8] = 20 * (ROWS[:, :8] % 8 > 3)
    return np.clip(values + rng.normal(0, 4, values.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("make", [eye_ground, deep_grey, ruler])
@pytest.mark.parametrize("count", [12, 30])
def test_unlike_pictures_with_one_frame_are_no_duplicates(make, count, tmp_path):
    paths = [tmp_path / f"{k:02d}.png" for k in range(count)]
    for k, path in enumerate(paths):
        Image.fromarray(make(k)).save(path)
    names = [path.stem for path in paths]
    assert duplicate_groups(names, paths, 0.96) == []
    brighter = np.clip(make(3).astype(float) * 1.1, 0, np.iinfo(make(3).dtype).max)
    Image.fromarray(brighter.astype(make(3).dtype)).save(tmp_path / "copy.png")
    assert duplicate_groups([*names, "copy"], [*paths, tmp_path / "copy.png"], 0.96) == [
        ["03", "copy"]
    ]


# --- few groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "told"),
    [
        ([3, 3, 3, 3], "4 folds are possible"),
        ([4, 4, 4], "not even 4 folds are possible"),
        ([2] * 8, "8 folds are possible"),
        ([60, *[1] * 40], "hold 60, 5, 5"),
    ],
)
def test_groups_that_leave_a_block_empty_or_swollen_are_refused(groups, told):
    named = [[f"p{g}_{k}" for k in range(size)] for g, size in enumerate(groups)]
    cases = [case for group in named for case in group]
    with pytest.raises(TaskError, match=told):
        make_split("X", cases, groups=[group for group in named if len(group) > 1])


@pytest.mark.parametrize("how", ["mapping", "pattern", "table"])
def test_patients_are_stated_by_mapping_pattern_or_table(how, own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=12, shape=(16, 16, 16))
    described = json.loads((folder / "dataset.json").read_text()) | {"folds": 4}
    names = [f"case_{k:02d}" for k in range(12)]
    if how == "mapping":
        described["patients"] = {name: f"p{k % 4}" for k, name in enumerate(names)}
    if how == "pattern":
        described["patients"] = "case_.([0-9])"  # case_00 and case_10 are of one patient
        described["folds"] = 8
    if how == "table":
        rows = [f"{name},p{k % 4}" for k, name in enumerate(names)]
        (folder / "groups.csv").write_text("case,patient\n" + "\n".join(rows) + "\n")
    (folder / "dataset.json").write_text(json.dumps(described))
    task = find_task("Boxes", tmp_path)
    split = load_split(TaskData(task, tmp_path), 3, 1.0)
    check_inputs(TaskData(task, tmp_path), split, tmp_path / "run")
    blocks = read_split(splits.split_path(TaskData(task, tmp_path)))["blocks"]
    assert len(blocks) == described["folds"] and not uneven(blocks)
    if how == "pattern":
        assert any({"case_00", "case_10"} <= set(block) for block in blocks)
    else:
        assert all(len({int(case[-2:]) % 4 for case in block}) == 1 for block in blocks)
    with pytest.raises(TaskError, match=f"no fold 9; folds are 0-{len(blocks) - 1}"):
        load_split(TaskData(task, tmp_path), 9, 1.0)


@pytest.mark.parametrize(
    ("patients", "table", "told"),
    [
        ("case_(", "", "no regular expression"),
        ("x(.+)", "", "gives case case_0. no patient"),
        ({}, "case,patient\ncase_00,a\n", "in the table or among the cases"),
        ({}, "name,patient\ncase_00,a\n", "columns case and patient"),
    ],
)
def test_patients_that_leave_cases_out_are_refused(patients, table, told, own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", patients=patients, shape=(16, 16, 16))
    if table:
        (folder / "groups.csv").write_text(table)
    with pytest.raises(TaskError, match=told):
        load_split(open_task("Boxes", tmp_path), 0, 1.0)


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["p01_t1", "p01_t2", "p02_t1", "p02_t2"], ["p01", "p02"]),
        (["12-left", "12-right", "13-left"], ["12"]),
        (["case_01", "case_02"], []),
        (["2021_01", "2021_02"], []),
        (["p01", "p02"], []),
    ],
)
def test_names_that_share_a_patients_number_are_noticed(names, stems):
    assert shared_stems(names) == stems


def test_shared_names_are_said_when_a_split_is_dealt(own_data, tmp_path, capsys):
    folder = own_data(tmp_path / "Boxes", shape=(16, 16, 16))
    for sub in ("imagesTr", "labelsTr"):
        for path in sorted((folder / sub).iterdir()):
            number = int(path.name[5:7])
            path.rename(path.with_name(f"p{number // 2}_{number % 2}{path.name[7:]}"))
    load_split(open_task("Boxes", tmp_path), 0, 1.0)
    assert "6 beginnings of names are shared by several cases (e.g. p0)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.nii.gz", "a.NII.GZ", "a.nii", "a.Nii", "./x/a.nii.gz"])
def test_a_case_is_named_without_its_ending(name):
    assert case_name(name) == "a"


def test_a_fold_without_test_cases_does_not_run(tmp_path):
    """A split with empty blocks that an earlier version dealt."""
    split = make_split("X", [f"c{k}" for k in range(40)])
    gone = set(split["blocks"][9])
    split["blocks"][9] = []
    for row in split["folds"]:
        row["train"] = [case for case in row["train"] if case not in gone]
    with pytest.raises(TaskError, match="fold 9 tests no case"):
        splits.select(split, 9, 1.0, tmp_path / "X.json")


# --- masks read without their meaning -------------------------------------------------------------


def palette(colours, indices):
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    return picture


def void_border(values, border):
    out = values.copy()
    edge = np.zeros_like(SQUARE)
    edge[3:19, 2:17] = True
    out[edge & ~SQUARE] = border
    return Image.fromarray(out)


def alpha(colour, opaque):
    return Image.fromarray(np.dstack([colour, colour, colour, opaque]).astype(np.uint8), "RGBA")


WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (128, 0, 0)
INK = SQUARE * np.uint8(255)
TOLD = {
    "palette from white": palette([WHITE, BLACK], ~SQUARE),
    "palette of black and red": palette([BLACK, RED], SQUARE),
    "palette of red and black": palette([RED, BLACK], ~SQUARE),
    "palette of greys 0 and 1": palette([(k, k, k) for k in range(256)], SQUARE),
    "one-bit": Image.fromarray(SQUARE),
    "opaque": alpha(INK, np.full_like(INK, 255)),
    "transparent where black": alpha(INK, INK),
    "grey 200": Image.fromarray(SQUARE * np.uint8(200)),
    "16-bit": Image.fromarray(SQUARE * np.uint16(65535)),
}
NOT_TOLD = {
    "0, 1 and a void border of 255": void_border(SQUARE.astype(np.uint8), 255),
    "white with a void border of 128": void_border(INK, 128),
    "three classes of grey": void_border(SQUARE * np.uint8(170), 85),
    "VOC's palette with its border": palette(
        [BLACK, RED, *[(k, 0, 9) for k in range(3, 256)], (224, 224, 192)],
        np.asarray(void_border(SQUARE.astype(np.uint8), 255)),
    ),
    "shape in the alpha channel alone": alpha(np.zeros_like(INK), INK),
    "white, shape in the alpha channel": alpha(np.full_like(INK, 255), INK),
    "alpha against the colours": alpha(INK, 255 - INK),
    "probabilities": Image.fromarray(
        np.clip(200 - 12 * np.hypot(*np.mgrid[-12:12, -10:10]), 0, 255).astype(np.uint8)
    ),
    "red on black": Image.fromarray(np.dstack([INK, INK * 0, INK * 0])),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_mask_is_read_by_its_meaning(name, tmp_path):
    TOLD[name].save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), SQUARE)


@pytest.mark.parametrize("name", NOT_TOLD)
def test_a_mask_that_cannot_be_told_is_refused_by_verify_and_by_training(name, tmp_path):
    folder = tmp_path / "Pictures"
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for k in range(12):
        noise = np.random.default_rng(k).integers(0, 255, SQUARE.shape).astype(np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{k:02d}.png")
        Image.fromarray(INK).save(folder / "masks" / f"{k:02d}.png")
    task = find_task("Pictures", tmp_path)
    assert verify(TaskData(task, tmp_path)) == []
    split = load_split(TaskData(task, tmp_path), 0, 1.0)
    check_inputs(TaskData(task, tmp_path), split, tmp_path / "run")
    NOT_TOLD[name].save(folder / "masks" / "05.png")
    assert [finding.path for finding in verify(TaskData(task, tmp_path))] == [
        str(folder / "masks/05.png")
    ]
    with pytest.raises(TaskError, match=r"05\.png"):
        check_inputs(TaskData(task, tmp_path), split, tmp_path / "run")
    with pytest.raises(TaskError, match=r"05\.png"):
        CaseStore(TaskData(task, tmp_path), ("05",), DataConfig(img_size=(8, 8))).get(0)


def test_a_black_and_white_mask_of_jpeg_is_read(tmp_path):
    big = np.kron(SQUARE, np.ones((8, 8), bool))
    Image.fromarray(big * np.uint8(255)).save(tmp_path / "m.jpg", quality=60)
    assert (read_mask(tmp_path / "m.jpg") != big).mean() < 0.01


@pytest.mark.parametrize(("value", "kind"), [(0, "empty"), (255, "full")])
def test_masks_that_are_all_empty_or_all_full_are_refused(value, kind, tmp_path):
    folder = tmp_path / "Pictures"
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for k in range(12):
        noise = np.random.default_rng(k).integers(0, 255, SQUARE.shape).astype(np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{k:02d}.png")
        Image.fromarray(np.full(SQUARE.shape, value, np.uint8)).save(
            folder / "masks" / f"{k:02d}.png"
        )
    task = find_task("Pictures", tmp_path)
    assert [
        f.fault
        for f in verify(TaskData(task, tmp_path))
        if f"every mask of Pictures is {kind}" in f.fault
    ]
    with pytest.raises(TaskError, match=f"every mask of Pictures is {kind}"):
        check_inputs(
            TaskData(task, tmp_path), load_split(TaskData(task, tmp_path), 0, 1.0), tmp_path / "run"
        )


def turned(path, values, orientation):
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    Image.fromarray(values).save(path, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "other", "shape", "mask_shape", "fine"),
    [
        (6, 1, (24, 20), (20, 24), True),  # the sides tell that the mask was drawn upright
        (6, 1, (24, 20), (24, 20), False),  # drawn on the raw pixels
        (6, 1, (24, 24), (24, 24), False),  # a square tells nothing
        (3, 1, (24, 20), (24, 20), False),
        (2, 1, (24, 20), (24, 20), False),
        (1, 8, (24, 20), (24, 20), False),
        (6, 6, (24, 24), (24, 24), True),
        (1, 1, (24, 20), (24, 20), True),
    ],
)
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_exif_on_one_side_alone(orientation, other, shape, mask_shape, fine, ending, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    turned(tmp_path / f"i.{ending}", noise, orientation)
    turned(tmp_path / "m.png", np.zeros(mask_shape, np.uint8), other)
    if fine:
        check_upright(tmp_path / f"i.{ending}", tmp_path / "m.png")
    else:
        with pytest.raises(FileFault, match="EXIF orientation"):
            check_upright(tmp_path / f"i.{ending}", tmp_path / "m.png")


def test_two_masks_of_one_stem_are_not_united(tmp_path):
    for sub in ("images", "masks"):
        (tmp_path / "P" / sub).mkdir(parents=True)
    Image.fromarray(INK).save(tmp_path / "P" / "images" / "x.png")
    Image.fromarray(INK).save(tmp_path / "P" / "masks" / "x.png")
    Image.fromarray(255 - INK).save(tmp_path / "P" / "masks" / "x.tif")
    with pytest.raises(TaskError, match=r"x\.tif: a second mask of case x, beside x\.png"):
        open_task("P", tmp_path).cases


# --- units, and tolerances in voxels --------------------------------------------------------------


def scan_file(path, affine, units=2, forms=("sform", "qform"), shape=(16, 14, 12), shift=0.0):
    voxels = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, affine)
    moved = affine.copy()
    moved[:3, 3] += shift
    image.set_sform(affine if "sform" in forms else None, int("sform" in forms))
    image.set_qform(moved if "qform" in forms else None, int("qform" in forms))
    image.header["xyzt_units"] = units
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    ("units", "stored", "mm"),
    [
        (2, 1.5, 1.5),
        (0, 1.5, 1.5),
        (10, 1.5, 1.5),
        (3, 900.0, 0.9),
        (1, 0.002, 2.0),
        (11, 700, 0.7),
    ],
)
def test_every_distance_is_in_mm_whatever_the_unit(units, stored, mm, own_data, tmp_path):
    affine = np.diag([stored, stored, stored, 1.0])
    folder = own_data(tmp_path / "Boxes", shape=(16, 16, 16))
    label = np.zeros((16, 14, 12), np.uint8)
    label[4:9, 4:9, 4:9] = 1
    image = nibabel.Nifti1Image(label, affine)
    image.header["xyzt_units"] = units
    nibabel.save(image, folder / "labelsTr" / "case_00.nii.gz")
    scan_file(folder / "imagesTr" / "case_00_0000.nii.gz", affine, units)
    task = find_task("Boxes", tmp_path)
    store = CaseStore(TaskData(task, tmp_path), ("case_00",), DataConfig(img_size=(8, 8, 8)))
    assert store.native(0).spacing_mm == pytest.approx((mm, mm, mm))
    assert np.allclose(np.diag(store.native(0).affine), [mm, mm, mm, 1])
    store.get(0)
    assert verify(TaskData(task, tmp_path)) == []


@pytest.mark.parametrize(("units", "spacing"), [(3, 1.0), (1, 1.0), (5, 1.0)])
def test_a_unit_that_cannot_be_is_refused(units, spacing, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz", np.diag([spacing] * 3 + [1.0]), units)
    with pytest.raises(FileFault, match="xyzt_units"):
        nifti.read_scan(path, 1)


def tilted(degrees, spacing):
    turn = np.radians(degrees)
    axes = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = -120.0, 80.0, 310.0
    return affine


@pytest.mark.parametrize("degrees", [0.1, 0.37, 10.8, 90.1, 179.9, 180.0])
@pytest.mark.parametrize("spacing", [(0.4, 0.4, 0.4), (1, 1, 5)])
def test_float32_forms_of_a_tilted_scan_mean_one_place(degrees, spacing, tmp_path):
    affine, large = tilted(degrees, spacing), (160, 150, 40)
    both = nifti.read_scan(scan_file(tmp_path / "a.nii", affine, shape=large), 1)
    qform = nifti.read_scan(scan_file(tmp_path / "b.nii", affine, forms=("qform",), shape=large), 1)
    assert np.allclose(both.affine, affine, atol=1e-4), "the sform decides"
    assert checks.pair_fault(both, qform) is None


@pytest.mark.parametrize(
    ("shift", "fine"), [(0.4 * TOLERANCE_VOXELS, True), (0.5, False), (3.0, False)]
)
def test_a_shift_is_judged_in_voxels(shift, fine, tmp_path):
    for spacing in (0.3, 1.0, 6.0):
        affine = np.diag([spacing] * 3 + [1.0])
        moved = affine.copy()
        moved[0, 3] += shift * spacing
        one = nifti.read_scan(scan_file(tmp_path / "a.nii", affine, forms=("sform",)), 1)
        two = nifti.read_scan(scan_file(tmp_path / "b.nii", moved, forms=("sform",)), 1)
        assert (checks.pair_fault(one, two) is None) == fine
        if not fine:
            with pytest.raises(FileFault, match="sform and qform disagree"):
                nifti.read_scan(scan_file(tmp_path / "c.nii", affine, shift=shift * spacing), 1)


# --- a part of a series, and channels taken for scans ---------------------------------------------


def ruin(path, how):
    raw = path.read_bytes()
    if how == "no mark":
        path.write_bytes(raw[:128] + b"DICX" + raw[132:])
    if how == "no preamble":
        path.write_bytes(raw[132:])
    if how == "empty":
        path.write_bytes(b"")
    if how == "text":
        path.write_text("404 not found")
    if how == "broken link":
        path.unlink()
        path.symlink_to("nowhere")
    if how.startswith("cut at"):
        path.write_bytes(raw[: int(how.split()[-1])])


@pytest.mark.parametrize(
    "how",
    [
        "no mark",
        "no preamble",
        "empty",
        "text",
        "broken link",
        "cut at 140",
        "cut at 500",
        "cut at 800",
    ],
)
def test_a_slice_that_cannot_be_read_is_named(how, dicom_series, tmp_path):
    stored = np.random.default_rng(0).integers(0, 900, (8, 7, 6)).astype(np.int16)
    paths = dicom_series(tmp_path / "s", stored, tilted(0, (1, 1, 2)))
    (tmp_path / "s" / "README.txt").write_text("notes")
    assert read_series(tmp_path / "s")[0].shape == (8, 7, 6)
    ruin(paths[-1], how)  # an end: the gap between slices does not tell
    with pytest.raises(DicomFault, match=paths[-1].name):
        read_series(tmp_path / "s")


@pytest.mark.parametrize("degrees", [10.8, 33.0, 179.97])
def test_a_tilted_series_is_read_and_written_with_one_form(degrees, dicom_series, tmp_path):
    stored = np.random.default_rng(0).integers(0, 900, (64, 60, 20)).astype(np.int16)
    dicom_series(tmp_path / "s", stored, tilted(degrees, (0.45, 0.45, 3)))
    path = series_as_nifti(tmp_path / "s", None, tmp_path / "series.nii")
    check_scan((path,), find_task("phantoms"))


@pytest.mark.parametrize(
    ("files", "scans", "refused"),
    [
        ([f"case_{k:04d}.nii.gz" for k in range(4)], [], 4),
        (["a_0000.nii", "a_0001.nii", "b.nii.gz"], ["b"], 2),
        (["p_0001.nii.gz", "p_0002.nii.gz"], ["p_0001", "p_0002"], 0),
        (["a_0000.nii.gz", "b_0000.nii.gz"], ["a", "b"], 0),
    ],
)
def test_channels_of_one_case_are_no_scans_of_their_own(files, scans, refused, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    found, failures = find_scans([tmp_path], find_task("phantoms"))
    assert [scan.name for scan in found] == scans and len(failures) == refused
    assert find_scans([tmp_path / files[0]], find_task("phantoms"))[1] == []


# --- a foreign commit ----------------------------------------------------------------------------


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("how", ["inside another repository", "GIT_DIR of another repository"])
def test_a_foreign_commit_is_not_recorded(how, tmp_path, monkeypatch):
    outer, inner = tmp_path / "theirs", tmp_path / "theirs" / "mvl-1.0"
    inner.mkdir(parents=True)
    git(outer, "init", "-q")
    git(outer, "commit", "-q", "--allow-empty", "-m", "theirs")
    if how.startswith("GIT_DIR"):
        inner = tmp_path / "elsewhere"
        inner.mkdir()
        monkeypatch.setenv("GIT_DIR", str(outer / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", str(inner))
    monkeypatch.setattr(machine, "ROOT", inner)
    assert machine.environment()["mvl"] == {"commit": None, "dirty": None}
    monkeypatch.delenv("GIT_DIR", raising=False)
    monkeypatch.delenv("GIT_WORK_TREE", raising=False)
    git(inner, "init", "-q")
    git(inner, "commit", "-q", "--allow-empty", "-m", "ours")
    assert len(machine.environment()["mvl"]["commit"]) == 40


# --- layouts, links, endings, read-only data, workers ---------------------------------------------


def decathlon(folder, own_data, how):
    """Own data in one of the layouts that people have."""
    channels = 2 if how in ("nnU-Net v1", "list of channels") else 1
    own_data(folder, channels=channels, shape=(16, 16, 16))
    described = json.loads((folder / "dataset.json").read_text())
    names = [f"case_{k:02d}" for k in range(12)]
    rows = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    if how == "list of channels":
        for row, name in zip(rows, names):
            row["image"] = [f"imagesTr/{name}_{channel:04d}.nii.gz" for channel in (0, 1)]
    if how in ("Decathlon", "links"):
        for name in names:
            (folder / "imagesTr" / f"{name}_0000.nii.gz").rename(
                folder / "imagesTr" / f"{name}.nii.gz"
            )
    if how == "links":
        shutil.move(folder / "imagesTr", folder.parent / "store")
        (folder / "imagesTr").mkdir()
        for name in names:
            (folder / "imagesTr" / f"{name}.nii.gz").symlink_to(
                folder.parent / "store" / f"{name}.nii.gz"
            )
    described = {
        "name": "x",
        "modality": described["channel_names"],
        "labels": {"0": "background", "1": "core", "2": "rim"},
        "numTraining": 12,
        "training": rows,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("how", ["Decathlon", "links", "nnU-Net v1", "list of channels"])
def test_each_layout_is_verified_and_read(how, own_data, tmp_path):
    folder = decathlon(tmp_path / "data" / "Task900_X", own_data, how)
    task = find_task("Task900_X", folder.parent)
    assert verify(TaskData(task, folder.parent)) == []
    cases = TaskData(task, folder.parent).cases
    assert [case.case_id for case in cases] == [f"case_{k:02d}" for k in range(12)]
    store = CaseStore(TaskData(task, folder.parent), ("case_00",), DataConfig(img_size=(8, 8, 8)))
    assert store.get(0)[0].shape[0] == len(task.channels)


@pytest.mark.parametrize("image", [[], 7, None, ["a", 3], "../x.nii.gz", "/etc/x.nii.gz"])
def test_what_lists_no_file_of_the_folder_is_refused(image, own_data, tmp_path):
    folder = decathlon(tmp_path / "Task900_X", own_data, "Decathlon")
    described = json.loads((folder / "dataset.json").read_text())
    described["training"][3]["image"] = image
    (folder / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(TaskError, match=r"dataset\.json"):
        find_task("Task900_X", tmp_path)


@pytest.mark.parametrize(
    ("kind", "told"), [("pipe", "a pipe"), ("circle", "levels of symbolic links")]
)
def test_what_is_no_regular_file_is_named_and_never_waited_for(kind, told, own_data, tmp_path):
    scan = next(
        iter(sorted((own_data(tmp_path / "Boxes", shape=(9, 8, 8)) / "imagesTr").iterdir()))
    )
    scan.unlink()
    if kind == "pipe":
        os.mkfifo(scan)
    else:
        scan.symlink_to(scan)
    words = [sys.executable, "-m", "mvl", "verify", str(tmp_path / "Boxes")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stdout.splitlines() if str(scan) in line]
    assert len(lines) == 1 and told in lines[0]


@pytest.mark.parametrize("ending", [".tif", ".TIFF", ".bmp", ".png"])
def test_what_trains_predicts(ending, tmp_path):
    Image.fromarray(INK).save(tmp_path / f"x{ending}")
    flat = dataclasses.replace(find_task("phantoms"), dims=2, layout="pairs")
    assert [scan.name for scan in find_scans([tmp_path], flat)[0]] == ["x"]


def test_the_split_of_read_only_data_lies_with_the_runs(own_data, tmp_path, monkeypatch):
    own_data(tmp_path / "Boxes", shape=(16, 16, 16))
    task, real = find_task("Boxes", tmp_path), splits.write_json

    def write(path, content):
        if path.parent == tmp_path / "splits":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, content)

    monkeypatch.setattr(splits, "write_json", write)
    monkeypatch.setattr(splits, "default_results_dir", lambda: tmp_path / "runs")
    first = load_split(TaskData(task, tmp_path), 0, 1.0)
    assert load_split(TaskData(task, tmp_path), 0, 1.0) == first
    assert len(list((tmp_path / "runs" / "splits").glob("Boxes-*.json"))) == 1


def test_what_loader_processes_get_can_be_pickled(few_shapes):
    config = dataclasses.replace(
        Config(), data=dataclasses.replace(DataConfig(), label_noise="region", label_noise_rate=1.0)
    )
    damage = label_damage(config, ("a",))
    again = pickle.loads(pickle.dumps(damage))
    task, root = few_shapes
    store = CaseStore(TaskData(task, root), ("shape_000",), DataConfig(img_size=(8, 8)), damage)
    assert again == damage and len(pickle.loads(pickle.dumps(store))) == 1
    assert "forkserver" in multiprocessing.get_all_start_methods() or os.name == "nt"
