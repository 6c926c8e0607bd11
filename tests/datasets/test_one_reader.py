"""One reader, one verdict: what `mvl verify` passes, training, evaluation and prediction accept,
and the reverse, over NIfTI files made at random; the values are nibabel's."""

from __future__ import annotations

import dataclasses
import gzip
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.transforms.utils import allow_missing_keys_mode
from PIL import Image

from mvl.core.config import DataConfig
from mvl.datasets import checks, picture_faults, preflight, sandbox
from mvl.datasets.case_store import CaseStore
from mvl.datasets.masks import read_case
from mvl.datasets.new_scans import check_scan, find_scans
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.pictures import check_pixels, read_image
from mvl.datasets.preprocessing import ScanReader, preprocessing
from mvl.datasets.registry import find_task
from mvl.datasets.splits import load_split
from mvl.datasets.task import Case, TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify
from tests.faults.figures import record_figure

SHAPE = (12, 11, 10)
DATA = DataConfig(img_size=(8, 8, 8))
SCALES = [(1.0, 0.0), (2.0, -1024.0), (0.37, 3.5), (float("nan"), float("nan")), (0.0, 0.0)]
BROKEN_SCALES = [(float("inf"), 0.0), (1.0, float("nan"))]
TYPES = ["<u1", "<i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<f4", ">f4", "<f8", "<i8"]
UNITS = {0: 1.0, 2: 1.0, 10: 1.0, 3: 1000.0, 1: 0.001, 7: 1.0}
FORMS = ["both", "sform", "qform", "none", "bad qform", "apart", "rounded", "sheared"]


