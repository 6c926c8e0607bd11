"""Data that may not be written to, and a home folder that cannot be: every command of a run goes
through, from verify to predict."""

from __future__ import annotations

import os
import subprocess
import sys

from mvl.core.run_folder import default_results_dir
from tests.cli.interrupts import STUDY

PROGRAM = """
import os, sys
from pathlib import Path

from mvl.cli.main import main

data, results = sys.argv[1:]


def refuse(event, words):
    # What a kernel does with a folder that is mounted read-only, for root too.
    flags = words[2] if event == "open" and isinstance(words[2], int) else 0
    writes = event in ("os.mkdir", "os.rename", "os.remove") or flags & (os.O_WRONLY | os.O_RDWR)
    if writes and isinstance(words[0], str) and os.path.abspath(words[0]).startswith(data):
        raise PermissionError(13, "Permission denied", words[0])


sys.addaudithook(refuse)
where = ["--data-dir", data]
[run] = [Path(results) / "own" / "runs" / "Boxes" / "vit_baseline" / "fraction-1.0_fold-0_seed-0"]
for words in (
    ["verify", "Boxes", *where],
    ["train", "--study", "own.yaml", "--task", "Boxes", "--system", "vit_baseline", *where,
     "--results-dir", results],
    ["evaluate", str(run), *where],
    ["predict", str(run), f"{data}/Boxes/imagesTr", "--output", "masks"],
    ["study", "status", "own.yaml", "--results-dir", results, "--complete"],
):
    code = main(words)
    assert code == 0, (words, code)
print("went through", len(list(Path("masks").iterdir())))
"""


def test_read_only_data_and_no_home_from_verify_to_predict(own_data, tmp_path):
    data = tmp_path / "data"
    own_data(data / "Boxes", shape=(8, 8, 8))
    (tmp_path / "own.yaml").write_text(STUDY)
    (tmp_path / "file").touch()
    splits = default_results_dir() / "splits"
    splits_before = {*splits.glob("Boxes-*.json")}
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    home = {"HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": "", "HF_HOME": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(data), str(tmp_path / "runs")],
        cwd=tmp_path,
        env={**os.environ, **home},
        capture_output=True,
        text=True,
    )
    assert "went through 12" in done.stdout, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    kept = {*splits.glob("Boxes-*.json")} - splits_before
    for path in kept:
        path.unlink()
    assert len(kept) == 1, "the split lies with the clone's runs"
