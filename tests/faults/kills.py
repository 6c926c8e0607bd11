"""Training processes, and writers of checkpoints, that are killed at random moments; goes on where
it was when it is killed itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from mvl.core import files, seeds
from mvl.core.config import load_config
from mvl.core.run_folder import is_done, run_dir
from mvl.training import checkpoints
from tests.faults.conftest import TINY, write_task

BYTES = ("weights.safetensors", "history.csv", "cases.csv")
FILLED = 250_000
"Numbers in each checkpoint that a killed writer writes, 1 MB."


def context(start: str, more: Sequence[str] = ()) -> Any:
    """Processes that are cheap to start: forked, or from a server that has imported the package,
    and the modules `more`, already."""
    made = multiprocessing.get_context(start)
    if start == "forkserver":
        made.set_forkserver_preload(["mvl.training.loop", "mvl.training.evaluate", *more])
    # the server imports the package before it starts its first process; that is no part of a run's
    # time
    first = made.Process(target=os.getpid)
    first.start()
    first.join()
    return made


def train(place: str, results: str, seed: int) -> None:
    """One attempt at a run, in a process of its own."""
    from mvl.training.run import train_run

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train_run(
        load_config(f"{place}/tiny.yaml", "Toy", "vit_baseline", seed=seed),
        Path(results),
        Path(place) / "data",
        progress=False,
    )


def attempt(make: Any, place: Path, results: Path, seed: int, wait: float | None) -> int:
    """Start the run, kill it after `wait` seconds (None: never); its exit code, -9 when it was
    killed."""
    process = make.Process(target=train, args=(str(place), str(results), seed))
    process.start()
    process.join(wait)
    if process.is_alive():
        process.kill()
    process.join()
    return int(process.exitcode)


def run_folder(place: Path, results: Path, seed: int) -> Path:
    """Folder of a run."""
    return run_dir(results, load_config(f"{place}/tiny.yaml", "Toy", "vit_baseline", seed=seed))


def calm_run(make: Any, place: Path, seed: int) -> tuple[Path, float]:
    """The undisturbed run and the seconds that it takes."""
    folder, begun = run_folder(place, place / "calm", seed), time.monotonic()
    if not is_done(folder, need_weights=True):
        assert attempt(make, place, place / "calm", seed, None) == 0, (
            f"the undisturbed run {folder} failed"
        )
        (folder / "seconds").write_text(str(time.monotonic() - begun))
    return folder, (
        float((folder / "seconds").read_text()) if (folder / "seconds").is_file() else 5.0
    )


def same(a: Path, b: Path) -> bool:
    """True when both runs are whole, end with the same bytes, and leave no temporary file and no
    checkpoint."""
    clean = not [p for p in b.iterdir() if p.name.endswith(".tmp") or p.suffix == ".pt"]
    return (
        clean
        and is_done(b, need_weights=True)
        and all((a / name).read_bytes() == (b / name).read_bytes() for name in BYTES)
    )


def kill_runs(
    place: Path, kills: int, count: int, seed: int, start: str = "forkserver"
) -> dict[str, int]:
    """Kill `kills` processes over `count` runs; a run that ends before its share of kills is
    compared and begun anew.

    Returns runs, kills, ends, differing and `good`: the kills whose run ended like the undisturbed
    one.
    """
    make = context(start)
    if not (place / "tiny.yaml").is_file():
        write_task(place / "data" / "Toy")
        (place / "tiny.yaml").write_text(TINY)
    tallies = read_state(place, seed)
    for run in range(count):
        tally = tallies.setdefault(
            str(run), {"kills": 0, "ends": 0, "differing": 0, "good": 0, "now": 0}
        )
        calm, seconds = calm_run(make, place, run)
        while tally["kills"] < kills // count + (run < kills % count) or tally["now"]:
            spare = tally["kills"] >= kills // count + (run < kills % count)
            draw = random.Random(seeds.draw_seed(seed, "kill", run, tally["kills"], tally["ends"]))
            life = place / "killed" / f"{run}-{tally['ends']}"
            begun = time.monotonic()
            code = attempt(make, place, life, run, None if spare else draw.uniform(0, seconds))
            seconds = (
                min(seconds, time.monotonic() - begun)
                if code == 0 and not tally["now"]
                else seconds
            )
            tally[{-9: "kills", 0: "ends"}.get(code, "differing")] += 1
            tally["now"] += code == -9
            if code != -9:
                alike = code == 0 and same(calm, run_folder(place, life, run))
                tally["good"], tally["differing"] = (
                    tally["good"] + alike * tally["now"],
                    tally["differing"] + (code == 0 and not alike),
                )
                tally["now"] = 0
                if alike:
                    shutil.rmtree(life, ignore_errors=True)
                assert tally["differing"] < 10, (
                    f"run {run}: {life} ends with {code} or other bytes again and again"
                )
            files.write_json(place / "kills.json", {"seed": seed, "runs": tallies})
    some = [tallies[str(run)] for run in range(count)]
    return {"runs": count} | {
        key: sum(tally[key] for tally in some) for key in ("kills", "ends", "differing", "good")
    }


def read_state(place: Path, seed: int) -> dict[str, dict[str, int]]:
    """What an earlier call with this seed did; a call with another seed starts anew."""
    try:
        state = json.loads((place / "kills.json").read_text())
    except (OSError, ValueError):
        return {}
    if state["seed"] != seed:
        shutil.rmtree(place / "killed", ignore_errors=True)
        return {}
    return dict(state["runs"])


def save_for_ever(folder: str, step: int, told: Connection) -> None:
    """Write one checkpoint after another, telling each before it is written."""
    while True:
        told.send(step)
        checkpoints.save(
            Path(folder), step, {"step": step, "x": torch.full((FILLED,), float(step))}
        )
        step += 1


def kill_writers(
    folder: Path,
    kills: int,
    seed: int,
    start: str = "forkserver",
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Kill a writer of checkpoints inside a write, `kills` times; how many times what is left
    loads, and temporary files left after a sweep."""
    make, draw, step, out = (
        context(start),
        random.Random(seed),
        1,
        {"kills": 0, "loadable": 0, "cut": 0, "stale": 0},
    )
    for _ in range(kills):
        here, there = make.Pipe(duplex=False)
        process = make.Process(target=save_for_ever, args=(str(folder), step, there))
        process.start()
        there.close()
        times = [(here.recv(), time.monotonic()) for _ in range(3)]
        time.sleep(draw.uniform(0, times[2][1] - times[1][1]))
        process.kill()
        process.join()
        out["kills"] += process.exitcode == -9
        whole = all(
            path.stem.endswith(files.sha256_file(path)[:16]) for path in checkpoints.found(folder)
        )
        state = checkpoints.load(folder) or {"step": -1, "x": torch.zeros(1)}
        out["loadable"] += (
            whole and state["step"] >= times[2][0] - 1 and bool((state["x"] == state["step"]).all())
        )
        out["cut"] += files.sweep(folder) > 0
        out["stale"] += len(list(folder.glob(".*.tmp")))
        step = max(int(state["step"]), 0) + 1
        if out["kills"] % 100 == 0:
            say(
                f"{out['kills']} kills inside checkpoint writes, {out['loadable']} loadable,"
                f" {out['cut']} left a half file"
            )
    return out
