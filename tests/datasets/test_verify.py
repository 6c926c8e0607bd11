"""Every kind of bad file is found, by name, with a remedy; a sound task has no finding."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import re
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mvl.datasets.nifti import FileFault, decode, nifti_bytes
from mvl.datasets.registry import find_task
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify

REAL = Path(os.environ.get("MVL_DATA", ""))


def unhashed(toy):
    """The toy task without its manifest, so that only the checks of content can find what is
    wrong."""
    task, root = toy
    (root / "Toy" / "manifest.json").unlink()
    return (
        task,
        root,
        root / "Toy" / "imagesTr" / "phantom_003.nii.gz",
        root / "Toy" / "labelsTr" / "phantom_003.nii.gz",
    )


def the_finding(task, root, path):
    findings = verify(TaskData(task, root))
    assert [f.path for f in findings] == [str(path)], findings
    assert "mvl fetch Toy" in findings[0].remedy
    return findings[0].fault


def test_sound_task_has_no_finding(toy):
    assert verify(TaskData(*toy)) == []


def test_the_committed_scans_are_sound():
    assert verify(open_task("hippocampus_40")) == []


def test_every_bit_flip_hole_and_truncation_is_found(toy):
    task, root = toy
    path = root / "Toy" / "imagesTr" / "phantom_005.nii.gz"
    whole, draw = path.read_bytes(), random.Random(0)
    from mvl.datasets.checks import check_case
    from mvl.datasets.decathlon import read_cases

    case = next(c for c in read_cases(root / "Toy") if c.case_id == "phantom_005")
    manifest = TaskData(task, root).manifest
    for trial in range(90):
        data, place = bytearray(whole), draw.randrange(len(whole) - 512)
        if trial % 3 == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif trial % 3 == 1:
            data[place : place + 512] = bytes(512)
        else:
            data = data[: -draw.choice([1, 4, 8, 500])]
        path.write_bytes(data)
        for known in (manifest, {}) if trial % 3 else (manifest,):
            assert list(check_case(task, case, root / "Toy", known)[0]) == [case.image], (
                trial,
                place,
            )


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"hello, this is text", "neither gzip nor NIfTI"),
        (gzip.compress(b"short"), "a NIfTI-1 header needs 352"),
        (gzip.compress(b"x" * 500), "not a NIfTI-1 header"),
        # gzip writes the time: two workers named these cases apart
    ],
    ids=["empty", "pointer", "page", "text", "short", "no header"],
)
def test_files_that_are_no_scans(toy, data, fault):
    task, root, image, _ = unhashed(toy)
    image.write_bytes(data)
    assert fault in the_finding(task, root, image)


def patched(path, offset, form, *values):
    """Overwrite header bytes inside the gzip stream."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<" + form, data, offset, *values)
    path.write_bytes(gzip.compress(bytes(data)))


HEADER_FAULTS = {
    "dims 30000 cubed": (40, "8h", (3, 30000, 30000, 30000, 1, 1, 1, 1), "voxels, the cap is"),
    "dims beyond the file": (42, "h", (30000,), "cannot hold|truncated"),
    "dim 0": (42, "h", (0,), "impossible dimensions"),
    "negative dim": (42, "h", (-5,), "impossible dimensions"),
    "ndim 0": (40, "h", (0,), "impossible dimensions"),
    "ndim 9": (40, "h", (9,), "impossible dimensions"),
    "four axes": (40, "6h", (4, 10, 10, 10, 2, 1), "expected 3 axes"),
    "two axes": (40, "h", (2,), "expected 3 axes"),
    "one slice": (46, "h", (1,), "a slice, not a volume"),
    "RGB": (70, "2h", (128, 24), "voxels of type"),
    "complex": (70, "2h", (32, 64), "voxels of type complex64"),
    "unknown type": (70, "h", (999,), "unknown voxel type"),
    "wrong bitpix": (72, "h", (32,), "bitpix 32"),
    "offset 0": (108, "f", (0.0,), "voxels begin at byte 0"),
    "offset beyond": (108, "f", (4000.0,), "no extension"),
    "offset nan": (108, "f", (float("nan"),), "voxels begin at byte nan"),
    "spacing 0": (80, "f", (0.0,), "spacing"),
    "spacing nan": (80, "f", (float("nan"),), "spacing"),
    "spacing 1000 mm": (80, "f", (1000.0,), "spacing"),
    "negative spacing": (80, "f", (-1.0,), "spacing"),
    "no orientation": (252, "2h", (0, 0), "orientation unknown"),
    "sform moved": (292, "f", (777.0,), "sform and qform disagree"),
    "sform nan": (292, "f", (float("nan"),), "sform is singular or not finite"),
    "sform singular": (280, "12f", (0.0,) * 12, "sform is singular"),
    "slope infinite": (112, "2f", (float("inf"), 0.0), "intensity scale"),
    "intercept nan": (112, "2f", (2.0, float("nan")), "intensity scale"),
    "slope 1e38": (112, "2f", (1e38, 0.0), "beyond float32"),
    "magic": (344, "4s", (b"ni1\0",), "not a NIfTI-1 header"),
}


