"""What one child process of `make gpu` finds by training runs: same bytes, shared cards, memory,
`mvl evaluate`, `torchrun`.

`python -m mvl.bench.gpu_run_probes ITEM SETTINGS` prints a line for each part, as
`mvl.bench.gpu_probes` does.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from mvl.bench.gpu_parts import Facts, each_part, smoke_configs
from mvl.core import files, run_folder
from mvl.core.config import ROOT, Config, load_config
from mvl.core.progress import Interrupted
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import open_task
from mvl.training.evaluate import evaluate_run
from mvl.training.run import train_run

COMPARED = ("weights.safetensors", "history.csv", "cases.csv")
"Files of a run that must have the same bytes."
SHARED = ("Task04_Hippocampus", "medvisionllama_v3", 4)
"Task and system of the study `hippocampus`, and epochs, of the runs that share a card."
TOGETHER = ("1 at once", "4 at once", "12 at once")
SMALL_MB = 40
"""Memory that the forced failure leaves to PyTorch: less than a training step of ViT-Baseline at
128x128x128."""


def small_run(system: str) -> Config:
    """A run of `smoke` on a quarter of the cases, two epochs long, so that it can be stopped on its
    way."""
    planned = smoke_configs()[system]
    config = load_config("smoke", planned.task, system, 0.25)
    return replace(config, train=replace(config.train, train_epochs=2))


def hashes(folder: Path) -> list[str]:
    """The sha256 of each compared file of a run."""
    return [files.sha256_file(folder / name) for name in COMPARED]


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Send this process SIGTERM after so many optimiser steps, whoever calls them."""
    taken = []

    def count(*_: Any) -> None:
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def repeat(data_dir: Path | None, system: str) -> Facts:
    """Item 3: the run twice, and once interrupted and resumed; whether the bytes are the same."""
    config = small_run(system)
    with tempfile.TemporaryDirectory() as scratch:
        first, second, third = (Path(scratch) / name for name in ("first", "second", "third"))
        wanted = hashes(train_run(config, first, data_dir, progress=False))
        again = hashes(train_run(config, second, data_dir, progress=False))
        interrupted = False
        with stopped_after(2):
            try:
                train_run(config, third, data_dir, progress=False)
            except Interrupted:
                interrupted = True
        resumed = hashes(train_run(config, third, data_dir, progress=False))
    return {
        "same_bytes_twice": again == wanted,
        "interrupted": interrupted,
        "same_bytes_resumed": resumed == wanted,
    }


