"""Look at files that may be anything in a process of its own, bounded in memory and time: what ends
it does not end this one.

One such process serves all questions; it starts with the first and is replaced when it dies.
Questions and answers are lines of JSON.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from mvl.core.config import ROOT
from mvl.datasets.nifti import FileFault
from mvl.datasets.task import Case, Task

MEMORY = 16 * 2**30
"Address space of the process, bytes: the largest Decathlon scan needs 8 GiB to be looked at."
TIME_S = 300.0
"Seconds after which a case is given up."
SERVE = "import sys; from mvl.datasets.sandbox import serve; serve(int(sys.argv[1]))"
Faults = dict[Path, str]


class Child:
    """A bounded process that answers questions about files, one after another."""

    def __init__(self, memory: int = MEMORY, time_s: float = TIME_S) -> None:
        self.memory, self.time_s = memory, time_s
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer.

        Raises:
            FileFault: the process died, or did not answer in time.
        """
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({**question, "cwd": os.getcwd()}).encode() + b"\n")
            process.stdin.flush()
            return json.loads(self._line(process))
        except FileFault:
            raise
        except (OSError, ValueError):
            self.close()
            gone = (
                f"signal {-process.returncode}"
                if process.returncode < 0
                else f"exit code {process.returncode}"
            )
            raise FileFault(
                f"the process that read it ended ({gone}; it may take {self.memory / 2**30:g} GiB)"
            ) from None

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            self.process.kill()
            self.process.wait()
            self.process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(self.memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **one, "PYTHONPATH": paths},
            )
        return self.process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        line, end = b"", time.monotonic() + self.time_s
        while not line.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                process.kill()
                self.close()
                raise FileFault(f"could not be read within {self.time_s:g} s, given up")
            part = os.read(process.stdout.fileno(), 2**16)
            if not part:
                raise OSError("ended")
            line += part
        return line


@cache
def child() -> Child:
    """The process of this process."""
    made = Child()
    atexit.register(made.close)
    return made


def check_case(
    task: Task, case: Case, folder: Path, manifest: dict[str, str], by: Child | None = None
) -> tuple[Faults, str | None]:
    """As `checks.check_case`, in the bounded process; what ends that is the image's fault."""
    question = {
        "about": "case",
        "task": dataclasses.asdict(task),
        "case": dataclasses.asdict(case),
        "folder": folder,
        "manifest": manifest,
    }
    try:
        answer = (by or child()).ask(json.loads(json.dumps(question, default=str)))
    except FileFault as fault:
        return {case.image: f"{fault}; so it, or its label, is not usable"}, None
    return {Path(path): text for path, text in answer["faults"]}, answer["digest"]


def check_scan(files: tuple[Path, ...], task: Task, by: Child | None = None) -> None:
    """As `new_scans.check_scan`, in the bounded process.

    Raises:
        FileFault: names the file, what is wrong and the remedy.
    """
    question = {
        "about": "scan",
        "task": dataclasses.asdict(task),
        "files": [str(path) for path in files],
    }
    try:
        answer = (by or child()).ask(question)
    except FileFault as fault:
        raise FileFault(f"{files[0]}: {fault}; put the file right and try again") from None
    if answer["fault"]:
        raise FileFault(answer["fault"])


def serve(memory: int) -> None:
    """Answer questions from standard input until it ends, within `memory` bytes of address space;
    what else is printed goes nowhere."""
    with suppress(ImportError):  # not on Windows, where the caller's clock is what is left
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            question = json.loads(line)
            os.chdir(question["cwd"])  # a path may be relative to where the caller is now
            out.write(json.dumps(_answer(question, memory)) + "\n")
            out.flush()


def _answer(question: dict[str, Any], memory: int) -> dict[str, Any]:
    facts = question["task"]
    task = Task(
        **{
            **facts,
            "labels": {int(value): name for value, name in facts["labels"].items()},
            "channels": tuple(facts["channels"]),
        }
    )
    about = question["case"]["image"] if question["about"] == "case" else question["files"][0]
    try:
        return _case(task, question) if question["about"] == "case" else _scan(task, question)
    except MemoryError:
        fault = f"needs more than {memory / 2**30:g} GiB of memory to be looked at"
    except Exception as error:
        fault = f"cannot be read ({type(error).__name__}: {error})"
    return {
        "faults": [(about, fault)],
        "digest": None,
        "fault": f"{about}: {fault}; put the file right and try again",
    }


def _case(task: Task, question: dict[str, Any]) -> dict[str, Any]:
    from mvl.datasets import checks

    row = question["case"]
    case = Case(
        row["case_id"],
        Path(row["image"]),
        Path(row["label"]),
        tuple(map(Path, row["more_labels"])),
        row["z"],
        tuple(map(Path, row["more"])),
    )
    faults, digest = checks.check_case(task, case, Path(question["folder"]), question["manifest"])
    return {"faults": [(str(path), text) for path, text in faults.items()], "digest": digest}


def _scan(task: Task, question: dict[str, Any]) -> dict[str, Any]:
    from mvl.datasets import new_scans

    try:
        new_scans.check_scan(tuple(map(Path, question["files"])), task)
    except FileFault as fault:
        return {"fault": str(fault)}
    return {"fault": None}
