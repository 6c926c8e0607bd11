"""The child processes of `make gpu` as their parent sees them: what they are started with, and the
lines that they tell."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from typing import IO, Any

from mvl.core.config import ROOT
from mvl.study import gpu_slots

MARK = "@mvl "
"Before each line that the parent reads: libraries print lines of their own."


def card_name() -> str:
    """The name of the first card that this process may use; empty where there is none."""
    cards = gpu_slots.visible_gpus()
    if not cards:
        return ""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", cards[0]]
    try:
        listed = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "GPU"
    names = listed.stdout.strip().splitlines()
    return names[0] if listed.returncode == 0 and names else "GPU"


def child_environment() -> dict[str, str]:
    """A child sees the first card alone, computes in one thread and finds this tree before any
    other."""
    cards = gpu_slots.visible_gpus()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    if cards:
        own[gpu_slots.VISIBLE] = cards[0]
    return {**os.environ, **own}


def lines_of(
    process: subprocess.Popen[bytes], limit_s: float, deadline: float
) -> Iterator[dict[str, Any]]:
    """What a child process tells, as it comes.

    Raises:
        TimeoutError: no line for `limit_s`, or the deadline is over.
    """
    assert process.stdout is not None
    handle = process.stdout.fileno()
    text = b""
    last = time.monotonic()
    while True:
        wait = min(last + limit_s, deadline) - time.monotonic()
        ready, _, _ = select.select([handle], [], [], max(0.0, wait))
        if not ready:
            raise TimeoutError(f"took more than {limit_s:.0f} s")
        got = os.read(handle, 1 << 16)
        if not got:
            return
        *whole, text = (text + got).split(b"\n")
        for line in whole:
            if line.startswith(MARK.encode()):
                last = time.monotonic()
                yield json.loads(line[len(MARK) :])


def last_line(errors: IO[bytes]) -> str:
    """The last line that a child wrote to its standard error, cut."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
