"""New scans among files and folders, and masks that take over a scan's geometry and nothing else of
its header."""

from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pytest

from mvl.datasets.new_scans import (
    NewScan,
    check_scan,
    find_scans,
    nifti_like,
    series_as_nifti,
    skipped_images,
)
from mvl.datasets.nifti import FileFault
from mvl.datasets.registry import find_task

ONE = find_task("phantoms")
TWO = dataclasses.replace(ONE, channels=("T1w", "T2w"))
FLAT = dataclasses.replace(ONE, dims=2, layout="pairs")
VOXELS = np.random.default_rng(0).normal(100, 10, (6, 5, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """A folder with some names in it; the files are empty."""
    for name in (
        "a.nii.gz",
        "b.nii",
        "._a.nii.gz",
        "c_0000.nii.gz",
        "c_0001.nii.gz",
        "readme.txt",
        "p.png",
        "q.JPG",
    ):
        (tmp_path / name).touch()
    return tmp_path


def names(paths, task):
    scans, failures = find_scans(paths, task)
    return [scan.name for scan in scans], [failure.fault for failure in failures]


def test_each_scan_of_a_folder_is_found_once(folder):
    assert names([folder, folder / "a.nii.gz"], ONE) == (["a", "b"], names([folder], ONE)[1])
    assert names([folder], FLAT) == (["p", "q"], [])
    scans, failures = find_scans([folder], TWO)
    assert [scan.name for scan in scans] == ["a", "b", "c"] and failures == []
    assert scans[2].files == (folder / "c_0000.nii.gz", folder / "c_0001.nii.gz")


def test_one_file_stands_for_all_channels_and_a_further_one_is_refused(folder):
    assert find_scans([folder / "c_0001.nii.gz"], TWO)[0] == [
        NewScan("c", (folder / "c_0000.nii.gz", folder / "c_0001.nii.gz"), "nifti")
    ]
    (folder / "c_0002.nii.gz").touch()
    assert (
        "c_0002.nii.gz: channel 2, the run has 2 (T1w, T2w)"
        in names([folder / "c_0002.nii.gz"], TWO)[1][0]
    )


def test_nnunets_channel_number_is_dropped_where_every_name_has_it(folder):
    assert names([folder / "c_0000.nii.gz"], ONE)[0] == ["c"]
    assert names([folder / "c_0000.nii.gz", folder / "a.nii.gz"], ONE)[0] == ["c_0000", "a"]


def test_what_is_no_scan_is_named_and_the_rest_found(folder):
    (folder / "empty").mkdir()
    (folder / "slice").write_bytes(b"\0" * 128 + b"DICM")
    found, faults = names(
        [folder / n for n in ("readme.txt", "nothing.nii", "slice", "a.nii.gz", "p.png", "empty")],
        ONE,
    )
    assert found == ["a", "empty"], "a folder without scans may hold a DICOM series"
    for fault, words in zip(
        faults,
        (
            "readme.txt: not a scan that this run can segment; this run takes .nii.gz",
            "nothing.nii: no such file",
            "give the folder of its series",
            "p.png: not a scan",
        ),
    ):
        assert words in fault
    assert (
        "no picture in this folder" in names([folder / "empty"], FLAT)[1][0]
        and "takes .png" in names([folder / "a.nii.gz"], FLAT)[1][0]
    )


def test_an_image_that_is_not_read_is_named(folder):
    others = ["dir.nii.gz", "pair.hdr", "pair.img", "v.NRRD", "w.mha", "x.webp", "y.dcm"]
    (folder / others[0]).mkdir()
    for name in (*others[1:], "._v.nrrd"):
        (folder / name).touch()

    def skipped(task):
        return sorted(path.name for path in skipped_images([folder, folder / "a.nii.gz"], task))

    assert skipped(ONE) == sorted([*others, "p.png", "q.JPG"])
    assert skipped(FLAT) == sorted([*others, "a.nii.gz", "b.nii", "c_0000.nii.gz", "c_0001.nii.gz"])
    (folder / "series").mkdir()
    (folder / "series" / "1.dcm").touch()
    assert skipped_images([folder / "series"], ONE) == [], "one scan, of many files"


def test_two_scans_of_one_name_are_refused(folder):
    (folder / "b.nii.gz").touch()
    found, faults = names([folder / "b.nii", folder / "b.nii.gz"], ONE)
    assert (
        found == ["b"]
        and "b.nii.gz: its mask would have the name of" in faults[0]
        and "another --output" in faults[0]
    )


def test_scans_are_looked_at_before_they_are_used(tmp_path, nifti):
    good = nifti(tmp_path / "x_0000.nii.gz", VOXELS)
    check_scan((good,), ONE)
    check_scan((nifti(tmp_path / "four.nii", np.stack([VOXELS, VOXELS], -1)),), TWO)
    with pytest.raises(
        FileFault,
        match=r"x_0001.nii.gz: missing, the run was trained on T1w, T2w; put the file right",
    ):
        check_scan((good, tmp_path / "x_0001.nii.gz"), TWO)
    shifted = np.diag([1.5, 1, 1.2, 1])
    for name, voxels, task, words in (
        ("x_0001", VOXELS, TWO, "its grid differs from that of x_0000"),
        ("nan", VOXELS * np.nan, ONE, "NaN"),
        ("flat", VOXELS * 0, ONE, "constant image"),
        ("many", np.stack([VOXELS] * 3, -1), ONE, "expected 3 axes"),
    ):
        path = nifti(tmp_path / f"{name}.nii.gz", voxels, shifted)
        with pytest.raises(FileFault, match=rf"{name}.nii.gz: .*{words}"):
            check_scan((good, path) if task is TWO else (path,), task)
    good.write_bytes(good.read_bytes()[:-30])
    with pytest.raises(FileFault, match="x_0000.nii.gz: truncated"):
        check_scan((good,), ONE)


@pytest.mark.parametrize(("sform", "qform", "units"), [(1, 1, 2), (2, 0, 10), (0, 3, 2), (4, 2, 0)])
def test_a_mask_takes_over_the_geometry_and_no_text(tmp_path, sform, qform, units):
    turn, affine = np.deg2rad(20), np.eye(4)
    affine[:3, :3] = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, -1]]
    ) * [0.7, 1.1, 3]
    affine[:3, 3] = 5, -6, 7
    image = nibabel.Nifti1Image(VOXELS, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    (
        image.header["xyzt_units"],
        image.header["descrip"],
        image.header["db_name"],
        image.header["aux_file"],
    ) = (units, b"Secret Name", b"4711", b"x")
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Secret Name"))
    nibabel.save(image, tmp_path / "scan.nii")
    for values in (VOXELS > 100, np.stack([VOXELS, VOXELS], -1)):
        data = nifti_like(
            values.astype(np.uint8) if values.dtype == bool else values, tmp_path / "scan.nii"
        )
        (tmp_path / "mask.nii.gz").write_bytes(data)
        mask, scan = nibabel.load(tmp_path / "mask.nii.gz"), nibabel.load(tmp_path / "scan.nii")
        assert (
            np.array_equal(mask.affine, scan.affine)
            and mask.shape[:3] == scan.shape
            and np.array_equal(mask.get_fdata(), values)
        )
        for key in (
            "sform_code",
            "qform_code",
            "xyzt_units",
            "quatern_b",
            "quatern_c",
            "quatern_d",
            "srow_x",
            "srow_y",
            "srow_z",
            "qoffset_x",
        ):
            assert np.array_equal(mask.header[key], scan.header[key]), key
        assert np.array_equal(mask.header["pixdim"][:4], scan.header["pixdim"][:4])
        assert b"Secret" not in mask.to_bytes() and b"4711" not in mask.to_bytes()
        assert data == nifti_like(np.asarray(mask.dataobj), tmp_path / "scan.nii")


def test_a_series_becomes_a_file_without_the_patient(tmp_path, dicom_series):
    stored = np.random.default_rng(1).integers(0, 900, (6, 5, 4)).astype(np.int16)
    dicom_series(tmp_path / "s", stored, np.diag([-1.5, -1, 2, 1]))
    path = series_as_nifti(tmp_path / "s", None, tmp_path / "s.nii")
    file = nibabel.load(path)
    assert np.array_equal(file.get_fdata(), stored - 1024.0) and np.allclose(
        file.affine, np.diag([-1.5, -1, 2, 1])
    )
    assert b"Secret" not in path.read_bytes() and (
        int(file.header["sform_code"]),
        int(file.header["qform_code"]),
    ) == (1, 0)
    check_scan((path,), ONE)
