"""Several processes that share a study out between them on one machine, without Snakemake: each
takes a run that no other holds.

A process trains one run after another, so that Python and PyTorch start once; several of them may
share a card.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from mvl.core import files
from mvl.core.config import ROOT
from mvl.core.progress import signals
from mvl.study import gpu_slots, status
from mvl.study.inline import Launch, run_inline

LOOK_S = 5.0
"Seconds between two lines of progress."
GRACE_S = 60.0
"Seconds that a process has for its checkpoint before it is killed."


def run_workers(
    name: str,
    results_dir: Path,
    data_dir: Path | None,
    launch: Launch,
    minutes: float | None = None,
) -> int:
    """Share the study's missing runs out between processes; returns 0 at the end, 143 when
    `minutes` were over or a signal came.

    The runs go in the order of the study's YAML. A process that dies, or whose GPU no longer
    answers, is replaced, at most once for each missing run; what it had begun goes on from its
    checkpoint.
    """
    number = _how_many(launch)
    since = files.now()
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    spare = len(status.missing_runs(name, results_dir))
    shown = 0.0
    with signals() as caught:
        living = [
            _start(name, results_dir, data_dir, launch, since, place) for place in range(number)
        ]
        while living and not caught and time.monotonic() < deadline:
            time.sleep(0.2)
            for ended in [worker for worker in living if worker.poll() is not None]:
                living.remove(ended)
                if ended.returncode != 0 and spare > 0:
                    spare -= 1
                    living.append(
                        _start(name, results_dir, data_dir, launch, since, number + spare)
                    )
            if time.monotonic() - shown >= LOOK_S:
                shown = time.monotonic()
                print(
                    status.progress_line(status.study_status(name, results_dir), number),
                    file=sys.stderr,
                    flush=True,
                )
        _stop(living)
    if caught:
        return 128 + caught[0]
    return 128 + signal.SIGTERM if living else 0


def _how_many(launch: Launch) -> int:
    """The number of processes: no more than the cards have slots, where there are cards."""
    places = len(gpu_slots.visible_gpus()) * launch.runs_per_gpu
    return min(launch.jobs, places) if places else launch.jobs


def _start(
    name: str, results_dir: Path, data_dir: Path | None, launch: Launch, since: str, place: int
) -> subprocess.Popen[bytes]:
    """Start one process; what it says goes into the study's `logs/worker-<place>.log`."""
    settings = {
        "name": name,
        "results_dir": str(results_dir),
        "data_dir": str(data_dir) if data_dir else None,
        "since": since,
        "launch": asdict(launch),
    }
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    with _log(Path(results_dir) / Path(name).stem / "logs" / f"worker-{place}.log") as log:
        words = [sys.executable, "-m", "mvl.study.workers", json.dumps(settings)]
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment)


@contextmanager
def _log(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        yield file


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    """Let each process checkpoint its run and end; one that takes too long is killed."""
    for worker in workers:
        worker.terminate()
    until = time.monotonic() + GRACE_S
    for worker in workers:
        try:
            worker.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def main(words: str) -> int:
    """What one of the processes does."""
    asked = json.loads(words)
    data_dir = Path(asked["data_dir"]) if asked["data_dir"] else None
    return run_inline(
        asked["name"],
        Path(asked["results_dir"]),
        data_dir,
        Launch(**asked["launch"]),
        asked["since"],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
