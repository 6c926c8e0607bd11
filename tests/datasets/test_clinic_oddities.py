"""What clinics, spreadsheets and operating systems do to files, beyond what was reported before:
each is read rightly or refused with its name, never read wrongly and never a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import struct
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvl.datasets.dicom import DicomFault, read_series
from mvl.datasets.nifti import FileFault, read_scan
from mvl.datasets.pictures import read_image
from mvl.datasets.preflight import check_inputs
from mvl.datasets.registry import find_task
from mvl.datasets.splits import load_split
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify

SHAPE = (9, 8, 8)


def accept(name: str, root: Path) -> None:
    """Verify, the split and the checks before training, all whole."""
    data = open_task(name, root)
    assert [finding for finding in verify(data) if not finding.note] == []
    check_inputs(data, load_split(data, 0, 1.0), root / "run")


def described(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


# --- descriptions and tables ---------------------------------------------------------------------

DESCRIBED = {
    "a byte order mark, as Notepad writes": (lambda said: said, "utf-8-sig"),
    "labels whose values are strings": (
        lambda said: said | {"labels": {"background": "0", "core": "1", "rim": "2"}},
        "utf-8",
    ),
    "channels as a list": (lambda said: said | {"channel_names": ["T1w"]}, "utf-8"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_is_read_with(name, own_data, tmp_path):
    change, encoding = DESCRIBED[name]
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    text = json.dumps(change(described(folder)))
    (folder / "dataset.json").write_text(text, encoding=encoding)
    accept("Boxes", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_description_in_another_encoding_is_named(encoding, own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    text = json.dumps(described(folder) | {"name": "Köpfe"}, ensure_ascii=False)
    (folder / "dataset.json").write_text(text, encoding=encoding)
    with pytest.raises(TaskError, match=r"dataset\.json: cannot be read"):
        find_task("Boxes", tmp_path)


ROWS = [(f"case_{k:02d}", f"p{k}") for k in range(10)]
TABLES = {
    "semicolons of a German spreadsheet": lambda: table(ROWS, mark=";"),
    "tabs": lambda: table(ROWS, mark="\t"),
    "capitals and blanks in its head": lambda: table(ROWS, head=("Case ", " Patient")),
    "Windows' line ends and a byte order mark": lambda: "\ufeff" + table(ROWS, end="\r\n"),
    "the files' endings": lambda: table([(f"{case}.nii.gz", who) for case, who in ROWS]),
    "blanks behind commas": lambda: table(ROWS).replace(",", ", "),
    "empty rows": lambda: table(ROWS) + ",\n\n",
}


def table(rows, mark=",", head=("case", "patient"), end="\n") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=mark, lineterminator=end).writerows([head, *rows])
    return out.getvalue()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_patients_is_read_with(name, own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    (folder / "groups.csv").write_text(TABLES[name](), encoding="utf-8", newline="")
    accept("Boxes", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_named(encoding, own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    text = table(ROWS).replace("p0", "Jürgen")
    (folder / "groups.csv").write_text(text, encoding=encoding)
    with pytest.raises(TaskError, match=r"groups\.csv: is not in UTF-8"):
        load_split(open_task("Boxes", tmp_path), 0, 1.0)


# --- names ---------------------------------------------------------------------------------------


def decathlon(folder: Path, name, listed) -> None:
    """Turn a folder into the Decathlon's layout with files named `name(k)`, listed as
    `listed(sub, k)`."""
    for k in range(10):
        for sub, channel in (("imagesTr", "_0000"), ("labelsTr", "")):
            path = folder / sub / f"case_{k:02d}{channel}.nii.gz"
            path.rename(path.with_name(f"{name(k)}.nii.gz"))
    rows = [{"image": listed("imagesTr", k), "label": listed("labelsTr", k)} for k in range(10)]
    said = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "core", "2": "rim"}}
    said |= {"numTraining": 10, "training": rows, "test": []}
    (folder / "dataset.json").write_text(json.dumps(said))


def test_accents_that_macos_took_apart_are_found(own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    apart, whole = (
        lambda k, form=form: unicodedata.normalize(form, f"Müller_{k}") for form in ("NFD", "NFC")
    )
    decathlon(folder, apart, lambda sub, k: f"./{sub}/{apart(k)}.nii.gz")
    said = (folder / "dataset.json").read_text()
    for text in (said, json.dumps(json.loads(said), ensure_ascii=False).replace("u\u0308", "ü")):
        (folder / "dataset.json").write_text(text, encoding="utf-8")
        names = [case.case_id for case in open_task("Boxes", tmp_path).cases]
        assert names == [whole(k) for k in range(10)]
    accept("Boxes", tmp_path)


def test_a_list_that_windows_wrote_is_read(own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    decathlon(folder, lambda k: f"a{k}", lambda sub, k: f".\\{sub}\\a{k}.nii.gz")
    assert [case.case_id for case in open_task("Boxes", tmp_path).cases] == [
        f"a{k}" for k in range(10)
    ]
    accept("Boxes", tmp_path)
    said = described(folder)
    said["training"][0]["image"] = "..\\..\\secret.nii.gz"
    (folder / "dataset.json").write_text(json.dumps(said))
    with pytest.raises(TaskError, match="leaves the folder"):
        find_task("Boxes", tmp_path)


def test_endings_in_capitals_are_read_in_nnunets_layout(own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    for path in sorted(folder.glob("*Tr/*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    accept("Boxes", tmp_path)


def pictures(folder: Path, image, mask, count: int = 12) -> Path:
    """Pictures named `image(k)` with masks named `mask(k)`."""
    drawn = np.zeros((24, 20), np.uint8)
    drawn[5:15, 4:12] = 255
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for k in range(count):
        shown = np.random.default_rng(k).integers(0, 255, drawn.shape).astype(np.uint8)
        Image.fromarray(shown).save(folder / "images" / image(k))
        Image.fromarray(drawn).save(folder / "masks" / mask(k))
    return folder


def test_accents_of_a_picture_and_its_mask_may_be_written_apart(tmp_path):
    pictures(
        tmp_path / "Pics",
        lambda k: unicodedata.normalize("NFC", f"Ü{k}.png"),
        lambda k: unicodedata.normalize("NFD", f"Ü{k}.png"),
    )
    accept("Pics", tmp_path)


@pytest.mark.parametrize("ending", ["_segmentation.png", "_GT.png", ".png"])
def test_pictures_whose_masks_are_called_otherwise_are_named(ending, tmp_path):
    pictures(tmp_path / "Pics", lambda k: f"IMG{k}.png", lambda k: f"img{k}{ending}")
    with pytest.raises(TaskError, match="IMG0.png: image without a mask"):
        find_task("Pics", tmp_path)


@pytest.mark.parametrize("kind", [".gif", ".webp"])
def test_a_set_does_not_shrink_to_the_pictures_that_are_read(kind, tmp_path):
    def named(k: int) -> str:
        return f"a{k}{kind if k > 11 else '.png'}"

    folder = pictures(tmp_path / "Pics", named, named, count=20)
    task = find_task("Pics", tmp_path)
    found = [finding for finding in verify(TaskData(task, tmp_path)) if not finding.note]
    assert {Path(finding.path).suffix for finding in found} == {kind} and len(found) == 16
    with pytest.raises(TaskError, match="convert it to PNG"):
        load_split(TaskData(task, tmp_path), 0, 1.0)
    for path in folder.glob(f"*/*{kind}"):
        path.unlink()
    accept("Pics", tmp_path)


# --- voxels and pixels ---------------------------------------------------------------------------


def test_a_mask_of_255_scaled_to_about_1_shows_why_it_is_refused(own_data, tmp_path):
    folder = own_data(tmp_path / "Boxes", cases=10, shape=SHAPE)
    path = folder / "labelsTr" / "case_03.nii.gz"
    image = nibabel.load(path)
    drawn = (np.asanyarray(image.dataobj) > 0).astype(np.uint8) * 255
    nibabel.save(nibabel.Nifti1Image(drawn, image.affine), path)
    changed_scale = nibabel.Nifti1Image(drawn, image.affine)
    changed_scale.set_sform(image.affine, 1)
    raw = bytearray(changed_scale.to_bytes())
    raw[112:116] = struct.pack("<f", 1 / 255)
    path.write_bytes(gzip.compress(bytes(raw)))
    [finding] = verify(open_task("Boxes", tmp_path))
    assert "1.00000006" in finding.fault, "not '1 is no label of 0, 1, 2'"


def test_a_nifti_2_file_is_called_one(tmp_path):
    image = nibabel.Nifti2Image(np.zeros(SHAPE, np.uint8), np.eye(4))
    for path in (tmp_path / "a.nii", tmp_path / "a.nii.gz"):
        nibabel.save(image, path)
        with pytest.raises(FileFault, match="a NIfTI-2 file"):
            read_scan(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_in_lab_colours_is_refused(channels, tmp_path):
    picture = Image.new("LAB", (20, 24))
    picture.putpixel((3, 3), (200, 90, 90))
    picture.save(tmp_path / "x.tif")
    with pytest.raises(FileFault, match="LAB|L\\*a\\*b"):
        read_image(tmp_path / "x.tif", channels)


# --- DICOM ---------------------------------------------------------------------------------------

SERIES = {
    "a position of two numbers": ({"ImagePositionPatient": [1, 2]}, None, "ImagePositionPatient"),
    "axes of length 0": ({"ImageOrientationPatient": [0] * 6}, None, "ImageOrientationPatient"),
    "a spacing of 0": ({"PixelSpacing": [0, 0]}, None, "PixelSpacing"),
    "a slope of 0": ({"RescaleSlope": 0}, None, "RescaleSlope 0"),
    "an intercept that is no number": ({"RescaleIntercept": "nan"}, None, "RescaleIntercept nan"),
    "one slice without its slope": ({"RescaleSlope": None}, 2, "RescaleSlope differs"),
    "one slice turned": (
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        2,
        "ImageOrientationPatient differs",
    ),
    "no positions": ({"ImagePositionPatient": None}, None, "lacks ImagePositionPatient"),
    "inverted greys": ({"PhotometricInterpretation": "MONOCHROME1"}, None, "MONOCHROME1"),
    "several frames": ({"NumberOfFrames": 3}, None, "multi-frame"),
}


def edit(paths: list[Path], fields: dict) -> None:
    import pydicom

    for path in paths:
        data = pydicom.dcmread(path)
        for name, value in fields.items():
            setattr(data, name, value)
            if value is None:
                delattr(data, name)
        data.save_as(path)


@pytest.mark.parametrize("name", SERIES)
def test_a_series_is_refused_with(name, dicom_series, tmp_path):
    fields, which, told = SERIES[name]
    stored = np.random.default_rng(0).integers(0, 900, (8, 7, 6)).astype(np.int16)
    paths = dicom_series(tmp_path / "s", stored, np.diag([1.0, 1, 2, 1]))
    edit(paths if which is None else [paths[which]], fields)
    with pytest.raises(DicomFault, match=told):
        read_series(tmp_path / "s")


def test_slopes_may_differ_from_slice_to_slice_as_in_pet(dicom_series, tmp_path):
    stored = np.random.default_rng(0).integers(1, 900, (8, 7, 6)).astype(np.int16)
    paths = dicom_series(tmp_path / "s", stored, np.diag([1.0, 1, 2, 1]))
    before = read_series(tmp_path / "s")[0]
    edit([paths[2]], {"RescaleSlope": 2})
    after = read_series(tmp_path / "s")[0]
    changed_slices = (before != after).any((0, 1))
    assert changed_slices.sum() == 1
    at = int(changed_slices.argmax())
    assert np.array_equal(after[:, :, at] + 1024, 2 * (before[:, :, at] + 1024))


def test_a_cds_list_of_its_files_is_no_slice(dicom_series, tmp_path):
    stored = np.random.default_rng(0).integers(0, 900, (8, 7, 6)).astype(np.int16)
    paths = dicom_series(tmp_path / "s", stored, np.diag([1.0, 1, 2, 1]))
    for name in ("DICOMDIR", "Thumbs.db", "._im000", ".DS_Store", "desktop.ini", "report.pdf"):
        (tmp_path / "s" / name).write_bytes(b"junk" * 50)
    assert read_series(tmp_path / "s")[0].shape == (8, 7, 6)
    shutil.copy(paths[0], tmp_path / "s" / "a copy")
    with pytest.raises(DicomFault, match="two slices in one place"):
        read_series(tmp_path / "s")
