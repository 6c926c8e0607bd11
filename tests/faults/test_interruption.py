"""F: runs that are killed, signalled, resumed elsewhere, or find their checkpoints damaged."""

from __future__ import annotations

import ast
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.core import files, machine, progress, run_folder
from mvl.core.config import ROOT, Config
from mvl.datasets import decoded_cache
from mvl.datasets.case_store import CaseStore
from mvl.datasets.loaders import training_loader
from mvl.datasets.registry import find_task
from mvl.datasets.splits import load_split
from mvl.datasets.task_data import TaskData, open_task
from mvl.training import checkpoints, loop, resume_check, run
from tests.faults.figures import record_figure
from tests.faults.injection import layer
from tests.faults.kills import kill_runs, kill_writers

NOT_HERE: dict[str, str] = {}
Patch = pytest.MonkeyPatch


def dying(act: Callable[[], object]) -> int:
    """Signal that ended a forked process in which `act` was called, 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] & 0x7F


def row_F1(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 at random moments: the end is the undisturbed one's, to the byte."""
    found = kill_runs(folder / "kills", 2, 1, 5, "fork")
    assert (
        found["kills"] >= 2
        and found["ends"] >= 1
        and found["differing"] == 0
        and found["good"] == found["kills"]
    )


def row_F2(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, then SIGINT: the step is finished and checkpointed, exit code 143 and 130, the
    command to go on is said."""
    update, done = loop.Trainer.update, []

    def update_then_signal(
        self: loop.Trainer, batch: dict[str, object], weight: float = 1.0
    ) -> float:
        done.append(self.progress.epoch * self.steps_per_epoch + self.progress.step)
        if len(done) in (2, 4):
            os.kill(os.getpid(), signal.SIGTERM if len(done) == 2 else signal.SIGINT)
        return update(self, batch, weight)

    patch.setattr(loop.Trainer, "update", update_then_signal)
    for code in (143, 130):
        with pytest.raises(progress.Interrupted) as stopped:
            run.train_run(tiny, folder / "runs", data, progress=False)
        assert (
            stopped.value.code == code
            and "mvl train --study tiny --task Toy" in stopped.value.command
        )
        assert (
            run_folder.read_status(run_folder.run_dir(folder / "runs", tiny))["state"]
            == "interrupted"
        )
    ended = run.train_run(tiny, folder / "runs", data, progress=False)
    assert done == list(range(8)), "no step twice, none left out"
    epochs = [line.split(",")[0] for line in (ended / "history.csv").read_text().splitlines()[1:]]
    assert epochs == ["0", "1", "2", "3"]


def row_F3(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that dies at each write, fsync and rename of a checkpoint: the one before is there
    and is whole."""
    with layer(folder / "count") as seen:
        checkpoints.save(folder / "count", 1, {"step": 1})
    for kind, at in [
        (name, number)
        for name in ("write", "fsync", "replace")
        for number in range(seen.count(name))
    ]:
        place = folder / f"{kind}-{at}"
        checkpoints.save(place, 1, {"step": 1})

        def save(place: Path = place, kind: str = kind, at: int = at) -> None:
            with layer(place, kind, at, die=True):
                checkpoints.save(place, 2, {"step": 2})

        assert dying(save) == signal.SIGKILL
        assert checkpoints.load(place) in ({"step": 1}, {"step": 2})
        files.sweep(place)
        assert {p.suffix for p in place.iterdir()} == {".pt"}


def row_F4(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, a cut end, an empty file: named, and the one before is taken; with none whole
    it is an error, never a new start."""
    first = checkpoints.save(folder, 1, {"step": 1})
    path = checkpoints.save(folder, 2, {"step": 2, "x": torch.ones(100)})
    good = path.read_bytes()
    for bad in (good[:300] + bytes([good[300] ^ 4]) + good[301:], good[:-3], b""):
        path.write_bytes(bad)
        assert checkpoints.load(folder) == {"step": 1}
        assert path.name in capsys.readouterr().err
    first.write_bytes(b"")
    with pytest.raises(
        files.RunError, match=rf"{folder}.*no checkpoint is whole; delete the checkpoint"
    ):
        checkpoints.load(folder)


def row_F5(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed with another setting, package or processor: refused with the difference;
    --allow-drift marks the run."""
    run_folder.write_config(folder, tiny)
    with pytest.raises(files.RunError, match=r"config.yaml.*train.lr: [\d.]+ -> 0.5.*delete"):
        run_folder.write_config(folder, replace(tiny, train=replace(tiny.train, lr=0.5)))
    files.write_json(folder / "environment.json", resume_check.environment(folder))
    checkpoints.save(folder, 1, {"step": 1})
    now = machine.environment()
    other = now | {
        "packages": now["packages"] | {"torch": "1.0"},
        "platform": now["platform"] | {"device": "NVIDIA T4"},
    }
    patch.setattr(machine, "environment", lambda: other)
    with pytest.raises(
        files.RunError,
        match=(
            r"environment.json.*packages.torch: .* -> '1.0'; platform.device: .*NVIDIA"
            r" T4.*--allow-drift"
        ),
    ):
        resume_check.environment(folder)
    assert len(resume_check.environment(folder, allow=True)["drift"]) == 2


def row_F6(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed with another number of loader processes: the same batches to the bit, from any step
    on."""
    task = find_task("Toy", data)
    store = CaseStore(
        TaskData(task, data), load_split(TaskData(task, data), 0, 1.0).train, tiny.data
    )
    alone, pair = (
        list(training_loader(store, replace(tiny, data=replace(tiny.data, num_workers=n)), 3, 1))
        for n in (0, 2)
    )
    assert len(alone) == len(pair) == 1 and alone[0]["cases"] == pair[0]["cases"]
    assert torch.equal(alone[0]["image"], pair[0]["image"]) and torch.equal(
        alone[0]["label"], pair[0]["label"]
    )


def row_F7(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dead after a checkpoint and before its line of progress: the history stands in the
    checkpoint, so no row is lost or doubled."""
    original = loop.write_state

    def die(trainer: loop.Trainer, state: str) -> None:
        if trainer.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        original(trainer, state)

    patch.setattr(loop, "write_state", die)
    assert (
        dying(lambda: run.train_run(tiny, folder / "runs", data, progress=False)) == signal.SIGKILL
    )
    patch.undo()
    ended = run.train_run(tiny, folder / "runs", data, progress=False)
    assert [
        line.split(",")[0] for line in (ended / "history.csv").read_text().splitlines()[1:]
    ] == ["0", "1", "2", "3"]


def row_F8(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock is put back by a year: durations come from the monotonic clock, in every module."""
    calls = [
        f"{path.name}:{node.lineno}"
        for path in (ROOT / "mvl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "time"
        and getattr(node.value, "id", "") == "time"
    ]
    assert calls == [], "time.time() in place of time.monotonic()"
    patch.setattr(time, "time", itertools.count(2e9, -1e6).__next__)
    folder = run.train_run(
        replace(tiny, train=replace(tiny.train, train_epochs=1)),
        folder / "runs",
        data,
        progress=False,
    )
    assert 0 <= run_folder.read_status(folder)["runtime_s"] < 600


def row_F9(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Power loss: each file is synced before its rename, and its folder after it."""
    with layer(folder) as seen:
        checkpoints.save(folder, 1, {"step": 1})
        files.write_json(folder / "status.json", {})
    kinds = [kind for kind, _ in seen.events if kind != "write"]
    assert kinds == ["fsync", "replace", "fsync"] * 2
    assert [os.path.realpath(path) for kind, path in seen.events if kind == "fsync"][1::2] == [
        os.path.realpath(folder)
    ] * 2


def row_F10(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Temporary files of a hundred killed writers: gone at the next start, under the run's lock."""
    place = run_folder.run_dir(folder, tiny)
    place.mkdir(parents=True)
    for index in range(100):
        (place / f".weights.safetensors.{index}-ab.tmp").write_text("half")
    patch.setattr(run, "prepare", lambda *_: None)
    patch.setattr(run, "train_and_seal", lambda *_: None)
    run.train_run(tiny, folder, data, progress=False)
    assert {p.name for p in place.iterdir()} == {".lock", ".given.json"}


def row_F11(
    folder: Path, tiny: Config, data: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoded cases on disk: flipped, cut, empty, half written, of another file, of other
    transforms, of two writers: never a wrong array."""
    task, case_ids = find_task("Toy", data), load_split(open_task("Toy", data), 0, 1.0).train

    def fresh(settings=tiny.data):
        return CaseStore(TaskData(task, data), case_ids, settings)

    plain = [fresh().get(index) for index in range(len(case_ids))]

    def same(a, b):
        return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))

    patch.setenv("MVL_CACHE", str(folder / "cache"))

    def fill() -> None:
        store = fresh()
        for index in range(len(case_ids)):
            store.get(index)

    writers = [os.fork() or (fill(), os._exit(0)) for _ in range(2)]  # type: ignore[func-returns-value]
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0, 0]
    paths = list(decoded_cache.entries(folder / "cache"))
    assert len(paths) == len(case_ids), "two writers, one entry for each case and no half of one"
    with patch.context() as undecodable:
        undecodable.setattr(
            CaseStore, "_transformed", lambda *_: pytest.fail("decoded although it is kept")
        )
        assert all(same(fresh().get(index), pair) for index, pair in enumerate(plain))
    victim = next(
        p
        for p in paths
        if p.name.startswith(
            decoded_cache.key(
                task, fresh().cases[0], tiny.data, tuple(fresh()._digests(0).values())
            )
        )
    )
    good = victim.read_bytes()
    for bad in (good[:900] + bytes([good[900] ^ 1]) + good[901:], good[:-1], b""):
        victim.write_bytes(bad)
        assert (
            same(fresh().get(0), plain[0]) and f"{victim}: bytes differ" in capsys.readouterr().err
        )
        assert victim.read_bytes() == good, "written anew"
        assert same(fresh().get(0), plain[0]) and capsys.readouterr().err == "", "and said once"
    half = victim.with_name(f".{victim.name}.1-ab.tmp")
    half.write_bytes(good[:100])
    assert same(fresh().get(0), plain[0]) and half in decoded_cache.entries(folder / "cache"), (
        "a half entry is not read, and is there to be cleared"
    )
    assert fresh(replace(tiny.data, img_size=(24, 16, 16))).get(0)[0].shape == (
        1,
        24,
        16,
        16,
    ), "other transforms, other entry"
    image = fresh().cases[0].image
    image.write_bytes(fresh().cases[1].image.read_bytes())
    (data / "Toy" / "manifest.json").unlink()
    assert torch.equal(fresh().get(0)[0], plain[1][0]), "another file, another entry"


ROWS = {name[4:]: act for name, act in list(globals().items()) if name.startswith("row_")}


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(
    row: str,
    tmp_path: Path,
    tiny: Config,
    case_folder: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    ROWS[row](place, tiny, case_folder.parent, monkeypatch, capsys)


def test_every_row_is_here() -> None:
    assert {*ROWS, *NOT_HERE} == {f"F{number}" for number in range(1, 12)}


SEED = int(os.environ.get("MVL_FAULT_SEED", "0"))
KILLS = int(os.environ.get("MVL_FAULT_KILLS", "24"))


@pytest.mark.faults
def test_killed_at_random_moments_every_run_ends_the_same(tmp_path: Path) -> None:
    count, place = (
        int(os.environ.get("MVL_FAULT_RUNS", "2")),
        Path(os.environ.get("MVL_FAULT_STATE", tmp_path)).absolute(),
    )
    print(f"kills: seed {SEED}, {KILLS} kills over {count} runs, in {place}", flush=True)
    found = kill_runs(place, KILLS, count, SEED)
    print(json.dumps(found), flush=True)
    record_figure(
        "kills",
        found["good"],
        found["kills"],
        f"{found['runs']} runs ended {found['ends']} times, {found['differing']} with other bytes;"
        f" seed {SEED}",
    )
    assert found["good"] == found["kills"] >= KILLS and found["differing"] == 0


@pytest.mark.faults
def test_killed_inside_a_checkpoint_write_what_is_left_loads(tmp_path: Path) -> None:
    print(f"kills of checkpoint writers: seed {SEED}, {KILLS} kills", flush=True)
    found = kill_writers(tmp_path / "run", KILLS, SEED)
    record_figure(
        "checkpoint_kills",
        found["loadable"],
        found["kills"],
        f"{found['cut']} left a half file, {found['stale']} of them stayed after the next start; 1"
        f" MB each; seed {SEED}",
    )
    assert found["loadable"] == found["kills"] == KILLS and found["stale"] == 0
