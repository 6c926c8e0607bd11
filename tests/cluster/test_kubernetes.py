"""A study through kubectl and Jobs of a server that stands for Kubernetes (`kube.py`), one node
emptied on the way: the same bytes as inline.

Needs kubectl. The study is off by default (`pytest -m kubernetes`); it needs
snakemake-executor-plugin-cluster-generic and 100 s.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.study import status
from tests.cluster.four_runs import STUDY, assert_same_as_inline
from tests.cluster.kube import Cluster

PROFILE = ROOT / "workflow" / "profiles" / "kubernetes"
PLUGIN = "snakemake-executor-plugin-cluster-generic"
LIMIT_S = 3600.0
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    server = Cluster()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    yield server
    server.stop()


def ask(verb: str, *words: str) -> str:
    """What one of the profile's commands prints."""
    return subprocess.run(
        [PROFILE / f"kube-{verb}", *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def wait_for(job: str, state: str) -> None:
    until = time.monotonic() + 60
    while ask("status", job) != state:
        assert time.monotonic() < until, f"{job} is never {state}"
        time.sleep(0.2)


def test_a_job_asks_for_what_its_run_needs_and_its_end_is_seen(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("trap 'exit 5' TERM; until [ -e go ]; do sleep 0.1; done")
    job = ask("submit", "2", "1372", "90", "1", str(script))
    assert ask("status", job) == "running"
    spec = cluster.asked[0]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert spec["activeDeadlineSeconds"] == 5400 and container["resources"]["requests"] == {
        "cpu": "2",
        "memory": "1372M",
    }
    assert container["resources"]["limits"] == {"memory": "1372M", "nvidia.com/gpu": "1"}
    cluster.drain(job)
    wait_for(job, "failed")
    script.write_text("exit 0")
    wait_for(ask("submit", "1", "100", "1", "0", str(script)), "success")


def test_a_deleted_job_has_failed_and_a_silent_server_is_asked_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("sleep 60")
    jobs = [ask("submit", "1", "100", "1", "0", str(script)) for _ in range(2)]
    ask("cancel", *jobs)
    assert [ask("status", job) for job in jobs] == ["failed", "failed"]
    assert all(cluster.pods[job].wait(60) for job in jobs)
    job = ask("submit", "1", "100", "1", "0", str(script))
    cluster.stop()
    cluster.server_close()
    assert ask("status", job) == "running"


def evict_one(engine: subprocess.Popen[bytes], study: str, results: Path, cluster: Cluster) -> None:
    """Empty the node of the first run that has an epoch behind it."""
    until = time.monotonic() + LIMIT_S
    while engine.poll() is None and time.monotonic() < until:
        rows = status.study_status(study, results)["runs"]
        running = [job for job, pod in cluster.pods.items() if pod.poll() is None]
        if running and any(row["state"] == "running" and row["epoch"] == 1 for row in rows):
            cluster.drain(running[0])
            return
        time.sleep(0.2)
    pytest.fail("no run was seen with one of its epochs behind it")


@pytest.mark.kubernetes
@pytest.mark.skipif(
    importlib.util.find_spec(PLUGIN.replace("-", "_")) is None, reason=f"pip install {PLUGIN}"
)
def test_an_evicted_run_is_sent_again_and_the_study_ends_with_the_same_bytes(
    cluster: Cluster, tmp_path: Path
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
        "kubernetes",
        "--jobs",
        "1",
    ]
    engine = subprocess.Popen(words)
    evict_one(engine, study, queued, cluster)
    assert engine.wait(LIMIT_S) == 0
    assert_same_as_inline(study, queued, tmp_path / "inline")
    assert len(cluster.asked) == 5, (
        "one Job for each run, and one more for the run that was cut off"
    )