@pytest.mark.parametrize("name", HEADER_FAULTS)
def test_header_faults(toy, name):
    offset, form, values, fault = HEADER_FAULTS[name]
    task, root, image, _ = unhashed(toy)
    patched(image, offset, form, *values)
    assert re.search(fault, the_finding(task, root, image))


def save(path, voxels, affine=None):
    path.write_bytes(nifti_bytes(voxels, np.eye(4) if affine is None else affine))


def voxels_of(path):
    file = nibabel.load(path)
    return np.array(file.dataobj), file.affine


def test_bomb_is_refused_without_unpacking_it(toy):
    task, root, image, _ = unhashed(toy)
    head = gzip.decompress(image.read_bytes())[:352]
    image.write_bytes(gzip.compress(head + bytes(300_000_000), 1))
    assert "holds more than" in the_finding(task, root, image)


def test_sheared_affine(toy):
    task, root, image, _ = unhashed(toy)
    voxels, affine = voxels_of(image)
    file = nibabel.Nifti1Image(voxels, affine)
    sheared = np.eye(4)
    sheared[:2, 1] = 0.6, 0.8
    file.set_sform(sheared, code=1)
    file.set_qform(None, code=0)
    image.write_bytes(gzip.compress(file.to_bytes()))
    patched(image, 80, "3f", 1.0, 1.0, 1.0)
    assert "sheared" in the_finding(task, root, image)


@pytest.mark.parametrize(
    ("value", "fault"), [(np.nan, "1 voxels are NaN"), (np.inf, "1 voxels are NaN")]
)
def test_one_bad_voxel(toy, value, fault):
    task, root, image, _ = unhashed(toy)
    voxels, affine = voxels_of(image)
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 5] = value
    save(image, voxels, affine)
    assert fault in the_finding(task, root, image)


def test_constant_image(toy):
    task, root, image, _ = unhashed(toy)
    voxels, affine = voxels_of(image)
    save(image, np.full_like(voxels, 7), affine)
    assert "constant image" in the_finding(task, root, image)


@pytest.mark.parametrize(
    ("value", "dtype", "shown"),
    [
        (7, np.uint8, "7 (1 voxels)"),
        (0.999, np.float32, "0.999"),
        (2.5, np.float32, "2.5"),
        (-1, np.int16, "-1 (1"),
        (255, np.uint8, "255 (1"),
        (2**40 + 1, np.int64, "1.09951e+12"),
        (np.nan, np.float32, "nan"),
    ],
)
def test_undeclared_label_values(toy, value, dtype, shown):
    task, root, _, label = unhashed(toy)
    voxels, affine = voxels_of(label)
    voxels = voxels.astype(dtype)
    voxels[0, 0, 0] = value
    label.write_bytes(gzip.compress(nibabel.Nifti1Image(voxels, affine, dtype=dtype).to_bytes()))
    fault = the_finding(task, root, label)
    assert "1 values are not labels" in fault and shown in fault


def test_empty_label(toy):
    task, root, _, label = unhashed(toy)
    voxels, affine = voxels_of(label)
    save(label, voxels * 0, affine)
    assert the_finding(task, root, label) == "no foreground voxel"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda v, a: (v[:-2], a), "differs from the image's"),
        (lambda v, a: (v, a + np.outer([1, 0, 0, 0], [0, 0, 0, 0.01])), "away from its image"),
        (lambda v, a: (v, a @ np.diag([-1.0, -1.0, 1.0, 1.0])), "away from its image"),
    ],
)
def test_label_that_lies_elsewhere(toy, change, fault):
    task, root, _, label = unhashed(toy)
    save(label, *change(*voxels_of(label)))
    assert fault in the_finding(task, root, label)


