"""The book's page on your own data, line by line as it stands, on small parts of two real sets."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from mvl.cli import main
from mvl.core import run_folder
from mvl.core.config import ROOT

REAL = Path(os.environ.get("MVL_DATA", ""))
PAGE = ROOT / "book" / "own_data.md"


def fences(kind: str) -> list[str]:
    """The page's blocks of a kind, in order."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S)


def take(pictures: int, scans: int) -> None:
    """Copy the first cases of the two sets to where the page has them."""
    source, target = REAL / "Kvasir_SEG_256", Path("datasets/Kvasir-SEG")
    for sub in ("images", "masks"):
        (target / sub).mkdir(parents=True)
        for path in sorted((source / sub).iterdir())[:pictures]:
            shutil.copy(path, target / sub)
    source, target = REAL / "LeftAtrium2018_half", Path("datasets/LeftAtrium")
    described = json.loads((source / "dataset.json").read_text())
    described["training"] = described["training"][:scans]
    for row in described["training"]:
        for path in row.values():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / path, target / path)
    (target / "dataset.json").write_text(json.dumps(described | {"numTraining": scans}))


def follow(lines: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Type the lines: `mvl` runs in this process, all else in a shell; the variables that were set,
    and under `said` what was printed."""
    known = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "said": ""}
    for line in lines:
        capture = re.fullmatch(r"(\w+)=\$\((mvl .*)\)", line)
        words = shlex.split(
            re.sub(r"\$([A-Z]+)", lambda m: known[m[1]], (capture or [line] * 3)[2])
        )
        if words[0] != "mvl":
            subprocess.run(["bash", "-ec", line], check=True, env=os.environ | known)
            continue
        code, said = main.main(words[1:]), capsys.readouterr()
        assert code == 0, (line, said.err)
        known["said"] += said.out
        if capture:
            known[capture[1]] = said.out.splitlines()[-1]
    return known


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.slow
def test_a_newcomer_follows_the_page_to_masks_that_mean_something(tmp_path, monkeypatch, capsys):
    if not (REAL / "Kvasir_SEG_256").is_dir() or not (REAL / "LeftAtrium2018_half").is_dir():
        pytest.skip("needs Kvasir_SEG_256 and LeftAtrium2018_half under MVL_DATA")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVL_DATA")
    take(pictures=40, scans=12)
    for text in (*fences("yaml"), *fences("python")):
        Path(re.match(r"# (\S+)", text)[1]).write_text(text)
    lines = [line for text in fences("bash") for line in text.splitlines() if line.strip()]
    known = follow(lines, capsys)

    assert known["said"].count("every case is whole") == 2
    for name in ("POLYPS", "ATRIUM"):
        folder = Path(known[name])
        assert run_folder.is_done(folder, need_weights=True)
        rows = list(csv.DictReader((folder / "cases.csv").open()))
        assert np.mean([float(row["dice"]) for row in rows]) > 0.3, (name, rows)

    pictures = sorted(Path("masks/polyps").iterdir())
    assert len(pictures) == 3
    scores, full = [], []
    for path in pictures:
        mask = np.asarray(Image.open(path))
        truth = next(Path("datasets/Kvasir-SEG/masks").glob(f"{path.stem}.*"))
        assert set(np.unique(mask)) <= {0, 255}
        polyp = np.asarray(Image.open(truth).convert("L")) > 127
        scores.append(overlap(mask > 0, polyp))
        full.append(overlap(np.ones_like(polyp), polyp))
    assert np.mean(scores) > np.mean(full)

    scans = sorted(Path("new/scans").iterdir())
    scores = []
    for path in scans:
        mask, scan = nibabel.load(f"masks/atrium/{path.name}"), nibabel.load(path)
        assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
        truth = nibabel.load(f"datasets/LeftAtrium/labelsTr/{path.name}").get_fdata() > 0
        scores.append(overlap(mask.get_fdata() > 0, truth))
    assert len(scans) == 3 and np.mean(scores) > 0.5
    assert len(list(Path("masks/atrium").glob("*_probabilities.nii.gz"))) == 3
    drawn = np.asarray(Image.open("look.png")).astype(int)
    assert ((drawn[:, :, 0] - drawn[:, :, 1]) > 100).any(), "no mask is drawn"
    assert Path("datasets/splits/LeftAtrium.json").is_file()
