"""K: two processes that want the same run, the same table or the same name, and locks that are left
behind."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, METRICS, run_columns
from mvl.core.config import ROOT, Config
from mvl.study import tables
from mvl.study.grid import load_study, study_runs
from mvl.training import run
from tests.faults.figures import record_figure

NOT_HERE: dict[str, str] = {}
STUDY = (
    "title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline], seeds: [0, 1]}]\n"
)


def child(act: Callable[[], object]) -> int:
    """Process number of a forked process that does `act` and ends."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return process


def holder(folder: Path) -> int:
    """A process that holds a run's lock until it is killed."""
    ready, told = os.pipe()

    def hold() -> None:
        with files.locked(folder):
            os.write(told, b"x")
            signal.pause()

    process = child(hold)
    os.read(ready, 1)
    return process


def stop(process: int) -> None:
    """Kill a process and wait for its end."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def second_starts(tiny: Config, results: Path, times: int) -> int:
    """How many of so many second starts of a held run are refused with the holder's number, and
    leave the folder as it was."""
    folder, refused = run_folder.run_dir(results, tiny), 0
    for _ in range(times):
        process = holder(folder)
        before = sorted(p.name for p in folder.iterdir())
        try:
            run.train_run(tiny, results, progress=False)
        except files.RunError as error:
            told = f"{folder} is held by pid {process} since 2" in str(error) and "stop it" in str(
                error
            )
            refused += told and sorted(p.name for p in folder.iterdir()) == before
        stop(process)
        with files.locked(folder):
            pass
    return refused


def write_rows(config: Config, results: Path, count: int) -> None:
    """A done run whose cases.csv grows row by row to `count` rows, each time written whole."""
    folder, rows = run_folder.run_dir(results, config), []
    run_folder.write_config(folder, config)
    files.atomic_write(folder / "environment.json", "{}")
    files.write_csv(folder / "history.csv", [], tables.HISTORY_COLUMNS)
    files.atomic_write(folder / "weights.safetensors", b"")
    for number in range(count):
        rows.append(
            dict.fromkeys(CASE_COLUMNS, "1")
            | run_columns(config)
            | dict.fromkeys(METRICS, 0.5)
            | {
                "case": f"c{number}",
                "label": "foreground",
                "status": "ok",
            }
        )
        if number % 30 == 29 or number == count - 1:
            files.write_csv(folder / "cases.csv", rows, CASE_COLUMNS)
            run_folder.seal(folder, {"parameters": {}})


def two_writers(folder: Path, count: int) -> tuple[int, int]:
    """(rows in the table, times that a reader met a torn one) of two processes that write `count`
    rows each while a third collects."""
    study, results, torn = folder / "two.yaml", folder / "runs", 0
    study.write_text(STUDY)
    processes = [
        child(lambda config=config: write_rows(config, results, count))
        for config in study_runs(str(study))
    ]
    while processes:
        for process in [p for p in processes if os.waitpid(p, os.WNOHANG)[0]]:
            processes.remove(process)
        try:
            tables.collect(str(study), results)
            tables.read_cases(str(study), results)
        except tables.TableError:
            torn += 1
    tables.collect(str(study), results)
    return len(tables.read_cases(str(study), results)), torn


def row_K1(folder: Path, tiny: Config, patch: pytest.MonkeyPatch) -> None:
    """The same run started twice: refused with process number and time; free again when the first
    is killed."""
    assert second_starts(tiny, folder, 2) == 2


def row_K2(folder: Path, tiny: Config, patch: pytest.MonkeyPatch) -> None:
    """Two runs that write rows: each has its file, and a pure function merges them; none is
    lost."""
    assert two_writers(folder, 30)[0] == 60


def row_K3(folder: Path, tiny: Config, patch: pytest.MonkeyPatch) -> None:
    """No two runs of any study share a folder, whatever the file system does with case; one folder
    never takes two configs."""
    for path in (ROOT / "mvl" / "configs" / "studies").glob("*.yaml"):
        study = load_study(path.stem)
        keys = {
            key
            for part in study.grid
            for key in itertools.product(
                part.get("tasks", study.tasks),
                part["systems"],
                part.get("fractions", [1.0]),
                part.get("seeds", [0]),
                part.get("folds", [0]),
            )
        }
        names = {
            run_folder.run_name(Config(task=t, system=y, fraction=float(f), seed=s, fold=k)).lower()
            for t, y, f, s, k in keys
        }
        assert len(names) == len(keys)
    changed = [
        {"fraction": 0.5},
        {"fold": 1},
        {"seed": 1},
        {"task": "Other"},
        {"system": "unet"},
        {"study": "s"},
    ]
    folders = [
        run_folder.run_dir(
            folder, Config(**({"study": "a", "task": "Toy", "system": "vit"} | some))
        )
        for some in [{}, *changed]
    ]
    assert all(a != b and a not in b.parents for a, b in itertools.permutations(folders, 2))
    run_folder.write_config(folder, tiny)
    with pytest.raises(
        files.RunError, match=r"config.yaml was begun with other settings: train.lr.*delete"
    ):
        run_folder.write_config(
            folder,
            Config(
                **(vars(tiny) | {"train": type(tiny.train)(**(vars(tiny.train) | {"lr": 0.5}))})
            ),
        )


def row_K4(folder: Path, tiny: Config, patch: pytest.MonkeyPatch) -> None:
    """Tables are collected while two runs write: never half a row."""
    assert two_writers(folder, 60) == (120, 0)


def row_K5(folder: Path, tiny: Config, patch: pytest.MonkeyPatch) -> None:
    """A lock file that a crash left: no obstacle, for the kernel holds the lock. A file system
    without locks: refused, with the remedy."""
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text("pid 1 since 2020-01-01T00:00:00Z")
    with files.locked(folder):
        assert f"pid {os.getpid()} since" in (folder / ".lock").read_text()
    for number in (errno.ENOLCK, errno.EOPNOTSUPP):

        def flock(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        patch.setattr(fcntl, "flock", flock)
        with (
            pytest.raises(
                files.RunError,
                match=rf"{folder}: the file system has no locks .*local disk with --results-dir",
            ),
            files.locked(folder),
        ):
            pass


ROWS = {name[4:]: act for name, act in list(globals().items()) if name.startswith("row_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(row: str, tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    ROWS[row](place, tiny, monkeypatch)


def test_every_row_is_here() -> None:
    assert {*ROWS, *NOT_HERE} == {"K1", "K2", "K3", "K4", "K5"}


@pytest.mark.faults
def test_figures_of_two_processes(tmp_path: Path, tiny: Config) -> None:
    rows, torn = two_writers(tmp_path, 300)
    record_figure(
        "two_writers",
        rows,
        600,
        f"two runs of 300 rows, tables collected all the while; {torn} torn reads",
    )
    refused = second_starts(tiny, tmp_path / "held", 50)
    record_figure(
        "second_start",
        refused,
        50,
        "a process holds the run, the next is refused with its number, and gets the lock once that"
        " is killed",
    )
    assert (rows, torn, refused) == (600, 0, 50)
