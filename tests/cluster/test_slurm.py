"""A study through sbatch jobs of a Slurm of one node that `slurm.sh` starts here, one job cancelled
on its way: the same bytes as inline.

Off by default (`pytest -m slurm`); needs root, Debian's slurm-wlm and munge, and
snakemake-executor-plugin-slurm. About 100 s of processor time.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvl.study import status
from tests.cluster.four_runs import STUDY, assert_same_as_inline

SCRIPT = Path(__file__).with_name("slurm.sh")
LIMIT_S = float(os.environ.get("MVL_SLURM_TEST_S", "3600"))
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        shutil.which("srun") is None,
        reason="no Slurm here: apt-get install slurm-wlm slurmctld slurmd munge",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
        reason="pip install snakemake-executor-plugin-slurm",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a running Slurm with one core, stopped at the end."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder, "1", "6000"], capture_output=True, text=True)
    if started.returncode == 2:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    yield folder
    subprocess.run([SCRIPT, "stop", folder], check=True)


def ask(*words: str) -> str:
    """What a Slurm command prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def cancel_one(engine: subprocess.Popen[bytes], study: str, results: Path) -> str:
    """Cancel the job of the first run that has an epoch behind it; returns the job's id."""
    until = time.monotonic() + LIMIT_S
    while engine.poll() is None and time.monotonic() < until:
        rows = status.study_status(study, results)["runs"]
        if any(row["state"] == "running" and row["epoch"] == 1 for row in rows) and (
            job := ask("squeue", "-h", "-t", "R", "-o", "%i")
        ):
            subprocess.run(["scancel", job], check=True)
            return job
        time.sleep(0.2)
    pytest.fail("no run was seen with one of its epochs behind it")


def test_a_cancelled_job_is_sent_again_and_the_study_ends_with_the_same_bytes(
    cluster: Path, tmp_path: Path
) -> None:
    (tmp_path / "four.yaml").write_text(STUDY)
    study, queued = str(tmp_path / "four.yaml"), tmp_path / "queued"
    words = [
        sys.executable,
        "-m",
        "mvl",
        "study",
        "run",
        study,
        "--results-dir",
        str(queued),
        "--profile",
        "slurm",
        "--jobs",
        "4",
    ]
    engine = subprocess.Popen(words)
    job = cancel_one(engine, study, queued)
    assert engine.wait(LIMIT_S) == 0
    assert_same_as_inline(study, queued, tmp_path / "inline")
    completed = (cluster / "log" / "jobcomp.txt").read_text()
    assert (
        f"JobId={job} " in completed
        and "JobState=CANCELLED" in completed
        and completed.count("JobState=COMPLETED") == 4
    )