def share(settings: Facts, part: str) -> Facts:
    """Item 6: so many runs at once on one card, started together once all have imported what they
    need."""
    number, (task, system, epochs) = int(part.split()[0]), SHARED
    try:
        _ = open_task(task, settings_dir(settings)).folder
    except TaskError:
        return {"state": f"skipped: {task} is not here"}
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            sys.executable,
            "-m",
            "mvl.bench.gpu_run_probes",
            "run",
            json.dumps(settings | {"scratch": scratch, "parts": [""]}),
        ]
        started = [
            subprocess.Popen(
                [*words, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
            )
            for seed in range(number)
        ]
        for one in started:
            assert one.stdout is not None
            one.stdout.readline()  # it is ready
        begin = time.monotonic()
        for one in started:
            assert one.stdin is not None
            one.stdin.close()
        codes = [one.wait() for one in started]
        seconds = time.monotonic() - begin
    if any(codes):
        raise RuntimeError(f"{sum(map(bool, codes))} of {number} runs failed")
    return {
        "runs": number,
        "system": system,
        "epochs": epochs,
        "seconds": seconds,
        "runs_a_minute": 60 * number / seconds,
    }


def settings_dir(settings: Facts) -> Path | None:
    """The data folder of the settings, if they name one."""
    return Path(settings["data_dir"]) if settings["data_dir"] else None


def one_of_many(settings: Facts, seed: int) -> None:
    """One of the runs that share a card says that it is ready, waits for its input's end and
    trains."""
    task, system, epochs = SHARED
    config = load_config("hippocampus", task, system, seed=seed)
    config = replace(config, train=replace(config.train, train_epochs=epochs))
    print("ready", flush=True)
    sys.stdin.read()
    train_run(config, Path(settings["scratch"]), settings_dir(settings), progress=False)


def memory(data_dir: Path | None, part: str) -> Facts:
    """Item 7: a run with too little memory is recorded as `oom`; the same process then trains
    another."""
    large = small_run("vit_baseline")
    large = replace(
        large,
        data=replace(large.data, img_size=(128, 128, 128)),
        train=replace(large.train, train_epochs=1),
    )
    share_left = SMALL_MB * 1e6 / torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as scratch:
        torch.cuda.set_per_process_memory_fraction(share_left)
        said = ""
        try:
            train_run(large, Path(scratch) / "large", data_dir, progress=False)
        except Exception as error:
            said = type(error).__name__
        state = run_folder.read_status(run_folder.run_dir(Path(scratch) / "large", large))["state"]
        torch.cuda.set_per_process_memory_fraction(1.0)
        after = run_folder.is_done(
            train_run(small_run("vit_baseline"), Path(scratch) / "small", data_dir, progress=False)
        )
    facts = {"error": said, "recorded_as": state, "trained_afterwards": after}
    return facts | {"state": "done" if state == "oom" and after else "failed"}


def evaluated(data_dir: Path | None, part: str) -> Facts:
    """Item 8: the rows of `mvl evaluate` against those that training wrote."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = train_run(small_run("vit_baseline"), Path(scratch), data_dir, progress=False)
        before, digest = rows_of(folder), files.sha256_file(folder / "cases.csv")
        evaluate_run(folder, data_dir)
        after, same = rows_of(folder), files.sha256_file(folder / "cases.csv") == digest
    largest = max(apart(a[key], b[key]) for a, b in zip(before, after, strict=True) for key in a)
    return {
        "rows": len(after),
        "same_bytes": same,
        "largest_difference": largest,
        "state": "done" if largest <= 1e-4 else "failed",
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's `cases.csv`, as text."""
    with open(folder / "cases.csv") as file:
        return list(csv.DictReader(file))


def apart(a: str, b: str) -> float:
    """The difference of two cells: of their numbers, else 0 for equal words and infinity for
    others."""
    if a == b:
        return 0.0
    try:
        return abs(float(a) - float(b))
    except ValueError:
        return float("inf")


def torchrun(data_dir: Path | None, part: str) -> Facts:
    """Item 9: a run under `torchrun` with one process against the same run without."""
    task, system = "phantoms", "vit_baseline"
    with tempfile.TemporaryDirectory() as scratch:
        plain = train_run(
            load_config("smoke", task, system, 0.1),
            Path(scratch) / "plain",
            data_dir,
            progress=False,
        )
        words = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "1",
            "-m",
            "mvl",
            "train",
            "--study",
            "smoke",
            "--task",
            task,
            "--system",
            system,
            "--fraction",
            "0.1",
            "--results-dir",
            f"{scratch}/launched",
        ]
        words += ["--data-dir", str(data_dir)] if data_dir else []
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"torchrun ended with {done.returncode}: {done.stderr.strip()[-200:]}"
            )
        launched = Path(scratch) / "launched" / plain.relative_to(Path(scratch) / "plain")
        return {"exit_code": done.returncode, "same_bytes": hashes(launched) == hashes(plain)}


def main(item: str, words: str, seed: str = "0") -> None:
    """Find the parts of one item that the parent asks for."""
    asked = json.loads(words)
    data_dir = settings_dir(asked)
    if item == "run":
        one_of_many(asked, int(seed))
        return
    measures: dict[str, Callable[[str], Facts]] = {
        "repeat": partial(repeat, data_dir),
        "share": partial(share, asked),
        "memory": partial(memory, data_dir),
        "evaluate": partial(evaluated, data_dir),
        "torchrun": partial(torchrun, data_dir),
    }
    each_part(asked["parts"], measures[item])


if __name__ == "__main__":
    main(*sys.argv[1:])
