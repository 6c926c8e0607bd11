"""Tables from run folders: digits kept, holes kept, damage refused."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, DECATHLON, RUN_KEYS
from mvl.core.config import Config, load_config
from mvl.core.means import mean
from mvl.study import tables
from mvl.study.run_rows import Fingerprints
from mvl.study.status import state_of
from mvl.study.tables import (
    TableError,
    collect,
    read_cases,
    read_history,
    read_runs,
    record,
    summary,
)
from tests.faults.injection import layer

DICE = (0.8123456789012345, 0.1 + 0.2, 1 / 3)


def grid(tasks: tuple[str, ...] = ("Task04_Hippocampus",)) -> list[Config]:
    return [
        load_config("hippocampus", task, system, 1.0, 0, seed)
        for task in tasks
        for system in ("vit_baseline", "medvisionllama_v3")
        for seed in (0, 1)
    ]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    configs = grid()
    monkeypatch.setattr(tables, "study_runs", lambda name: configs)
    return configs


def make_run(
    results: Path, config: Config, shift: float = 0.0, machine: str = "a", decathlon: bool = False
) -> Path:
    """A finished run; without `decathlon` one that was scored before the Decathlon's metrics
    were."""
    folder = run_folder.run_dir(results, config)
    run_folder.write_config(folder, config)
    files.write_json(folder / "environment.json", {"platform": {"machine": machine}})
    files.write_csv(
        folder / "history.csv",
        [dict(zip(tables.HISTORY_COLUMNS, (e, 1e-3, 0.1 + 0.2, 0.5, 0.25))) for e in (1, 2)],
        tables.HISTORY_COLUMNS,
    )
    fixed = {
        "label": "foreground",
        "status": "ok",
        "jaccard": 0.5,
        "sensitivity": 0.5,
        "specificity": 1.0,
        "nsd": 0.5,
        "hd95_mm": 2.0,
        "dice_resized": 0.5,
        "nsd_tolerance_mm": 1.0,
        "voxels_label": 10,
        "voxels_prediction": 12,
    }
    names = {k: getattr(config, k) for k in RUN_KEYS}
    rows = [
        names | fixed | {"case": f"hippocampus_00{i}", "dice": d - shift}
        for i, d in enumerate(DICE)
    ]
    rows[2]["status"] = "missed"
    columns = CASE_COLUMNS if decathlon else tables.without_decathlon(CASE_COLUMNS)
    if decathlon:
        new = {"nsd_decathlon": 0.75, "hd95_decathlon_mm": 1.5}
        rows = [row | new for row in rows]
    files.write_csv(folder / "cases.csv", rows, columns)
    files.atomic_write(
        folder / "weights.safetensors", f"weights {shift} {run_folder.run_name(config)}"
    )
    run_folder.seal(
        folder,
        {
            "best_epoch": 2,
            "runtime_s": 1.5,
            "runtime_per_epoch_s": 0.75,
            "peak_memory_mb": 300.0,
            "parameters": {"trainable": 7, "frozen": 3, "total": 10},
        },
    )
    return folder


def test_every_digit_survives_and_bytes_repeat(study: list[Config], tmp_path: Path) -> None:
    for config in study:
        make_run(tmp_path, config)
    folder = collect("hippocampus", tmp_path)
    first = [(folder / f"{n}.csv").read_bytes() for n in ("runs", "cases", "history")]
    assert [
        (collect("hippocampus", tmp_path) / f"{n}.csv").read_bytes()
        for n in ("runs", "cases", "history")
    ] == first
    cases, table = read_cases("hippocampus", tmp_path), read_runs("hippocampus", tmp_path)
    assert tuple(cases["dice"][:3]) == DICE
    assert table["dice"].tolist() == [mean(DICE)] * 4
    assert table.loc[0, ["n_test", "missed", "best_epoch", "trainable", "total"]].tolist() == [
        3,
        1,
        2,
        7,
        10,
    ]
    assert table["dice_sd"][0] == pytest.approx(cases["dice"][:3].std())
    assert table["cases_sha256"][0] == files.sha256_file(tmp_path / table["run"][0] / "cases.csv")
    assert len(read_history("hippocampus", tmp_path)) == 8
    assert read_history("hippocampus", tmp_path)["train_loss"][0] == 0.1 + 0.2


def test_holes_keep_their_row_with_the_reason(study: list[Config], tmp_path: Path) -> None:
    make_run(tmp_path, study[0])
    files.write_json(
        run_folder.run_dir(tmp_path, study[1]) / "status.json",
        {"state": "failed", "error": "out of luck"},
    )
    with open(make_run(tmp_path, study[2]) / "cases.csv", "a") as file:
        file.write("x")
    collect("hippocampus", tmp_path)
    table = read_runs("hippocampus", tmp_path)
    assert table["state"].tolist() == ["done", "failed", "damaged", "missing"]
    assert table["dice"].isna().tolist() == [False, True, True, True]
    assert len(read_cases("hippocampus", tmp_path)) == 3
    assert [line.rsplit(": ", 1)[1] for line in tables.holes("hippocampus", tmp_path)] == [
        "failed",
        "damaged",
        "missing",
    ]
    rows = summary("hippocampus", tmp_path)
    assert rows[["planned", "done", "n_cases"]].to_numpy().tolist() == [[2, 1, 3], [2, 0, 0]]
    assert math.isnan(rows["dice"][1])
    assert math.isnan(rows["dice_sd"][0])


def test_nothing_done_still_reads(study: list[Config], tmp_path: Path) -> None:
    collect("hippocampus", tmp_path)
    assert read_cases("hippocampus", tmp_path).empty
    assert read_runs("hippocampus", tmp_path)["state"].tolist() == ["missing"] * 4


def test_run_with_other_settings_is_stale(study: list[Config], tmp_path: Path) -> None:
    folder = make_run(tmp_path, study[0])
    for change, state in (
        (("cache_gb: 4.0", "cache_gb: 1.0"), "done"),
        (
            ("train_epochs: 20", "train_epochs: 41"),
            "stale",
        ),
    ):
        text = (folder / "config.yaml").read_text()
        assert change[0] in text
        (folder / "config.yaml").write_text(text.replace(*change))
        run_folder.seal(folder, {})
        assert state_of(folder, study[0]) == state


def test_record_copies_the_record_without_weights(study: list[Config], tmp_path: Path) -> None:
    for config in study[:3]:
        make_run(tmp_path / "work", config)
    target = record("hippocampus", tmp_path / "work", tmp_path / "records")
    held = {path.name for path in (run_folder.run_dir(tmp_path / "records", study[0])).iterdir()}
    assert held == {*run_folder.RECORD_FILES, "status.json"}
    assert target == tmp_path / "records" / "hippocampus"
    assert read_runs("hippocampus", tmp_path / "records")["state"].tolist() == [
        "done",
        "done",
        "done",
        "missing",
    ]
    collect("hippocampus", tmp_path / "work")
    for name in ("runs.csv", "cases.csv", "history.csv"):
        assert (target / name).read_bytes() == (
            tmp_path / "work" / "hippocampus" / name
        ).read_bytes()


def test_record_refuses_damage_and_copies_nothing(study: list[Config], tmp_path: Path) -> None:
    for config in study:
        make_run(tmp_path / "work", config)
    path = run_folder.run_dir(tmp_path / "work", study[3]) / "history.csv"
    path.write_text(path.read_text().replace("0.25", "0.95"))
    with pytest.raises(TableError, match="damaged"):
        record("hippocampus", tmp_path / "work", tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_a_recorder_that_is_killed_at_any_write_leaves_nothing_behind_once_recorded_again(
    study: list[Config], tmp_path: Path
) -> None:
    make_run(tmp_path / "work", study[0])
    files.atomic_write(tmp_path / "work" / "hippocampus" / "tuning.csv", "rate\n")

    def done(place):
        return record("hippocampus", tmp_path / "work", place)

    with layer(tmp_path / "whole") as seen:
        done(tmp_path / "whole")
    whole = {
        path.relative_to(tmp_path / "whole"): path.read_bytes()
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file()
    }
    for kind, at in [(name, at) for name in ("write", "replace") for at in range(seen.count(name))]:
        place = tmp_path / f"{kind}-{at}"
        if (child := os.fork()) == 0:
            with layer(place, kind, at, die=True):
                done(place)
            os._exit(0)
        assert os.waitpid(child, 0)[1] & 0x7F == signal.SIGKILL
        assert any(path.name.endswith(".tmp") for path in place.rglob("*")), (
            "the killed writer's half file"
        )
        done(place)
        found = {
            path.relative_to(place): path.read_bytes()
            for path in place.rglob("*")
            if path.is_file()
        }
        assert {p: b for p, b in found.items() if p.name != ".lock"} == {
            p: b for p, b in whole.items() if p.name != ".lock"
        }


def test_nan_in_a_run_stops_the_collection(study: list[Config], tmp_path: Path) -> None:
    folder = make_run(tmp_path, study[0])
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace(repr(DICE[0]), "nan"))
    run_folder.seal(folder, {})
    with pytest.raises(TableError, match=r"cases\.csv: dice holds a value that is not finite"):
        collect("hippocampus", tmp_path)


def test_reading_refuses_gaps_twins_and_other_columns(study: list[Config], tmp_path: Path) -> None:
    make_run(tmp_path, study[0])
    path = collect("hippocampus", tmp_path) / "cases.csv"
    text = path.read_text()
    for broken, word in (
        (text + text.splitlines()[1] + "\n", "twice"),
        (text.replace(repr(DICE[0]), ""), "empty"),
        (text.replace("dice,", "", 1), "columns"),
        (text[:-8], "fields"),
    ):
        path.write_text(broken)
        with pytest.raises(TableError, match=word):
            read_cases("hippocampus", tmp_path)
    path.unlink()
    with pytest.raises(TableError, match="no such file"):
        read_cases("hippocampus", tmp_path)


def test_arms_without_a_frozen_layer_may_share_their_frozen_mappers(tmp_path: Path) -> None:
    status = {"frozen_sha256_before": "a", "frozen_sha256_after": "a", "parameters": {"frozen": 8}}
    seen, arm = (
        Fingerprints(),
        lambda name: load_config("smoke", "phantoms", f"medvisionllama_v3{name}"),
    )
    for name in ("_identity", "_mlp", "_trained"):
        seen.check(arm(name), status, tmp_path / name)
    with pytest.raises(TableError, match="pretrained weights of smollm2-135m"):
        seen.check(arm(""), status, tmp_path / "pretrained")


def test_records_before_the_decathlons_metrics_stay_as_they_are_and_never_become_zero(
    study: list[Config], tmp_path: Path
) -> None:
    for config in study:
        make_run(tmp_path, config)
    folder = collect("hippocampus", tmp_path)
    for name in ("cases", "runs"):
        assert "decathlon" not in (folder / f"{name}.csv").read_text()
    cases, table = read_cases("hippocampus", tmp_path), read_runs("hippocampus", tmp_path)
    for frame in (cases, table, summary("hippocampus", tmp_path)):
        assert frame[list(DECATHLON)].isna().all().all()


def test_a_study_with_old_and_new_records_keeps_both(study: list[Config], tmp_path: Path) -> None:
    for index, config in enumerate(study):
        make_run(tmp_path, config, decathlon=index > 0)
    collect("hippocampus", tmp_path)
    cases, table = read_cases("hippocampus", tmp_path), read_runs("hippocampus", tmp_path)
    assert table["nsd_decathlon"].isna().tolist() == [True, False, False, False]
    assert table["hd95_decathlon_mm"].tolist()[1:] == [1.5] * 3
    assert cases["nsd_decathlon"].isna().sum() == 3
    means = summary("hippocampus", tmp_path)
    with_all = means.set_index("system")["nsd_decathlon"]
    assert with_all.isna().any()
    assert means["nsd"].notna().all()


def test_an_empty_or_infinite_value_of_the_decathlons_metrics_is_refused(
    study: list[Config], tmp_path: Path
) -> None:
    folder = make_run(tmp_path, study[0], decathlon=True)
    text = (folder / "cases.csv").read_text()
    for wrong in ("", "inf"):
        files.atomic_write(folder / "cases.csv", text.replace("0.75", wrong))
        run_folder.seal(folder, {})
        with pytest.raises(TableError, match="empty or not finite"):
            collect("hippocampus", tmp_path)


def test_what_one_reader_changes_is_not_anothers_and_a_changed_table_is_read_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a" / "t.csv"
    path.parent.mkdir()
    for value in ("1", "2"):
        path.write_text(f"case,dice\nx,{value}\n")
        for _ in range(2):
            table = tables.read_table("a", tmp_path, "t.csv", ["case", "dice"])
            assert table["dice"].tolist() == [int(value)]
            table.loc[0, "dice"] = 7
