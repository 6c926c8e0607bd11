"""A study is its grid: each run once, nothing done twice, failures counted, published records never trained into."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mvl import runs, studies
from mvl.config import CONFIG_DIR, Config, ConfigError, named, system_names


def pretend_done(folder: Path) -> None:
    """A sealed run of empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*runs.RECORD_FILES, "weights.safetensors"):
        (folder / name).write_text("x")
    runs.seal(folder, {"runtime_s": 10.0})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, by a trainer that only seals them; seed 1 of the baseline fails."""
    names: list[str] = []

    def train_run(config: Config, results_dir: Path, data_dir: Path | None = None, progress: bool = True) -> Path:
        names.append(runs.run_name(config))
        folder = runs.run_dir(results_dir, config)
        if config.system == "vit_baseline" and config.seed == 1 and config.fraction == 1.0:
            runs.write_json(folder / "status.json", {"state": "failed", "error": "broken"})
            raise RuntimeError("broken")
        pretend_done(folder)
        return folder

    monkeypatch.setattr("mvl.train.train_run", train_run)
    return names


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "studies").glob("*.yaml")))
def test_every_study_is_well_formed(name: str) -> None:
    configs = studies.study_runs(name)
    assert len({runs.run_name(c) for c in configs}) == len(configs) > 0
    assert {c.system for c in configs} <= {*system_names(), *named("studies", name).get("arms", {})}
    blocks = [block["name"] for block in studies.load_study(name).grid]
    assert {runs.run_name(c) for c in configs} == {runs.run_name(c) for block in blocks for c in studies.study_runs(name, block)}


def test_arms_never_share_a_folder(tmp_path: Path) -> None:
    folders = [runs.run_dir(tmp_path, config) for name in ("quick", "hippocampus", "colab") for config in studies.study_runs(name)]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(("text", "message"), [
    ("tasks: [phantoms]\ngird: []", "did you mean 'grid'"),
    ("tasks: [phantoms]", "needs tasks and grid"),
    ("tasks: [phantoms]\ngrid: [{name: a, system: [vit_baseline]}]", "a grid block takes"),
])
def test_a_malformed_study_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        studies.load_study(str(tmp_path / "odd.yaml"))


def test_unknown_block_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="main, few_shot, lora"):
        studies.study_runs("quick", "man")


def test_a_failed_run_does_not_stop_the_others_and_is_counted(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert studies.run_study("quick", tmp_path, engine="inline") == 1
    status = studies.study_status("quick", tmp_path)
    assert len(trained) == status["total"] and status["done"] == status["total"] - 1 and status["failed"] == 1
    assert "vit_baseline/fraction-1.0_fold-0_seed-1: failed broken" in capsys.readouterr().err
    trained.clear()
    studies.run_study("quick", tmp_path, engine="inline")
    assert trained == ["phantoms/vit_baseline/fraction-1.0_fold-0_seed-1"]


def test_a_run_that_another_process_holds_is_left_to_it_and_waited_for(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, waited = runs.run_dir(tmp_path, studies.study_runs("quick")[0]), []
    holder = runs.locked(other)
    holder.__enter__()

    def other_ends(seconds: float) -> None:
        waited.append(seconds)
        pretend_done(other)
        holder.__exit__(None, None, None)

    monkeypatch.setattr(studies.time, "sleep", other_ends)
    studies.run_study("quick", tmp_path, engine="inline")
    assert waited == [studies.WAIT_S] and trained == [runs.run_name(config) for config in studies.study_runs("quick")[1:]]


def test_nothing_to_do_is_said(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config in studies.study_runs("quick"):
        pretend_done(runs.run_dir(tmp_path, config))
    left = runs.run_dir(tmp_path, studies.study_runs("quick")[0]) / "checkpoint-000000001-0123456789abcdef.pt"
    left.write_text("of a run that was killed right after its seal")
    assert studies.run_study("quick", tmp_path) == 0 and not trained and not left.exists()
    assert "nothing to do" in capsys.readouterr().err


def test_records_are_never_trained_into(trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "records_dir", lambda: tmp_path)
    assert len(studies.ensure_runs("quick", "lora", tmp_path)) == 4 and not trained
    assert studies.ensure_runs("quick", "lora", tmp_path / "mine") == [] and len(trained) == 4


def test_states_are_what_is_on_disk(tmp_path: Path) -> None:
    first, second, third, fourth = (runs.run_dir(tmp_path, c) for c in studies.study_runs("quick")[:4])
    pretend_done(first)
    runs.write_json(second / "status.json", {"state": "running", "epoch": 1, "epochs": 4, "runtime_s": 5.0})
    pretend_done(third)
    (third / "cases.csv").write_text("tampered")
    with runs.locked(fourth):
        rows = studies.study_status("quick", tmp_path)["runs"][:5]
    states = [row["state"] for row in rows]
    assert rows[3]["held"].startswith(f"pid {os.getpid()} since 20") and rows[0]["held"] is None
    assert states == ["done", "interrupted", "failed", "running", "missing"]
    json.dumps(studies.study_status("quick", tmp_path))


@pytest.mark.parametrize(("error", "state"), [
    ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "oom"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried", "oom"),
    ("MemoryError: ", "oom"),
    ("TaskError: label is empty", "failed"),
])
def test_a_run_that_ran_out_of_memory_is_told_from_another_failure(tmp_path: Path, error: str, state: str) -> None:
    first = studies.study_runs("quick")[0]
    runs.write_json(runs.run_dir(tmp_path, first) / "status.json", {"state": "failed", "error": error})
    assert studies.run_state(first, tmp_path)["state"] == state


def test_remaining_time_comes_from_the_runs_so_far() -> None:
    row = lambda state, epoch=None, runtime=None: {"state": state, "epoch": epoch, "epochs": 4, "runtime_s": runtime}
    assert studies.remaining_s([row("missing"), row("missing")]) is None
    assert studies.remaining_s([row("done", 4, 8.0), row("running", 2, 4.0), row("missing")]) == 4 + 8


def test_the_graph_is_asked_with_the_studys_name(tmp_path: Path) -> None:
    words = studies.snakemake_command("quick", tmp_path, None, 2, "local")
    assert "study=quick" in words and "all_runs" in words and words[words.index("--cores") + 1] == "2"
    queued = studies.snakemake_command("own/four.yaml", tmp_path, None, 8, "slurm")
    assert queued[queued.index("--jobs") + 1] == "8" and "--cores" not in queued
    assert f"study={Path('own/four.yaml').resolve()}" in queued  # Snakemake and its jobs run in another folder


def test_a_studys_data_are_fetched_where_they_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mvl.datasets.tasks import Task

    fetched: list[str] = []

    def fetch(task: Task, data_dir: Path | None = None, progress: bool = True) -> Path:
        fetched.append(task.name)
        return tmp_path

    monkeypatch.setattr("mvl.datasets.download.fetch", fetch)
    studies.ensure_data("hippocampus", tmp_path)
    assert fetched == ["Task04_Hippocampus"]
    studies.ensure_data("quick", tmp_path)
    assert fetched == ["Task04_Hippocampus"] and (tmp_path / "phantoms" / "dataset.json").is_file()


def test_a_profile_that_cannot_run_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    studies.check_profile("local")
    with pytest.raises(ConfigError, match=r"no profile 'slrum' in .*: it is one of kubernetes, local, slurm"):
        studies.check_profile("slrum")
    monkeypatch.setattr(studies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'kubernetes' needs snakemake-executor-plugin-cluster-generic; install it as the head of .*config.yaml"):
        studies.check_profile("kubernetes")


def test_a_dry_run_lists_each_run_with_what_it_asks_for_and_trains_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pretend_done(runs.run_dir(tmp_path, studies.study_runs("quick")[0]))
    assert studies.dry_run("quick", tmp_path) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Job ")]
    names = [runs.run_name(config) for config in studies.study_runs("quick")]
    assert len(lines) == len(names) and not any(names[0] in line for line in lines), "a line for each but the one that is done, and the study's own"
    assert all(any(f"{name}: threads 1, " in line for line in lines) for name in names[1:])
    assert len(list((tmp_path / "quick" / "runs").glob("*/*/*"))) == 1
