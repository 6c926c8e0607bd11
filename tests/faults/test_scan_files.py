"""Group C: NIfTI files that may be anything are refused by name, before training and by `mvl
verify`, and nothing beside them changes."""

from __future__ import annotations

import gzip
import random
import re
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mvl.core import files
from mvl.core.config import DataConfig
from mvl.datasets import sandbox
from mvl.datasets.case_store import CaseStore
from mvl.datasets.decathlon import read_cases
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData
from mvl.datasets.verify import verify
from tests.faults.figures import record_figure

ROWS = [f"C{k}" for k in range(1, 21)]
NOT_HERE: dict[str, str] = {}
DATA = DataConfig(img_size=(8, 8, 8))
NAME = "toy_003"
Change = Callable[[Path], object]


def content(data: bytes) -> Change:
    return lambda path: path.write_bytes(data)


def edit(change: Callable[[bytearray], object]) -> Change:
    """Change the compressed bytes."""

    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        new = change(data)
        path.write_bytes(new if isinstance(new, bytes) else data)

    return apply


def header(offset: int, form: str, *values: object) -> Change:
    """Change the header inside the gzip stream, whose checksum is then right again."""

    def apply(path: Path) -> None:
        data = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<" + form, data, offset, *values)
        path.write_bytes(gzip.compress(bytes(data)))

    return apply