def affine_at_random(rng):
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if rng.random() < 0.5 else np.eye(3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(rng.uniform(0.3, 4, 3))
    affine[:3, 3] = rng.normal(0, 100, 3)
    return affine


def write_at_random(path, voxels, kind, affine, form, units, axes, rng, scale=(1.0, 0.0)):
    """Write a file whose header says what is asked for, sound or not."""
    factor = UNITS[units]
    header = nibabel.Nifti1Header(endianness="<" if kind[0] == "<" else ">")
    header.set_data_dtype(np.dtype(kind))
    voxels = voxels.reshape(voxels.shape + axes)
    header.set_data_shape(voxels.shape)
    stored = affine.copy()
    stored[:3] *= factor
    header["pixdim"][1:4] = np.linalg.norm(stored[:3, :3], axis=0)
    if form in ("both", "sform", "bad qform", "apart", "rounded", "sheared"):
        shown = stored.copy()
        if form == "sheared":
            shown[:3, 0] += 0.3 * shown[:3, 1]
        header.set_sform(shown, 1)
    if form in ("both", "qform", "apart", "rounded"):
        shown = stored.copy()
        if form == "apart":
            shown[:3, 3] += 5 * np.linalg.norm(stored[:3, 0])
        if form == "rounded":
            shown[:3, 3] += 0.004 * np.linalg.norm(stored[:3, :3], axis=0).min()
        header.set_qform(shown, 1)
    if form == "bad qform":
        header["qform_code"], header["quatern_b"], header["quatern_c"] = 1, 0.9, 0.9
    header["xyzt_units"] = units
    header["scl_slope"], header["scl_inter"] = scale
    header["vox_offset"], header["magic"] = 352, b"n+1"
    body = header.binaryblock + b"\0" * 4 + voxels.astype(kind).tobytes("F")
    packing = rng.choice(["gzip", "plain", "members", "cut"], p=[0.5, 0.35, 0.1, 0.05])
    if packing == "gzip":
        body = gzip.compress(body, 1)
    if packing == "members":
        body = gzip.compress(body[:700], 1) + gzip.compress(body[700:], 1)
    if packing == "cut":
        body = gzip.compress(body, 1)[:-200]
    path.write_bytes(body)


def make_case(folder, seed):
    """Write one image and its label, of forms that are sound more often than not."""
    rng = np.random.default_rng(seed)
    affine, label = affine_at_random(rng), np.zeros(SHAPE, np.uint8)
    label[3:9, 3:8, 3:7] = 1
    kind = rng.choice(TYPES)
    low, high = (0, 100) if kind[1:] in ("u1", "i1") else (0, 900)
    image = rng.integers(low, high, SHAPE)
    scale = SCALES[rng.integers(len(SCALES))] if rng.random() < 0.9 else BROKEN_SCALES[seed % 2]
    for path, voxels, dtype, scaling in (
        (folder / "imagesTr" / "a_0000.nii.gz", image, kind, scale),
        (folder / "labelsTr" / "a.nii.gz", label, rng.choice(["<u1", "<i2", ">i2", "<f4"]), (1, 0)),
    ):
        form = rng.choice(FORMS, p=[0.3, 0.2, 0.2, 0.05, 0.1, 0.05, 0.05, 0.05])
        units = int(rng.choice(list(UNITS), p=[0.1, 0.4, 0.2, 0.15, 0.1, 0.05]))
        axes = [(), (1,), (1, 1), (2,)][rng.choice(4, p=[0.6, 0.2, 0.15, 0.05])]
        twice = np.stack([voxels] * 2, -1) if axes == (2,) else voxels
        write_at_random(
            path, twice, dtype, affine, form, units, () if axes == (2,) else axes, rng, scaling
        )


def accepted(action):
    """Whether an action goes through; only the package's own refusals count as a no."""
    try:
        action()
    except (FileFault, TaskError):
        return False
    return True


def verdicts(folder, monkeypatch):
    """What verify, training, evaluation and prediction say about one case: (image and label,
    image)."""
    task = find_task(folder.name, folder.parent)
    case = TaskData(task, folder.parent).cases[0]
    preflight._SOUND.clear()
    faults = checks.check_case(task, case, folder, {})[0]
    store = CaseStore(TaskData(task, folder.parent), ("a",), DATA)

    def evaluate():
        store._transformed(0, store._digests(0))
        store.native(0)

    def predict():
        scans, failures = find_scans([case.image], task)
        assert len(scans) == 1 and not failures
        check_scan(scans[0].files, task)
        transform = preprocessing(DATA, crop=False)
        with allow_missing_keys_mode(transform):
            transform({"image": str(case.image)})

    pair = not faults, accepted(lambda: store.get(0)), accepted(evaluate)
    return case, pair, (case.image not in faults, accepted(predict))


def check_files(numbers, folder, monkeypatch):
    """The property over the files with these numbers; the shares of the kinds that came up."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    (folder / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1},'
        ' "numTraining": 1, "file_ending": ".nii.gz"}'
    )
    monkeypatch.setattr(sandbox, "check_case", checks.check_case)
    passed = 0
    for seed in numbers:
        make_case(folder, seed)
        case, pair, image = verdicts(folder, monkeypatch)
        assert len(set(pair)) == 1, (seed, pair)
        assert len(set(image)) == 1, (seed, image)
        if image[0]:
            raw = case.image.read_bytes()
            plain = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            file = nibabel.Nifti1Image.from_bytes(plain)
            scan, read = read_scan(case.image), ScanReader().read(str(case.image))
            want = np.asanyarray(file.dataobj).reshape(SHAPE)
            assert np.array_equal(scan.voxels, want) and np.array_equal(read.dataobj, want), seed
            unit = {1: 1000.0, 3: 0.001}.get(int(file.header["xyzt_units"]) & 7, 1.0)
            assert np.allclose(scan.affine[:3], file.affine[:3] * unit, rtol=1e-6), seed
            assert np.array_equal(read.affine, scan.affine), seed
        passed += pair[0]
    return passed / len(numbers)


def test_verify_training_evaluation_and_prediction_agree(tmp_path, monkeypatch):
    share = check_files(range(50), tmp_path / "Dataset001_Any", monkeypatch)
    assert 0.1 < share < 0.9, "both verdicts must come up"


@pytest.mark.faults
def test_one_verdict_over_500_files(tmp_path, monkeypatch):
    share = check_files(range(50, 550), tmp_path / "Dataset001_Any", monkeypatch)
    record_figure("scan_verdicts", 500, 500, f"seeds 50 to 549; {share:.0%} were taken")
    assert 0.1 < share < 0.9


@pytest.mark.parametrize(
    "name", ["Task04_Hippocampus_40", "Task02_Heart_half", "LeftAtrium2018_half"]
)
def test_real_scans_are_read_as_nibabel_reads_them(name):
    if not open_task(name).place.is_dir():
        pytest.skip(f"needs {name} under MVL_DATA")
    for case in open_task(name).cases[:3]:
        for path in (case.image, case.label):
            scan, file = read_scan(path), nibabel.load(path)
            assert np.array_equal(scan.voxels, np.asanyarray(file.dataobj))
            assert np.array_equal(scan.affine, file.affine)


MODES = ["L", "RGB", "P", "LA", "RGBA", "1", "I;16", "CMYK"]


def picture_at_random(values, rng):
    """A picture of a random mode, that means the values or does not, with or without a turn."""
    mode = MODES[rng.integers(len(MODES))]
    exif = Image.Exif()
    if rng.random() < 0.15:
        exif[0x0112] = int(rng.integers(2, 9))
    if mode == "I;16":
        return Image.fromarray(values.astype(np.uint16) * 257), "png", exif
    picture = Image.fromarray(values).convert(mode)
    if mode == "P" and rng.random() < 0.5:
        picture.putpalette(rng.integers(0, 256, 768).tolist())
    if mode in ("LA", "RGBA") and rng.random() < 0.5:
        picture.putalpha(Image.fromarray(rng.integers(0, 256, values.shape).astype(np.uint8)))
    if mode == "CMYK":
        return picture, str(rng.choice(["tif", "jpg"])), exif
    endings = {"L": ["png", "jpg", "tif", "bmp"], "RGB": ["png", "jpg", "tif"], "1": ["png", "bmp"]}
    return picture, str(rng.choice(endings.get(mode, ["png"]))), exif


def predicted(path):
    check_pixels(read_image(path, 1))


@pytest.mark.parametrize("start", [0, pytest.param(50, marks=pytest.mark.faults)])
def test_pictures_get_one_verdict(start, tmp_path):
    task = dataclasses.replace(
        find_task("shapes"), name=tmp_path.name, layout="pairs", channels=("grey",)
    )
    data = TaskData(task, tmp_path.parent)
    passed, count = 0, 50 if start == 0 else 500
    for seed in range(start, start + count):
        rng = np.random.default_rng(seed)
        shown = rng.integers(0, 256, (24, 20) if rng.random() < 0.7 else (24, 24)).astype(np.uint8)
        drawn = np.zeros_like(shown)
        drawn[5:15, 4:13] = rng.choice([1, 100, 200, 255])
        if rng.random() < 0.2:
            drawn[16:20, 4:13] = rng.choice([1, 128])
        paths = {}
        for name, values in (("image", shown), ("mask", drawn)):
            picture, ending, exif = picture_at_random(values, rng)
            paths[name] = tmp_path / f"{seed}_{name}.{ending}"
            picture.save(paths[name], exif=exif)
        case = Case(str(seed), paths["image"], paths["mask"])
        faults = dict(picture_faults.case_faults(data, case)[0])
        assert accepted(partial(read_case, case, 1)) == (not faults), (seed, faults)
        assert accepted(partial(predicted, case.image)) == (case.image not in faults), seed
        passed += not faults
    words = f"seeds {start} to {start + count - 1}; {passed / count:.0%} were taken"
    record_figure("picture_verdicts", count, count, words)
    assert 0.1 < passed / count < 0.9


STRAYS = ("notes.txt", "Thumbs.db", "._a_0000.nii.gz", ".DS_Store", "a_0000.nii.gz.md5", "x.docx")


@pytest.mark.parametrize("kind", ["scans", "pictures"])
def test_files_beside_the_data_stop_neither_verify_nor_training(kind, own_data, tmp_path):
    if kind == "scans":
        folder = own_data(tmp_path / "Some", shape=(9, 8, 8))
        beside = (folder, folder / "imagesTr", folder / "labelsTr")
    else:
        folder = tmp_path / "Some"
        beside = (folder / "images", folder / "masks")
        for sub in beside:
            sub.mkdir(parents=True)
        mask = np.zeros((24, 24), np.uint8)
        mask[5:15, 4:13] = 255
        for k in range(12):
            shown = np.random.default_rng(k).integers(0, 255, (24, 24)).astype(np.uint8)
            Image.fromarray(shown).save(folder / "images" / f"{k}.png")
            Image.fromarray(mask).save(folder / "masks" / f"{k}.png")
    for place in beside:
        (place / "more").mkdir()
        for name in STRAYS:
            (place / name).write_text("x")
    task = find_task("Some", tmp_path)
    found = verify(TaskData(task, tmp_path))
    assert [finding for finding in found if not finding.note] == []
    assert {"notes.txt", "x.docx"} <= {Path(finding.path).name for finding in found}
    data = TaskData(task, tmp_path)
    preflight.check_inputs(data, load_split(data, 0, 1.0), tmp_path / "run")
