"""A DICOM series: voxels where the scanner put them, in its unit, and a refusal with file and
remedy for all that is not an even stack."""

from __future__ import annotations

import builtins
import shutil

import nibabel
import numpy as np
import pytest

from mvl.datasets.dicom import DicomFault, find_series, is_dicom, read_series

pydicom = pytest.importorskip("pydicom")

STORED = np.random.default_rng(0).integers(0, 3000, (7, 6, 5)).astype(np.int16)


def oblique(spacing=(0.8, 1.25, 3.0)):
    """A rotated RAS affine."""
    a, b = np.deg2rad([25, -15])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.asarray(spacing), (12, -40, 7)
    return affine


@pytest.fixture
def series(dicom_series, tmp_path):
    """Files of a sound oblique series, to be broken."""
    return dicom_series(tmp_path / "s", STORED, oblique())


def change(path, **fields):
    """Set or (None) remove fields of one file."""
    data = pydicom.dcmread(path)
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path)


def test_voxels_and_places_are_the_scanners(series):
    (series[0].parent / "notes.txt").write_text("not DICOM")
    voxels, affine = read_series(series[0].parent)
    assert voxels.dtype == np.float32 and np.array_equal(voxels, STORED.astype(np.float32) - 1024)
    assert np.allclose(affine, oblique(), atol=1e-5), (
        "file names are out of order; positions decide"
    )


def test_nibabel_puts_a_voxel_at_the_same_place(series):
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    wrapper = wrapper_from_file(str(series[2]))
    # nibabel counts rows, then columns, in LPS
    theirs = np.diag([-1.0, -1, 1, 1]) @ wrapper.affine @ [4, 3, 0, 1]
    assert np.allclose(theirs, read_series(series[0].parent)[1] @ [3, 4, 2, 1], atol=1e-4)


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1, 2, 1]),
        np.diag([-1.0, -1, 2, 1]),
        np.diag([1.0, -2, -1.5, 1]),
        np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]),
    ],
    ids=["RAS", "LPS", "RPI", "sagittal"],
)
def test_every_orientation_gives_each_voxel_its_place(dicom_series, tmp_path, affine):
    dicom_series(tmp_path / "s", STORED, affine)
    voxels, found = read_series(tmp_path / "s")
    for index in ((0, 0, 0), (6, 5, 4), (2, 4, 1)):
        place = affine @ [*index, 1]
        x, y, z = np.rint(np.linalg.solve(found, place)[:3]).astype(int)
        assert voxels[x, y, z] == STORED[index] - 1024
    assert nibabel.aff2axcodes(found)[:2] == nibabel.aff2axcodes(affine)[:2]


def test_slope_and_intercept_are_each_slices_own(series):
    for k, path in enumerate(series):
        change(path, RescaleSlope=k + 1, RescaleIntercept=k)
    voxels, _ = read_series(series[0].parent)
    assert np.array_equal(
        voxels,
        STORED.astype(np.float32) * np.arange(1, 6, dtype=np.float32)
        + np.arange(5, dtype=np.float32),
    )


def test_one_series_is_chosen_of_several(series, dicom_series):
    other = dicom_series(series[0].parent / "deeper", STORED[:, :, ::-1], oblique())
    uids = [str(pydicom.dcmread(paths[0]).SeriesInstanceUID) for paths in (series, other)]
    assert {
        uid: len(paths) for uid, paths in find_series(series[0].parent).items()
    } == dict.fromkeys(uids, 5)
    with pytest.raises(
        DicomFault, match=r"2 series; choose one with --series: .*\(5 files\); .*\(5 files\)"
    ) as refusal:
        read_series(series[0].parent)
    assert "Secret" not in str(refusal.value)
    assert np.array_equal(
        read_series(series[0].parent, uids[1])[0], STORED[:, :, ::-1].astype(np.float32) - 1024
    )
    with pytest.raises(DicomFault, match=r"no series 1\.2; it holds"):
        read_series(series[0].parent, "1.2")


def test_a_folder_without_dicom_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DicomFault, match="no scan in this folder"):
        read_series(tmp_path)
    assert not is_dicom(tmp_path / "a.txt")


def gap(files):
    files[2].unlink()


def twice(files):
    shutil.copy(files[2], files[0].with_name("again"))


def uneven(files):
    change(
        files[4],
        ImagePositionPatient=[
            float(v) for v in (np.diag([-1.0, -1, 1, 1]) @ oblique() @ [0, 0, 4.2, 1])[:3]
        ],
    )


def tilted(files):
    for z, path in enumerate(files):
        change(
            path,
            ImagePositionPatient=[
                float(v) for v in (np.diag([-1.0, -1, 1, 1]) @ oblique() @ [0, 0.5 * z, z, 1])[:3]
            ],
        )


def alone(files):
    for path in files[1:]:
        path.unlink()


def compressed(files):
    data = pydicom.dcmread(files[1])
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 nonsense"])
    data["PixelData"].VR = "OB"
    data.save_as(files[1])


def cut(files):
    files[1].write_bytes(files[1].read_bytes()[:-20])


def field(**fields):
    return lambda files: change(files[1], **fields)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gap, r"6 mm apart where others are 3 mm: slices are missing; copy the whole series"),
        (twice, r"two slices in one place .*separate them, or convert"),
        (uneven, r"3\.6 mm apart where others are 3 mm: uneven slices; convert it"),
        (
            tilted,
            (
                r"do not lie straight above one another \(tilted gantry\?\); convert it to NIfTI"
                r" with dcm2niix"
            ),
        ),
        (alone, r"a series of one slice, not a volume; give the whole series"),
        (field(Rows=5), r"im007: Rows differs within the series \(5, the first slice has 6\)"),
        (field(PixelSpacing=[1, 1]), r"im007: PixelSpacing differs"),
        (field(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), r"ImageOrientationPatient differs"),
        (
            field(FrameOfReferenceUID="1.2.3"),
            r"FrameOfReferenceUID differs within the series; it mixes",
        ),
        (field(Modality="MR"), r"Modality differs"),
        (field(NumberOfFrames=3), r"im007: a multi-frame file, which is not read; convert it"),
        (field(PhotometricInterpretation="RGB"), r"im007: RGB pixels, expected MONOCHROME2"),
        (field(PhotometricInterpretation="MONOCHROME1"), r"MONOCHROME1"),
        (
            field(ImagePositionPatient=None),
            (
                r"im007: lacks ImagePositionPatient, so that its place is unknown; give the"
                r" scanner's original"
            ),
        ),
        (field(PixelData=None), r"im007: holds no pixels; copy the series again"),
        (cut, r"im007: its pixels cannot be read .*copy the series again"),
        (
            compressed,
            (
                r"im007: compressed as JPEG-LS Lossless.*decompress it with `gdcmconv --raw`, or"
                r" convert"
            ),
        ),
    ],
)
def test_what_is_no_even_stack_of_slices_is_refused(series, damage, message):
    damage(series)
    with pytest.raises(DicomFault, match=message) as refusal:
        read_series(series[0].parent)
    assert "Secret" not in str(refusal.value) and "4711" not in str(refusal.value)


def test_run_length_compression_is_undone(series):
    for path in series:
        data = pydicom.dcmread(path)
        data.compress(pydicom.uid.RLELossless)
        data.save_as(path)
    assert np.array_equal(read_series(series[0].parent)[0], STORED.astype(np.float32) - 1024)


def test_without_pydicom_the_remedy_is_named(series, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DicomFault, match=r"pip install -e '\.\[dicom\]'"):
        read_series(series[0].parent)
