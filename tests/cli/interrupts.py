"""Commands that are interrupted at random moments of their start, as Ctrl-C does it: the whole
group of processes at once."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

BEGIN = """
import os, sys
from mvl.cli.main import main
os.write(1, b"@")
code = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""
STUDY = """
title: test
tasks: [Boxes]
grid: [{name: main, systems: [vit_baseline]}]
data: {img_size: [8, 8, 8]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 1, batch_size: 4}
"""


def commands(root: Path) -> list[list[str]]:
    """What is interrupted, on the data in `root`."""
    (root / "own.yaml").write_text(STUDY)
    where = f"--data-dir {shlex.quote(str(root))} --results-dir {shlex.quote(str(root / 'runs'))}"
    study = shlex.quote(str(root / "own.yaml"))
    return [
        shlex.split(line)
        for line in (
            f"study status {study} --results-dir {shlex.quote(str(root / 'runs'))}",
            f"verify Boxes --data-dir {shlex.quote(str(root))}",
            f"train --study {study} --task Boxes --system vit_baseline {where}",
            f"study run {study} --engine inline {where}",
            "systems",
            "--help",
        )
    ]


def begin(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command; returns when its first line is about to run."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.read(1) == b"@"
    return process


def interrupt(root: Path, times: int, seed: int) -> list[str]:
    """Interrupt commands so often, in their first seconds; what was wrong, a line each."""
    draw, wrong = random.Random(seed), []
    every = commands(root)
    for number in range(times):
        words = every[number % len(every)]
        process, moment = begin(words), draw.uniform(0, 3)
        time.sleep(moment)
        was_alive = process.poll() is None
        if was_alive:
            os.killpg(process.pid, signal.SIGINT)
        said = process.communicate()[1].decode(errors="replace")
        code = process.returncode
        ended_well = code == 130 and "interrupted" in said
        came_too_late = code == 0 and "interrupted" not in said
        if "Traceback" in said or not (ended_well or came_too_late):
            wrong.append(f"{' '.join(words[:2])} at {moment:.2f} s: {code}: {said[-1500:]}")
    return wrong + [f"{path} is left" for path in root.rglob(".*.tmp")]
