"""A study that is killed at random moments, with all its processes, until its records are whole;
goes on where it was when it is killed itself."""

from __future__ import annotations

import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvl.cli import main
from mvl.core import files, run_folder, seeds
from mvl.study import status
from mvl.study.grid import study_runs
from tests.faults.conftest import write_task
from tests.faults.kills import context

STUDY = """
title: Twelve runs to kill
tasks: [Toy]
grid:
- {name: main, systems: [vit_baseline, medvisionllama_v3_random], folds: [0, 1], seeds: [0, 1, 2]}
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}
train: {train_epochs: 8, batch_size: 4, checkpoint_s: 0.0}
"""
COMMANDS = ("run", "record")
TIMES = ("runtime_s", "runtime_per_epoch_s", "cpu_s", "peak_memory_mb")
LEFT_OUT = {
    "status.json": ("finished", *TIMES),
    "environment.json": ("started",),
    "runs.csv": TIMES,
}
"""Fields by file in which two undisturbed studies differ too: when, how long, how much memory;
`status.json` also holds the sha256 of `environment.json`. Everything else is compared, the names of
the files as well."""


def work(home: str, command: str) -> None:
    """`mvl study run` or `mvl study record` in a session of its own, ended with the process that
    started it."""
    os.setsid()
    threading.Thread(target=follow, daemon=True).start()
    for stream in (1, 2):
        os.dup2(os.open(f"{home}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(home)
    run_folder.records_dir = lambda: Path("results")
    more = ["--engine", "inline", "--data-dir", "data"] if command == "run" else []
    raise SystemExit(main.main(["study", command, "twelve.yaml", "--results-dir", "runs", *more]))


def follow() -> None:
    """Kill this process's session when the loop is no more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)


def attempt(make: Any, place: Path, command: str, wait: float | None) -> int:
    """Start a command, kill its process group after `wait` seconds (None: never); exit code, -9
    when killed."""
    process = make.Process(target=work, args=(str(place), command))
    process.start()
    process.join(wait)
    if process.is_alive():
        with suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    return int(process.exitcode)


def prepared(place: Path) -> Path:
    """A folder with the study and a task of its own."""
    if not (place / "twelve.yaml").is_file():
        write_task(place / "data" / "Toy")
        files.atomic_write(place / "twelve.yaml", STUDY)
    return place


def undisturbed(make: Any, place: Path) -> dict[str, float]:
    """Run and record the study without a kill; seconds that each of the two took."""
    seconds = place / "seconds.json"
    if not seconds.is_file():
        times = [time.monotonic()]
        for command in COMMANDS:
            assert attempt(make, place, command, None) == 0, (
                f"the undisturbed study failed; see {place / 'log.txt'}"
            )
            times.append(time.monotonic())
        files.write_json(
            seconds, dict(zip(COMMANDS, (b - a for a, b in itertools.pairwise(times))))
        )
    return dict(json.loads(seconds.read_text()))


def read_tally(place: Path, seed: int) -> dict[str, Any]:
    """What an earlier call with this seed did; a call with another seed starts anew."""
    path = place / "killed" / "kills.json"
    if path.is_file() and (tally := json.loads(path.read_text()))["seed"] == seed:
        return dict(tally)
    shutil.rmtree(place, ignore_errors=True)
    return {"seed": seed, "calls": 0, "run": 0, "record": 0, "ended": [], "hit": []}


def longest_life(command: str, seconds: float, grid: int, done: int, pace: float) -> float:
    """Bound of the seconds before a kill. Of `record`: what the undisturbed one takes. Of `run`:
    what one of its runs takes, twice as much for each run that the study is behind its pace and
    half for each that it is ahead, so that the kills are spread over all of it.
    """
    return (
        seconds if command == "record" else min(seconds, seconds / grid * 2 ** (pace * grid - done))
    )


def kill_study(place: Path, kills: int, seed: int, start: str = "forkserver") -> dict[str, Any]:
    """Kill one study `kills` times, a tenth of them while its records are made, let it end, and
    compare its records with an undisturbed one's.

    Returns kills by command (`run`, `record`), `hit` (runs that were on their way at a kill),
    `runs` (how many there are) and `differing` (files of the records that are not the same).
    """
    tally, killed = read_tally(place, seed), prepared(place / "killed")
    make, study = (
        context(start, ("mvl", "mvl.study.grid", "mvl.study.tables", "tests.faults.study_kills")),
        str(killed / "twelve.yaml"),
    )
    seconds, grid = undisturbed(make, prepared(place / "calm")), len(study_runs(study))
    for command, share in (("run", kills - kills // 10), ("record", kills)):
        while command not in tally["ended"]:
            before, wait = tally["run"] + tally["record"], None
            if before < share:
                done = grid - len(status.missing_runs(study, killed / "runs"))
                bound = longest_life(command, seconds[command], grid, done, before / share)
                wait = random.Random(seeds.draw_seed(seed, command, tally["calls"])).uniform(
                    0, bound
                )
            begun, code = time.monotonic(), attempt(make, killed, command, wait)
            assert code in (
                0,
                -signal.SIGKILL,
            ), f"`mvl study {command}` ended with {code}; see {killed / 'log.txt'}"
            # done before it was killed: once more, from nothing
            if code == 0 and command == "record" and before < share:
                seconds[command] = min(seconds[command], time.monotonic() - begun)
                shutil.rmtree(killed / "results")
            tally["calls"] += 1
            tally[command] += code != 0
            tally["ended"] += [command] * (code == 0 and (command == "run" or before >= share))
            rows = status.study_status(study, killed / "runs")["runs"]
            tally["hit"] = sorted(
                {*tally["hit"], *(row["run"] for row in rows if row["state"] == "interrupted")}
            )
            files.write_json(killed / "kills.json", tally)
    return {key: tally[key] for key in ("run", "record", "hit")} | {
        "runs": grid,
        "differing": differing(place / "calm/results", killed / "results"),
    }


def differing(one: Path, other: Path) -> list[str]:
    """Files that only one of two folders of records has, or whose bytes differ, `LEFT_OUT` left
    out."""
    texts = [
        {
            str(path.relative_to(folder)): compared(path)
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }
        for folder in (one, other)
    ]
    return sorted(
        name for name in {*texts[0], *texts[1]} if texts[0].get(name) != texts[1].get(name)
    )


def compared(path: Path) -> bytes:
    """The bytes of a recorded file, without what `LEFT_OUT` names."""
    names, data = LEFT_OUT.get(path.name, ()), path.read_bytes()
    if path.suffix == ".json":
        value = json.loads(data)
        value.get("files", {}).pop("environment.json", None)
        return json.dumps(
            {key: item for key, item in value.items() if key not in names}, indent=1
        ).encode()
    if path.name == "runs.csv":
        rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
        keep = [index for index, column in enumerate(rows[0]) if column not in names]
        return json.dumps([[row[index] for index in keep] for row in rows]).encode()
    return data
