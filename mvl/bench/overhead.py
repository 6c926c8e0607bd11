"""What the machinery that keeps runs safe costs: the same training run with it and without it, in
processor time (`mvl bench --overhead`).

Taken out for the second run: the checks of inputs at the start and of each file when it is decoded,
closed test cases, the lock, the sweep, checkpoints, `status.json`, provenance, hashes of artefacts
and of frozen weights, syncs to disk, and the check of each step for finite values. Both runs take
the same steps and end with the same weights, which is checked.
"""

from __future__ import annotations

import json
import math
import resource
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from mvl.core import files, machine, run_folder
from mvl.core.config import ROOT, Config, load_config
from mvl.core.markdown import markdown_table

RECORD = ROOT / "data" / "overhead.json"
RUN = ("hippocampus", "Task04_Hippocampus", "vit_baseline")
"Study, task and system of the run that is measured."
PAIRS = 3
TARGET = 0.03
HELD = ("locked", "closed")
"Those that are held while a run goes on: their beginning alone is counted."


def clock() -> float:
    """Processor seconds of this process and of the children it has waited for, user and system."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def parts() -> dict[str, list[tuple[Any, str, Any]]]:
    """What is taken out, by name: owner, attribute, and what stands in its place."""
    from mvl.datasets import preflight
    from mvl.datasets.case_store import CaseStore
    from mvl.training import checkpoints, loop, resume_check, run, state

    nothing, free = lambda *_, **__: None, lambda *_, **__: nullcontext()
    return {
        "inputs checked at the start": [(preflight, "check_inputs", nothing)],
        "files and values checked when decoded": [
            (CaseStore, "_check_bytes", lambda *_: ""),
            (CaseStore, "_check_values", nothing),
        ],
        "lock, sweep, closed test cases": [
            (files, "locked", free),
            (preflight, "closed", free),
            (files, "sweep", nothing),
        ],
        "checkpoints": [
            (checkpoints, "save", nothing),
            (checkpoints, "load", nothing),
            (checkpoints, "remove", nothing),
        ],
        "status and provenance": [
            (loop, "write_state", nothing),
            (run, "write_state", nothing),
            (resume_check, "environment", lambda *_, **__: {}),
            (run_folder, "write_config", nothing),
        ],
        "hashes of artefacts and frozen weights": [
            (run_folder, "seal", nothing),
            (run_folder, "is_done", lambda *_, **__: False),
            (state, "frozen_sha256", lambda *_: ""),
            (run, "frozen_sha256", lambda *_: ""),
        ],
    }


@contextmanager
def replaced(owner: Any, name: str, instead: Any) -> Iterator[None]:
    """Let another thing stand in an attribute's place while the block runs."""
    own = getattr(owner, name)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        setattr(owner, name, own)


@contextmanager
def without() -> Iterator[None]:
    """While the block runs, none of the parts does anything, nothing is synced, and no value is
    looked at."""
    from mvl.training import loop, readings

    with ExitStack() as stack:
        for owner, name, instead in (change for changes in parts().values() for change in changes):
            stack.enter_context(replaced(owner, name, instead))
        stack.enter_context(replaced(files.os, "fsync", lambda handle: None))
        unseeing = SimpleNamespace(isfinite=lambda value: True, inf=math.inf, ceil=math.ceil)
        for module in (loop, readings):
            stack.enter_context(replaced(module, "math", unseeing))
        yield


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """While the block runs, add to `spent` the processor seconds that each part takes."""
    with ExitStack() as stack:
        for part, changes in parts().items():
            for owner, name, _ in changes:
                stack.enter_context(
                    replaced(owner, name, _clocked(getattr(owner, name), part, spent, name in HELD))
                )
        yield


def _clocked(
    act: Callable[..., Any], part: str, spent: dict[str, float], manages: bool
) -> Callable[..., Any]:
    @contextmanager
    def held(begun: float, manager: Any) -> Iterator[Any]:
        with manager as value:
            spent[part] = spent.get(part, 0.0) + clock() - begun
            yield value

    def call(*words: Any, **options: Any) -> Any:
        begun = clock()
        answer = act(*words, **options)
        if manages:
            return held(begun, answer)
        spent[part] = spent.get(part, 0.0) + clock() - begun
        return answer

    return call


