"""A study of twelve runs that is killed again and again ends with the records of an undisturbed
one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mvl.core.files import sha256_bytes, write_csv, write_json
from tests.faults.figures import record_figure
from tests.faults.study_kills import LEFT_OUT, differing, kill_study, longest_life

SEED = int(os.environ.get("MVL_FAULT_SEED", "0"))
KILLS = int(os.environ.get("MVL_FAULT_STUDY_KILLS", "50"))


def records(folder: Path, second: int = 1, dice: float = 0.5, commit: str = "a") -> Path:
    """Records of one run, made at a time that shows in them."""
    write_json(
        folder / "runs/one/environment.json",
        {"started": f"2026-01-01T00:00:0{second}Z", "mvl": {"commit": commit}},
    )
    files = {
        "cases.csv": sha256_bytes(str(dice).encode()),
        "environment.json": f"hash of the {second}th",
    }
    write_json(
        folder / "runs/one/status.json",
        {"state": "done", "finished": f"at {second}", "cpu_s": float(second), "files": files},
    )
    write_csv(
        folder / "runs.csv",
        [{"run": "one", "dice": dice, "cpu_s": second}],
        ["run", "dice", "cpu_s"],
    )
    return folder


def test_only_times_and_memory_are_left_out(tmp_path: Path) -> None:
    assert sorted({name for names in LEFT_OUT.values() for name in names}) == [
        "cpu_s",
        "finished",
        "peak_memory_mb",
        "runtime_per_epoch_s",
        "runtime_s",
        "started",
    ]
    first = records(tmp_path / "first")
    assert differing(first, records(tmp_path / "later", second=2)) == []
    assert differing(first, records(tmp_path / "other", dice=0.25)) == [
        "runs.csv",
        "runs/one/status.json",
    ]
    assert differing(first, records(tmp_path / "commit", commit="b")) == [
        "runs/one/environment.json"
    ]
    (first / ".lock").write_text("pid 1")
    (first / "runs/one/.cases.csv.1-ab.tmp").write_text("half")
    assert differing(first, tmp_path / "later") == ["runs/one/.cases.csv.1-ab.tmp"]


def test_a_process_lives_longer_where_the_study_is_behind() -> None:
    assert longest_life("run", 60.0, 12, done=3, pace=0.25) == 5.0
    assert (
        longest_life("run", 60.0, 12, done=2, pace=0.25) == 10.0
        and longest_life("run", 60.0, 12, done=4, pace=0.25) == 2.5
    )
    assert (
        longest_life("run", 60.0, 12, done=0, pace=1.0) == 60.0
        and longest_life("record", 2.0, 12, 12, 0.9) == 2.0
    )


@pytest.mark.faults
def test_a_study_killed_at_random_moments_ends_with_the_same_records(tmp_path: Path) -> None:
    place = Path(os.environ.get("MVL_FAULT_STATE", tmp_path)).absolute() / "study"
    print(f"kills of a study: seed {SEED}, {KILLS} kills, in {place}", flush=True)
    found = kill_study(place, KILLS, SEED)
    print(json.dumps(found), flush=True)
    kills, same = found["run"] + found["record"], not found["differing"]
    record_figure(
        "study_kills",
        kills * same,
        kills,
        f"one study of {found['runs']} runs: {found['run']} kills while training"
        f" ({len(found['hit'])} of its runs were hit), {found['record']} while recording, then left"
        f" alone; {len(found['differing'])} files differ but for times and memory; seed {SEED}",
    )
    assert same and kills >= KILLS, (
        f"other bytes in {found['differing']}; if the code was changed on the way, delete {place}"
        " to start anew"
    )