def voxels(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Change:
    """Other voxels, written well."""

    def apply(path: Path) -> None:
        image = nibabel.Nifti1Image(
            change(np.asarray(nibabel.load(path).dataobj)), np.eye(4) if affine is None else affine
        )
        image.set_sform(image.affine, code=1)
        image.set_qform(image.affine, code=1, strip_shears=True)
        path.write_bytes(gzip.compress(image.to_bytes()))

    return apply


def one(value: float) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[1, 2, 3] = value
        return array

    return voxels(change)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.nii.gz")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def extension(path: Path) -> None:
    """An extension that says it is longer than the room before the voxels."""
    data = gzip.decompress(path.read_bytes())
    head = data[:108] + struct.pack("<f", 368.0) + data[112:348]
    path.write_bytes(
        gzip.compress(head + b"\1\0\0\0" + struct.pack("<2i", 4000, 6) + bytes(8) + data[352:])
    )


def bomb(path: Path) -> None:
    """Zeros to 3 GB behind a header that announces no more than the file could hold."""
    start = gzip.decompress(path.read_bytes())[:352]
    path.write_bytes(gzip.compress(start) + gzip.compress(bytes(2**26), 1) * 48)


FLIP = edit(lambda data: data.__setitem__(len(data) // 2, data[len(data) // 2] ^ 4))
SHEAR = np.array([[1.0, 0.6, 0, 0], [0, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
FAULTS: dict[str, tuple[Change, str]] = {
    "C1-empty": (content(b""), "empty file"),
    "C1-text": (content(b"hello, this is text"), "neither gzip nor NIfTI"),
    "C1-lfs": (
        content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "Git-LFS pointer.*git lfs pull",
    ),
    "C1-html": (content(b"<!DOCTYPE html><html>"), "HTML"),
    "C2-truncated": (edit(lambda data: bytes(data[: len(data) // 2])), "truncated"),
    "C3-tail": (edit(lambda data: bytes(data[:-8])), "truncated"),
    "C3-crc": (edit(lambda data: data.__setitem__(-6, data[-6] ^ 1)), "damaged gzip stream"),
    "C3-flip": (FLIP, "its bytes differ from the manifest"),
    "C3-hole": (
        edit(lambda data: data.__setitem__(slice(900, 1412), bytes(512))),
        "damaged gzip stream|truncated",
    ),
    "C6-dims": (header(40, "8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "voxels, the cap is"),
    "C6-beyond": (header(42, "h", 30000), "cannot hold|truncated"),
    "C7-bomb": (bomb, "holds more than"),
    "C7-cap": (header(40, "8h", 3, 1200, 1200, 1200, 1, 1, 1, 1), "the cap is"),
    "C8-zero": (header(42, "h", 0), "impossible dimensions"),
    "C8-negative": (header(42, "h", -5), "impossible dimensions"),
    "C8-ndim0": (header(40, "h", 0), "impossible dimensions"),
    "C8-ndim9": (header(40, "h", 9), "impossible dimensions"),
    "C9-offset0": (header(108, "f", 0.0), "voxels begin at byte 0"),
    "C9-beyond": (header(108, "f", 4000.0), "no extension"),
    "C9-extension": (extension, "header extension of 4000 bytes"),
    "C10-intercept": (header(112, "2f", 2.0, float("nan")), "intensity scale"),
    "C10-infinite": (header(112, "2f", float("inf"), 0.0), "intensity scale"),
    "C11-slope": (header(112, "2f", 1e38, 0.0), "beyond float32"),
    "C11-float64": (voxels(lambda v: v.astype(np.float64) * 1e300), "beyond float32"),
    "C12-nan": (one(np.nan), "1 voxels are NaN"),
    "C12-infinite": (one(np.inf), "1 voxels are NaN or infinite"),
    "C13-nan": (voxels(lambda v: np.full(v.shape, np.nan, np.float32)), "4096 voxels are NaN"),
    "C13-constant": (voxels(lambda v: np.full_like(v, 7)), "constant image"),
    "C14-4D": (voxels(lambda v: np.stack([v, v], -1)), "expected 3 axes"),
    "C14-5D": (voxels(lambda v: np.stack([v, v], -1)[..., None, :]), "expected 3 axes"),
    "C14-2D": (voxels(lambda v: v[:, :, 0]), "expected 3 axes"),
    "C14-slice": (voxels(lambda v: v[:, :, :1]), "a slice, not a volume|expected 3 axes"),
    "C15-rgb": (header(70, "2h", 128, 24), "voxels of type"),
    "C15-complex": (voxels(lambda v: v.astype(np.complex64)), "voxels of type complex64"),
    "C16-forms": (header(292, "f", 777.0), r"sform and qform disagree by up to .* mm: \[\["),
    "C17-sheared": (voxels(lambda v: v, SHEAR), r"sheared, as by a tilted gantry: \[\["),
    "C17-singular": (header(280, "12f", *[0.0] * 12), r"sform is singular or not finite: \[\["),
    "C17-nan": (header(292, "f", float("nan")), "sform is singular or not finite"),
    "C18-zero": (header(80, "f", 0.0), "spacing .* expected 0.05 to 20"),
    "C18-nan": (header(80, "f", float("nan")), "spacing .* expected 0.05 to 20"),
    "C18-negative": (header(80, "f", -1.0), "spacing .* expected 0.05 to 20"),
    "C18-huge": (header(80, "f", 1000.0), "spacing .* expected 0.05 to 20"),
    "C19-codes": (header(252, "2h", 0, 0), "orientation unknown"),
    "C20-folder": (folder, "cannot be read: Is a directory"),
    "C20-link": (link, "broken link"),
}
HASHED = {"C3-flip", "C3-tail", "C2-truncated", "C7-bomb"}


def test_every_row_is_here() -> None:
    own = {"C4", "C5", "C10", "C20"}
    assert {row.partition("-")[0] for row in FAULTS} | own | set(NOT_HERE) == set(ROWS)


def refused(case_folder: Path, path: Path, pattern: str, tree_hash: Callable[[Path], str]) -> None:
    """`mvl verify` lists the one file with fault and remedy, training refuses it with the same
    words, and the tree stays as it was."""
    task, before = find_task("Toy", case_folder.parent), tree_hash(case_folder)
    found = [
        finding
        for finding in verify(TaskData(task, case_folder.parent))
        if finding.path == str(path)
    ]
    assert (
        len(found) == 1
        and re.search(pattern, found[0].fault)
        and "put the file right" in found[0].remedy
    ), found
    with pytest.raises(TaskError, match=rf"{re.escape(str(path))}.*mvl verify Toy"):
        CaseStore(TaskData(task, case_folder.parent), (NAME,), DATA).get(0)
    assert tree_hash(case_folder) == before


@pytest.mark.parametrize("row", FAULTS)
def test_a_file_is_refused(row: str, case_folder: Path, tree_hash: Callable[[Path], str]) -> None:
    change, pattern = FAULTS[row]
    path = case_folder / "imagesTr" / f"{NAME}.nii.gz"
    if row not in HASHED:
        (case_folder / "manifest.json").unlink()
    change(path)
    start = time.monotonic()
    refused(case_folder, path, pattern, tree_hash)
    assert time.monotonic() - start < 30, "a few hundredths of a second on an idle machine"


@pytest.mark.parametrize("row", ["C4", "C5"])
def test_bits_of_a_plain_file_are_known_by_its_sha256(row: str, case_folder: Path) -> None:
    """C4: a voxel; C5: along the header. No checksum inside the file says so: the manifest does."""
    path = case_folder / "imagesTr" / f"{NAME}.nii"
    whole = gzip.decompress(path.with_name(f"{NAME}.nii.gz").read_bytes())
    task, case = find_task("Toy", case_folder.parent), read_cases(case_folder)[3]
    manifest = TaskData(task, case_folder.parent).manifest
    manifest |= {f"imagesTr/{path.name}": files.sha256_bytes(whole)}
    plain = type(case)(case.case_id, path, case.label)
    for place in [2000] if row == "C4" else range(0, 348, 4):
        data = bytearray(whole)
        data[place] ^= 1 << (place // 4 % 8)
        path.write_bytes(data)
        faults, _ = sandbox.check_case(task, plain, case_folder, manifest)
        assert list(faults) == [path] and re.search(
            "its bytes differ from the manifest|neither gzip nor NIfTI", faults[path]
        ), place


@pytest.mark.parametrize("row", ["C5-unhashed"])
def test_a_header_bit_that_passes_unhashed_leaves_a_possible_scan(
    row: str, case_folder: Path
) -> None:
    """Without a manifest: geometry and type are either refused or lie in the stated ranges."""
    path = case_folder / "imagesTr" / f"{NAME}.nii.gz"
    whole = gzip.decompress(path.read_bytes())
    task, case = find_task("Toy", case_folder.parent), read_cases(case_folder)[3]
    passed = 0
    for place in range(0, 348, 3):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 7 + 1)
        path.write_bytes(gzip.compress(bytes(data), 1))
        faults, digest = sandbox.check_case(task, case, case_folder, {})
        assert faults or digest
        if not faults:
            passed += 1
            assert np.allclose(nibabel.load(path).affine, np.eye(4), atol=1e-3) and nibabel.load(
                path
            ).shape == (16, 16, 16)
    assert passed < 116


@pytest.mark.parametrize(("row", "slope"), [("C10-zero", 0.0), ("C10-nan", float("nan"))])
def test_no_scale_is_no_scale(row: str, slope: float, case_folder: Path) -> None:
    """By the standard a slope of 0 (nibabel writes NaN) means unscaled: checked and trained on
    alike."""
    (case_folder / "manifest.json").unlink()
    task, path = find_task("Toy", case_folder.parent), case_folder / "imagesTr" / f"{NAME}.nii.gz"
    before = CaseStore(TaskData(task, case_folder.parent), (NAME,), DATA).get(0)[0]
    header(112, "2f", slope, 0.0)(path)
    assert verify(TaskData(task, case_folder.parent)) == []
    assert CaseStore(TaskData(task, case_folder.parent), (NAME,), DATA).get(0)[0].equal(before)


@pytest.mark.parametrize("row", ["C20-names"])
def test_spaces_and_letters_beyond_ascii_are_fine(row: str, case_folder: Path) -> None:
    (case_folder / "manifest.json").unlink()
    new = "Kopf größer 3"
    for kind in ("imagesTr", "labelsTr"):
        (case_folder / kind / f"{NAME}.nii.gz").rename(case_folder / kind / f"{new}.nii.gz")
    text = (case_folder / "dataset.json").read_text()
    (case_folder / "dataset.json").write_text(text.replace(NAME, new))
    task = find_task("Toy", case_folder.parent)
    assert (
        verify(TaskData(task, case_folder.parent)) == []
        and CaseStore(TaskData(task, case_folder.parent), (new,), DATA).get(0)[0].isfinite().all()
    )


def broken(whole: bytes, kind: str, draw: random.Random) -> bytes:
    """A copy with one flipped bit, a hole of 512 zeroed bytes that changes it, or cut short."""
    data = bytearray(whole)
    if kind == "bit_flips":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "holes":
        place = draw.randrange(len(data) - 512)
        data[place : place + 512] = bytes(512)
    else:
        data = data[: -draw.choice([1, 2, 4, 8, draw.randrange(1, len(data))])]
    return bytes(data)


def count_refused(case_folder: Path, kind: str, count: int, seed: int) -> tuple[int, int]:
    """How many of `count` broken copies are refused by file name: with the manifest, and by reading
    alone."""
    task, case = find_task("Toy", case_folder.parent), read_cases(case_folder)[3]
    manifest, whole, draw = (
        TaskData(task, case_folder.parent).manifest,
        case.image.read_bytes(),
        random.Random(f"{kind} {seed}"),
    )
    hashed = read = 0
    for _ in range(count):
        case.image.write_bytes(broken(whole, kind, draw))
        hashed += list(sandbox.check_case(task, case, case_folder, manifest)[0]) == [case.image]
        read += list(sandbox.check_case(task, case, case_folder, {})[0]) == [case.image]
    return hashed, read


@pytest.mark.parametrize(("kind", "count"), [("bit_flips", 40), ("holes", 10), ("truncations", 20)])
def test_damage_is_always_found(kind: str, count: int, case_folder: Path) -> None:
    hashed, read = count_refused(case_folder, kind, count, 1)
    assert hashed == count and read >= (count - 2 if kind == "bit_flips" else count)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("kind", "count"), [("bit_flips", 600), ("holes", 150), ("truncations", 300)]
)
def test_damage_is_always_found_at_length(kind: str, count: int, case_folder: Path) -> None:
    hashed, read = count_refused(case_folder, kind, count, 0)
    record_figure(
        kind,
        hashed,
        count,
        f"seed 0, one 16x16x16 scan; without a manifest, by reading to the end: {read}",
    )
    assert hashed == count


@pytest.mark.faults
def test_hostile_files_at_length(tmp_path: Path, pristine_task: Path) -> None:
    """Every file of this group, in one bounded process: refused by name in less than 5 s of its
    time and within 1 GB."""
    import shutil

    case_folder, by, refusals, slowest = tmp_path / "data" / "Toy", sandbox.Child(), 0, 0.0
    for change, pattern in FAULTS.values():
        shutil.rmtree(case_folder, ignore_errors=True)
        shutil.copytree(pristine_task, case_folder)
        task, case = find_task("Toy", case_folder.parent), read_cases(case_folder)[3]
        change(case.image)
        start = time.monotonic()
        faults, _ = sandbox.check_case(task, case, case_folder, {}, by)
        slowest = max(slowest, time.monotonic() - start)
        # a flip, without a manifest
        refusals += list(faults) == [case.image] and bool(
            re.search(f"{pattern}|damaged gzip", faults[case.image])
        )
    by.close()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    record_figure(
        "hostile_inputs",
        refusals,
        len(FAULTS),
        f"scans of group C without a manifest; slowest {slowest:.1f} s, peak {peak:.2f} GB",
    )
    assert refusals == len(FAULTS) and peak < 1