def test_swapped_image_and_label(toy):
    task, root, image, label = unhashed(toy)
    scan, drawn = image.read_bytes(), label.read_bytes()
    image.write_bytes(drawn)
    label.write_bytes(scan)
    findings = {f.path: f.fault for f in verify(TaskData(task, root))}
    assert (
        "swapped" in findings[str(image)]
        and "not labels" in findings[str(label)]
        and len(findings) == 2
    )


def test_one_scan_under_two_names_even_when_packed_otherwise(toy):
    task, root, image, label = unhashed(toy)
    for path in (image, label):
        twin = path.with_name("phantom_001.nii.gz")
        path.write_bytes(gzip.compress(gzip.decompress(twin.read_bytes()), 9))
    assert "same voxels as phantom_001.nii.gz" in the_finding(task, root, image)


def test_missing_stray_link_folder_and_unlisted(toy):
    task, root = toy
    folder = root / "Toy"
    (folder / "labelsTr" / "phantom_002.nii.gz").unlink()
    (folder / "imagesTr" / "phantom_004.nii.gz").unlink()
    (folder / "imagesTr" / "phantom_004.nii.gz").symlink_to("nowhere")
    (folder / "imagesTr" / "new.nii.gz").write_bytes(b"x")
    (folder / "imagesTr" / "._phantom_001.nii.gz").write_bytes(b"x")
    (folder / "imagesTr" / ".DS_Store").write_bytes(b"x")
    described = json.loads((folder / "dataset.json").read_text())
    described["training"].pop()
    (folder / "dataset.json").write_text(json.dumps(described))
    found = {
        Path(f.path).relative_to(folder).as_posix(): f.fault for f in verify(TaskData(task, root))
    }
    assert found == {
        "dataset.json": "lists 11 cases, Toy has 12",
        "imagesTr/new.nii.gz": "stray file: not listed in dataset.json, it is not read",
        "imagesTr/phantom_011.nii.gz": "stray file: not listed in dataset.json, it is not read",
        "labelsTr/phantom_011.nii.gz": "stray file: not listed in dataset.json, it is not read",
        "labelsTr/phantom_002.nii.gz": "missing",
        "imagesTr/phantom_004.nii.gz": "broken link",
    }


def test_a_file_that_the_manifest_does_not_know(toy):
    task, root = toy
    path = root / "Toy" / "manifest.json"
    value = json.loads(path.read_text())
    value["files"].pop("imagesTr/phantom_006.nii.gz")
    path.write_text(json.dumps(value))
    assert (
        the_finding(task, root, root / "Toy" / "imagesTr" / "phantom_006.nii.gz")
        == "not in the manifest"
    )


def test_several_channels_are_expected_by_number(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(6, 6, 6, 2)).astype(np.float32)
    assert decode(nifti_bytes(voxels, np.eye(4)), 2).voxels.shape == (6, 6, 6, 2)
    with pytest.raises(FileFault, match="expected 3 axes and 4 channels"):
        decode(nifti_bytes(voxels, np.eye(4)), 4)


@pytest.mark.parametrize(
    "name",
    [
        "Task02_Heart_half",
        "LeftAtrium2018_half",
        "ISIC2017_256",
        "PH2_256",
        "Kvasir_SEG_256",
        "CVC_ClinicDB_256",
    ],
)
def test_reduced_copies_are_whole(name):
    """The heart holds one image twice, which the registry knows."""
    if not (REAL / name).is_dir():
        pytest.skip(f"MVL_DATA has no {name}")
    assert verify(open_task(name)) == []


@pytest.mark.skipif(
    not (REAL / "Task02_Heart_half").is_dir(),
    reason="MVL_DATA has no Task02_Heart_half",
)
def test_one_image_twice_is_a_fault_unless_the_registry_keeps_it_together():
    [finding] = verify(TaskData(dataclasses.replace(find_task("Task02_Heart_half"), together=())))
    assert "la_026" in finding.path and "the same voxels as la_005" in finding.fault
