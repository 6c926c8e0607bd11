"""Phantoms repeat to the byte, look as stated, and cannot be solved by a threshold."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from mvl.core.files import sha256_file
from mvl.datasets.phantoms import ensure_phantoms, make_phantom, recipe


def hashes(folder):
    return {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_same_seed_same_bytes_in_another_process(tmp_path):
    code = (
        "from pathlib import Path; from mvl.datasets.phantoms import ensure_phantoms;"
        f" ensure_phantoms(Path({str(tmp_path / 'b')!r}), 3)"
    )
    ensure_phantoms(tmp_path / "a", 3)
    subprocess.run([sys.executable, "-c", code], check=True)
    ensure_phantoms(tmp_path / "c", 3, seed=1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert not set(hashes(tmp_path / "a").values()) & set(hashes(tmp_path / "c").values())


def test_layout_is_the_decathlons(few_phantoms):
    folder = few_phantoms / "phantoms"
    described = json.loads((folder / "dataset.json").read_text())
    assert described["numTraining"] == len(described["training"]) == 12
    assert described["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
    for row in described["training"]:
        image, label = nibabel.load(folder / row["image"]), nibabel.load(folder / row["label"])
        assert (
            image.shape == label.shape
            and np.array_equal(image.affine, label.affine)
            and image.get_data_dtype() == np.int16
        )
        assert np.unique(label.dataobj).tolist() == [0, 1, 2]
        assert bytes(image.header["descrip"]).strip(b"\0") == b""


@pytest.fixture(scope="module")
def made():
    return [make_phantom(0, index) for index in range(24)]


def test_size_spacing_orientation_and_share_vary_as_stated(made):
    spacings = [np.abs(np.diag(affine)[:3]) for _, _, affine in made]
    extent = np.array([np.array(image.shape) * s for (image, _, _), s in zip(made, spacings)])
    assert extent.min() > 33 and extent.max() < 47
    assert (
        2 <= sum(s.max() > 1 for s in spacings) <= 12
        and 1 <= sum(affine[0, 0] < 0 for _, _, affine in made) <= 12
    )
    share = [np.mean(label > 0) for _, label, _ in made]
    assert min(share) > 0.015 and max(share) < 0.09


def test_structure_is_one_piece_of_two_touching_parts(made):
    from scipy.ndimage import binary_dilation
    from scipy.ndimage import label as pieces

    for _, label, _ in made:
        sizes = np.bincount(pieces(label > 0, np.ones((3, 3, 3)))[0].ravel())[1:]
        assert sizes.max() / sizes.sum() > 0.99
        assert (binary_dilation(label == 1) & (label == 2)).any()


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def test_no_threshold_or_band_of_intensity_finds_the_structure(made):
    scored = [((image - image.mean()) / image.std(), label > 0) for image, label, _ in made]
    cuts = np.linspace(-1, 4, 26)
    above = max(np.mean([dice(image > low, label) for image, label in scored]) for low in cuts)
    bands = [(low, high) for low in cuts[::2] for high in cuts[::2] if high > low]
    band = max(
        np.mean([dice((image > low) & (image < high), label) for image, label in scored])
        for low, high in bands
    )
    assert 0.2 < above < 0.6 and band < 0.6


def test_folder_appears_whole_is_kept_and_is_renewed_when_stale(tmp_path):
    folder = tmp_path / "phantoms"
    assert ensure_phantoms(folder, 2) == folder and list(tmp_path.glob("*partial*")) == []
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert (
        ensure_phantoms(folder, 2) == folder
        and (folder / "dataset.json").stat().st_mtime_ns == before
    )
    described = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(
        json.dumps(described | {"phantoms": described["phantoms"] | {"version": 0}})
    )
    ensure_phantoms(folder, 2)
    assert json.loads((folder / "dataset.json").read_text())["phantoms"] == recipe(2, 0)


def test_two_processes_that_ask_at_once_get_one_whole_folder(tmp_path):
    code = (
        "from pathlib import Path; from mvl.datasets.phantoms import ensure_phantoms;"
        f" ensure_phantoms(Path({str(tmp_path / 'p')!r}), 4)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert (
        len(list((tmp_path / "p" / "imagesTr").iterdir())) == 4
        and list(tmp_path.glob("*partial*")) == []
    )
