"""What is written of a scan, and when a mask that is there already stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvl.datasets.new_scans import NewScan
from mvl.datasets.nifti import FileFault
from mvl.training.mask_files import asked_files, is_there


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nifti", ["x.nii.gz", "x_probabilities.nii.gz", "x_overlay.png"]),
        ("picture", ["x.png", "x_probabilities.npy", "x_overlay.png"]),
    ],
)
def test_names_follow_the_kind_of_scan(tmp_path: Path, kind: str, names: list[str]) -> None:
    scan = NewScan("x", (tmp_path / "x",), kind)
    assert [path.name for path in asked_files(scan, tmp_path, True, True).values()] == names
    assert asked_files(scan, tmp_path) == {"output": tmp_path / names[0]}


def test_the_mask_alone_says_whether_a_scan_is_done(tmp_path: Path) -> None:
    asked = {name: tmp_path / name for name in ("output", "probabilities")}
    asked["probabilities"].touch()
    assert not is_there(asked, set()), "the mask is written last"
    asked["output"].touch()
    assert is_there(asked, set()) and not is_there(asked, set(), overwrite=True)


def test_a_mask_without_what_else_is_asked_for_is_no_success(tmp_path: Path) -> None:
    asked = {name: tmp_path / name for name in ("output", "overlay")}
    asked["output"].touch()
    with pytest.raises(FileFault, match="output: is there already and stays, without overlay; use"):
        is_there(asked, set())
    assert not is_there(asked, set(), overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_file_replaces_a_scan(tmp_path: Path, overwrite: bool) -> None:
    asked = {name: tmp_path / name for name in ("output", "overlay")}
    with pytest.raises(FileFault, match="overlay: the mask would replace its scan"):
        is_there(asked, {asked["overlay"].resolve()}, overwrite)
