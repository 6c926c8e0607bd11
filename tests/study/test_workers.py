"""Worker processes share a study out, are replaced when they die, and stop in time with their runs
resumable."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from mvl.core import files
from mvl.study import gpu_slots, grid, workers
from mvl.study.inline import Launch
from mvl.study.status import study_status

STUDY = """
title: Two small runs
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline], fractions: [0.1], seeds: [0, 1]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 2}
"""


def script(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in a worker's place: it gets the same words."""
    path = folder / "worker.py"
    path.write_text(
        f"import json, sys, time\nfrom pathlib import Path\nasked = json.loads(sys.argv[3])\n{text}"
    )
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(path))} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(workers.sys, "executable", str(python))


def test_two_processes_train_a_study_once(tmp_path: Path) -> None:
    study = tmp_path / "two.yaml"
    study.write_text(STUDY)
    assert workers.run_workers(str(study), tmp_path, None, Launch(jobs=2, engine="workers")) == 0
    status = study_status(str(study), tmp_path)
    assert status["done"] == status["total"] == 2
    assert len(list((tmp_path / "two" / "logs").glob("worker-*.log"))) == 2


def test_a_process_that_dies_is_replaced_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        tmp_path,
        "Path(asked['results_dir'], 'starts').open('a').write('x')\nsys.exit(75)",
        monkeypatch,
    )
    assert workers.run_workers("quick", tmp_path, None, Launch(jobs=3)) == 0
    assert len((tmp_path / "starts").read_text()) == 3 + len(grid.study_runs("quick"))


def test_the_minutes_end_in_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = (
        "import signal\nfolder = Path(asked['results_dir'])\n"
        "def end(*_):\n (folder / 'checkpointed').touch()\n sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n(folder / 'began').touch()\ntime.sleep(60)"
    )
    script(tmp_path, body, monkeypatch)
    begin = time.monotonic()
    assert workers.run_workers("quick", tmp_path, None, Launch(jobs=1), minutes=1 / 60) == 143
    assert time.monotonic() - begin < 30 and (tmp_path / "checkpointed").is_file()
    assert "0 of 23 runs done" in capsys.readouterr().err


def test_no_more_processes_than_slots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ("0",))
    script(
        tmp_path,
        "Path(asked['results_dir'], f\"{asked['launch']['runs_per_gpu']}\").open('a').write('x')",
        monkeypatch,
    )
    workers.run_workers("quick", tmp_path, None, Launch(jobs=8, runs_per_gpu=3))
    assert (tmp_path / "3").read_text() == "xxx"


def test_a_worker_is_told_what_failed_before_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    heard: list[tuple[object, ...]] = []
    monkeypatch.setattr(workers, "run_inline", lambda *words: heard.append(words) or 0)
    words = {
        "name": "quick",
        "results_dir": str(tmp_path),
        "data_dir": None,
        "since": files.now(),
        "launch": {"jobs": 3},
    }
    assert workers.main(json.dumps(words)) == 0
    assert heard == [("quick", tmp_path, None, Launch(jobs=3), words["since"])]