def run(config: Config, data_dir: Path | None = None) -> tuple[float, str]:
    """Processor seconds of a whole run (start, training, evaluation, seal) and the sha256 of its
    weights."""
    from mvl.training.run import train_run

    with tempfile.TemporaryDirectory() as scratch:
        begun = clock()
        folder = train_run(config, Path(scratch), data_dir, progress=False)
        return clock() - begun, files.sha256_file(folder / "weights.safetensors")


def finite_check_s() -> float:
    """Processor seconds of one step's check for finite values."""
    import torch

    norm, number = torch.tensor(1.0), 10_000

    def check() -> bool:
        return math.isfinite(1.0) and math.isfinite(float(norm))

    return timeit.timeit(check, timer=time.process_time, number=number) / number


def measure(
    config: Config,
    pairs: int = PAIRS,
    data_dir: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run `config` in pairs, with and without, the order turned from pair to pair; in the runs
    with, each part's own time is counted.

    Raises:
        RunError: a run without the machinery ends with other weights: they do not take the same
            steps.
    """
    # what a process pays once: not counted
    run(replace(config, fraction=0.1, train=replace(config.train, train_epochs=1)), data_dir)
    found, spent, ends = [], dict[str, float](), set()
    for number in range(pairs):
        seconds = {}
        for kind in ("with", "without") if number % 2 else ("without", "with"):
            with without() if kind == "without" else timed(spent):
                seconds[kind], end = run(config, data_dir)
            ends.add(end)
        if len(ends) > 1:
            raise files.RunError(
                "the run without checks ended with other weights; nothing can be said of its cost"
                " (see mvl/bench/overhead.py)"
            )
        found.append(seconds)
        tell(
            f"pair {number + 1} of {pairs}: {seconds['with']:.2f} s with, {seconds['without']:.2f}"
            " s without"
        )
    total = sum(pair["with"] for pair in found)
    spent["values of each step checked"] = (
        pairs * counted_steps(config, data_dir) * finite_check_s()
    )
    return {
        "study": config.study,
        "task": config.task,
        "system": config.system,
        "epochs": config.train.train_epochs,
        "pairs": found,
        "overhead": median(pair["with"] / pair["without"] for pair in found) - 1,
        "parts": {name: s / total for name, s in spent.items()},
        "counted": sum(spent.values()) / total,
        "target": TARGET,
        "measured": files.now(),
        "environment": machine.environment(),
    }


def counted_steps(config: Config, data_dir: Path | None = None) -> int:
    """Optimiser steps of a run."""
    from mvl.datasets.loaders import steps_per_epoch
    from mvl.datasets.splits import run_split
    from mvl.datasets.task_data import open_task

    split = run_split(config, open_task(config.task, data_dir))
    return config.train.train_epochs * steps_per_epoch(len(split.train), config.train.batch_size)


def bench(tell: Callable[[str], None], data_dir: Path | None = None) -> dict[str, Any]:
    """`measure` of a run of the study at its full length."""
    return measure(load_config(*RUN), PAIRS, data_dir, tell)


def show(value: dict[str, Any]) -> str:
    """What was measured, as text."""
    lines = [
        f"{share:>8.2%}  {part}"
        for part, share in sorted(value["parts"].items(), key=lambda item: -item[1])
    ]
    return "\n".join(
        [
            *lines,
            f"{value['counted']:>8.2%}  all of these, counted inside the run",
            (
                f"{value['overhead']:>8.2%}  more processor time than the same run without (median"
                f" of {len(value['pairs'])} pairs, target at most {value['target']:.0%})"
            ),
        ]
    )


def facts(path: Path = RECORD) -> dict[str, str]:
    """What `book/reliability.md` shows."""
    if not path.is_file():
        return {"overhead": "What all this costs a run was not measured."}
    value = json.loads(path.read_text())
    ratios = sorted(pair["with"] / pair["without"] - 1 for pair in value["pairs"])
    rows = [
        [part, f"{share:.2%}"]
        for part, share in sorted(value["parts"].items(), key=lambda item: -item[1])
    ]
    first = (
        f"A run of `{value['system']}` in `{value['study']}` over {value['epochs']} epochs took"
        f" {value['overhead']:.1%} more processor time with all of this than without (median of"
        f" {len(ratios)} pairs of runs with the same steps and the same final weights; from"
        f" {ratios[0]:.1%} to {ratios[-1]:.1%}; target: at most {value['target']:.0%}). Counted"
        f" inside such a run, the parts take {value['counted']:.2%} of its processor time."
    )
    table = markdown_table(["part", "share of the run's processor time"], "lr", rows)
    return {"overhead": f"{first}\n\n{table}"}
