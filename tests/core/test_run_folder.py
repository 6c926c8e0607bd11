"""Run folders: every file whole or absent whatever happens, one writer at a time, done only when
every hash holds."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from mvl.cli import main
from mvl.core import machine, run_folder
from mvl.core.command_lines import command_of, train_command
from mvl.core.config import ROOT, Config, ConfigError, load_config
from mvl.core.files import RunError, atomic_write, locked, sha256_file, swap, sweep, write_csv
from mvl.core.run_folder import is_done, read_status, run_name, seal
from mvl.core.seeds import draw_seed


def python(code: str, *words: object) -> subprocess.Popen[str]:
    """A second process that can import mvl."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "cases.csv"
    atomic_write(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cases\.csv.*No space left.*previous file is kept"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_at_any_moment_leaves_one_whole_file(tmp_path):
    path, size = tmp_path / "weights.safetensors", 4_000_000
    code = (
        "import sys, itertools; from mvl.core.files import atomic_write\nfor i in"
        " itertools.count():\n    atomic_write(sys.argv[1], bytes([i % 256]) * int(sys.argv[2]));"
        " print(i, flush=True)"
    )
    for pause in (0.0, 0.004, 0.011, 0.023):
        writer = python(code, path, size)
        writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = path.read_bytes()
        assert len(data) == size
        assert len(set(data)) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_removes_what_an_old_killed_writer_of_that_file_left(tmp_path):
    old, young, other = (
        tmp_path / name
        for name in (".cases.csv.1-a.tmp", ".cases.csv.2-b.tmp", ".history.csv.3-c.tmp")
    )
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    atomic_write(tmp_path / "cases.csv", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["cases.csv", young.name, other.name]
    )


def test_sweep_removes_what_killed_writers_left(tmp_path):
    (tmp_path / ".history.csv.1-ab.tmp").write_text("half")
    (tmp_path / "history.csv").write_text("whole")
    (tmp_path / ".cases.csv.2-ab.tmp").write_text("half")
    assert sweep(tmp_path, "history.csv") == 1
    assert sweep(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_a_lock_that_waits_is_had_when_the_holder_is_done(tmp_path):
    holder = python(
        "import sys, time; from pathlib import Path; from mvl.core.files import locked\nwith"
        " locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(0.2)\n   "
        " print('over', flush=True)",
        tmp_path,
    )
    assert holder.stdout.readline() == "held\n"
    with locked(tmp_path, wait=True):
        assert holder.stdout.readline() == "over\n"
    holder.communicate()


def test_the_lock_refuses_a_second_process_and_dies_with_the_first(tmp_path):
    holder = python(
        "import sys, time; from pathlib import Path; from mvl.core.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)",
        tmp_path,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"held by pid {holder.pid} since"), locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} ")


def finished(folder) -> None:
    """A folder that says done, with five small artefacts."""
    for name in (*run_folder.RECORD_FILES, "weights.safetensors"):
        atomic_write(folder / name, f"{name}\n")
    seal(folder, {"best_epoch": 3})


def test_a_swap_leaves_what_another_process_is_writing(tmp_path):
    for name in ("out", "out.partial-mine", "out.partial-anothers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    swap(tmp_path / "out.partial-mine", tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "out.partial-mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial-anothers"]


def test_what_comes_to_a_seal_leaves_the_rest_of_it(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "done", "files": {"usage.csv": "1"}}')
    run_folder.write_sealed(tmp_path, "cases.csv", "x")
    assert (tmp_path / "cases.csv").read_text() == "x"
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "done",
        "files": {"usage.csv": "1", "cases.csv": sha256_file(tmp_path / "cases.csv")},
    }


@pytest.mark.parametrize("name", ["cases.csv", "usage.csv"])
@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_run_stays_done_wherever_the_writing_of_a_sealed_file_stops(
    tmp_path, monkeypatch, name, writes
):
    """Three files are written in turn; of two names the run has one already. What is stopped twice
    at any place is done each time, with what lies there under its hash."""
    finished(tmp_path)
    there = (tmp_path / name).read_text() if (tmp_path / name).is_file() else None
    for text in ("new\n", "newer\n"):
        left = iter(range(writes))

        def full(*words, left=left):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            return os.rename(*words)

        with monkeypatch.context() as patch:
            patch.setattr("mvl.core.files.os.replace", full)
            with pytest.raises(OSError, match="No space left"):
                run_folder.write_sealed(tmp_path, name, text)
        there = text if writes == 2 else there
        assert is_done(tmp_path, need_weights=True)
        assert (name in read_status(tmp_path)["files"]) == (there is not None)
        assert there is None or (tmp_path / name).read_text() == there
    run_folder.write_sealed(tmp_path, name, "newest\n")
    assert is_done(tmp_path) and (tmp_path / name).read_text() == "newest\n"
    assert read_status(tmp_path)["files"][name] == sha256_file(tmp_path / name)


def test_done_needs_every_hash(tmp_path):
    assert not is_done(tmp_path)
    finished(tmp_path)
    assert is_done(tmp_path, need_weights=True)
    assert read_status(tmp_path)["best_epoch"] == 3
    (tmp_path / "weights.safetensors").unlink()
    assert is_done(tmp_path)
    assert not is_done(tmp_path, need_weights=True)
    (tmp_path / "cases.csv").write_text("other\n")
    assert not is_done(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"state": "done", "files": {}}'])
def test_a_status_that_proves_nothing_is_not_done(tmp_path, text):
    finished(tmp_path)
    (tmp_path / "status.json").write_text(text)
    assert not is_done(tmp_path)


def test_hashes_are_sha256_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_draws_are_a_function_of_seed_and_purpose():
    assert draw_seed(0, "order", 1) == draw_seed(0, "order", 1)
    draws = {
        draw_seed(seed, purpose, epoch)
        for seed in range(5)
        for purpose in ("order", "augment")
        for epoch in range(20)
    }
    assert len(draws) == 200
    assert all(0 <= draw < 2**63 for draw in draws)


def test_names_differ_between_any_two_runs():
    grid = itertools.product(("a", "b"), (0.1, 0.30000000000000004, 0.3), (0, 1), (0, 1))
    configs = [
        Config(system=system, fraction=fraction, fold=fold, seed=seed)
        for system, fraction, fold, seed in grid
    ]
    assert len({run_name(config) for config in configs}) == len(configs)


def test_a_folder_begun_with_other_settings_is_refused_by_key(tmp_path):
    run_folder.write_config(tmp_path, load_config("quick", "phantoms", "medvisionllama_v3"))
    run_folder.write_config(tmp_path, load_config("quick", "phantoms", "medvisionllama_v3"))
    with pytest.raises(RunError, match=r"model\.r: 4 -> 16"):
        run_folder.write_config(tmp_path, load_config("quick", "phantoms", "medvisionllama_v3_r16"))
    assert run_folder.read_config(tmp_path).model.r == 4


def test_a_setting_that_an_older_record_does_not_name_has_its_default(tmp_path):
    config = load_config("quick", "phantoms", "vit_baseline")
    run_folder.write_config(tmp_path, config)
    path = tmp_path / "config.yaml"
    path.write_text(
        "".join(
            line
            for line in path.read_text().splitlines(True)
            if "select:" not in line and "split:" not in line
        )
    )
    run_folder.write_config(tmp_path, config)
    assert "select: val" in path.read_text()


def test_csv_numbers_read_back_the_same(tmp_path):
    value = 0.1 + 0.2
    write_csv(tmp_path / "x.csv", [{"a": value, "b": "c,d"}], ["a", "b"])
    text = (tmp_path / "x.csv").read_text()
    assert text == f'a,b\n{value!r},"c,d"\n'


def test_provenance_names_versions_and_no_machine(monkeypatch):
    facts = machine.environment()
    text = json.dumps(facts)
    assert facts["packages"]["torch"]
    assert os.uname().nodename not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("command", ["evaluate", "usage", "predict"])
def test_what_is_no_runs_folder_is_told_so(tmp_path, capsys, command):
    words = ["x.nii", "--output", str(tmp_path / "out")] if command == "predict" else []
    assert main.main([command, str(tmp_path / "gone"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mvl: {tmp_path / 'gone'} is no run's folder: one holds config.yaml, ")
    assert "known" not in said


@pytest.mark.parametrize("results", ["runs of mine", "Anna's runs", 'a "b" $HOME `x`', "plain"])
def test_the_way_on_is_quoted_and_names_every_folder(results, tmp_path):
    config = dataclasses.replace(Config(), study="own", task="Task04_Hippocampus")
    said = train_command(
        config, tmp_path / results, tmp_path / "the data", str(tmp_path / "it's own.yaml")
    )
    words = shlex.split(said)
    assert words[words.index("--results-dir") + 1] == str(tmp_path / results)
    assert words[words.index("--data-dir") + 1] == str(tmp_path / "the data")
    assert words[words.index("--study") + 1] == str(tmp_path / "it's own.yaml")
    folder = run_folder.run_dir(tmp_path / results, config)
    assert run_folder.results_dir_of(folder, config) == tmp_path / results
    assert run_folder.results_dir_of(tmp_path, config) == run_folder.default_results_dir()


def test_a_records_command_trains_elsewhere():
    folder = next((run_folder.records_dir() / "hippocampus" / "runs").glob("*/*/*"))
    assert "--results-dir" not in command_of(folder)


def test_settings_that_change_a_result_are_told_from_those_that_do_not(tmp_path):
    config = Config()
    assert run_folder.changed_settings(tmp_path, config) == []
    run_folder.write_config(tmp_path, config)
    faster = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=3))
    assert run_folder.changed_settings(tmp_path, faster) == []
    run_folder.write_config(tmp_path, faster)  # so that a run goes on with fewer workers
    assert run_folder.read_config(tmp_path).data.num_workers == 3
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.5))
    assert [line.split(":")[0] for line in run_folder.changed_settings(tmp_path, other)] == [
        "train.lr"
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("data/runs", "data/runs"),
        ("./data/../data/results", "data/results"),
        ("../data/results", "data/results"),
        ("../data/runs", "data/runs"),
        (str(ROOT / "data" / "runs"), "data/runs"),
    ],
)
@pytest.mark.parametrize("start", [ROOT, ROOT / "notebooks", ROOT.parent])
def test_a_notebooks_folder_of_results_is_one_wherever_its_kernel_starts(
    given, meant, start, monkeypatch
):
    monkeypatch.chdir(start)
    assert run_folder.results_folder(given) == ROOT / meant
    for outside in ("../../results", "../..", "data/../../../x"):
        with pytest.raises(ConfigError, match="leads out of"):
            run_folder.results_folder(outside)
