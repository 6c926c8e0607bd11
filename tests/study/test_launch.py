"""Runs are started once each, on a card of their own, and failures stop nothing else."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.cli import parse_config

from mvl.bench.needs import write_needs
from mvl.core import files, run_folder
from mvl.core.config import Config, ConfigError
from mvl.study import gpu_slots, grid, inline, launch
from mvl.study.inline import Launch
from mvl.study.status import study_status
from mvl.training import run
from tests.finished_run import pretend_done


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, by a trainer that only seals them; seed 1 of the
    baseline fails."""
    names: list[str] = []

    def train_run(
        config: Config,
        results_dir: Path,
        data_dir: Path | None = None,
        progress: bool = True,
        allow_drift: bool = False,
        study: str = "",
    ) -> Path:
        names.append(run_folder.run_name(config))
        folder = run_folder.run_dir(results_dir, config)
        if config.system == "vit_baseline" and config.seed == 1 and config.fraction == 1.0:
            files.write_json(folder / "status.json", {"state": "failed", "error": "broken"})
            raise RuntimeError("broken")
        pretend_done(folder)
        return folder

    monkeypatch.setattr("mvl.training.run.train_run", train_run)
    return names


def test_a_failed_run_does_not_stop_the_others_and_is_counted(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.run_study("quick", tmp_path, launch=Launch(engine="inline")) == 1
    status = study_status("quick", tmp_path)
    assert (
        len(trained) == status["total"]
        and status["done"] == status["total"] - 1
        and status["failed"] == 1
    )
    assert "vit_baseline/fraction-1.0_fold-0_seed-1: failed broken" in capsys.readouterr().err
    trained.clear()
    launch.run_study("quick", tmp_path, launch=Launch(engine="inline"))
    assert trained == ["Task04_Hippocampus_40/vit_baseline/fraction-1.0_fold-0_seed-1"]


def test_a_run_that_another_process_holds_is_left_to_it_and_waited_for(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, waited = run_folder.run_dir(tmp_path, grid.study_runs("quick")[0]), []
    holder = files.locked(other)
    holder.__enter__()

    def other_ends(seconds: float) -> None:
        waited.append(seconds)
        pretend_done(other)
        holder.__exit__(None, None, None)

    monkeypatch.setattr(launch.time, "sleep", other_ends)
    launch.run_study("quick", tmp_path, launch=Launch(engine="inline"))
    assert waited == [inline.WAIT_S] and trained == [
        run_folder.run_name(config) for config in grid.study_runs("quick")[1:]
    ]


def test_nothing_to_do_is_said(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for config in grid.study_runs("quick"):
        pretend_done(run_folder.run_dir(tmp_path, config))
    left = (
        run_folder.run_dir(tmp_path, grid.study_runs("quick")[0])
        / "checkpoint-000000001-0123456789abcdef.pt"
    )
    left.write_text("of a run that was killed right after its seal")
    assert launch.run_study("quick", tmp_path) == 0 and not trained and not left.exists()
    assert "nothing to do" in capsys.readouterr().err


def test_records_are_never_trained_into_and_each_run_elsewhere_is_announced(
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    assert (
        len(launch.ensure_runs("quick", grid.study_runs("quick", "lora"), tmp_path)) == 3
        and not trained
    )
    assert capsys.readouterr().err == ""
    assert (
        launch.ensure_runs("quick", grid.study_runs("quick", "lora"), tmp_path / "mine") == []
        and len(trained) == 3
    )
    said = capsys.readouterr().err.splitlines()
    assert said == [f"[quick] run {place} of 3: {name}" for place, name in enumerate(trained, 1)]


def test_the_graph_is_asked_with_the_studys_name(tmp_path: Path) -> None:
    words = launch.snakemake_command("quick", tmp_path, None)
    assert (
        'study= "quick" ' in words
        and "all_runs" in words
        and words[words.index("--cores") + 1] == "2"
    )
    queued = launch.snakemake_command("own/four.yaml", tmp_path, None, Launch(8, profile="slurm"))
    assert queued[queued.index("--jobs") + 1] == "8" and "--cores" not in queued
    # Snakemake and its jobs run in another folder
    assert f'study= "{Path("own/four.yaml").resolve()}" ' in queued


def test_an_odd_folder_reaches_the_graph_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "my #1: é"
    words = launch.snakemake_command("quick", odd, odd)
    given = parse_config(words[words.index("--config") + 1 :])
    assert given["results_dir"] == given["data_dir"] == str(odd)
    with pytest.raises(ConfigError, match="braces for its wildcards"):
        launch.snakemake_command("quick", tmp_path / "{a}", None)


def test_a_studys_data_are_fetched_where_they_are_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mvl.datasets.task_data import TaskData

    fetched: list[str] = []

    def fetch(data: TaskData, progress: bool = True) -> Path:
        fetched.append(data.task.name)
        return tmp_path

    monkeypatch.setattr("mvl.datasets.download.fetch", fetch)
    launch.ensure_data("hippocampus", tmp_path)
    assert fetched == ["Task04_Hippocampus"]
    launch.ensure_data("quick", tmp_path)
    launch.ensure_data("smoke", tmp_path)
    assert fetched == ["Task04_Hippocampus"] and (tmp_path / "phantoms" / "dataset.json").is_file()
    assert not (tmp_path / "Task04_Hippocampus_40").exists(), "it lies in the clone"


def test_a_profile_that_cannot_run_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch.check_profile("local")
    with pytest.raises(
        ConfigError, match=r"no profile 'slrum' in .*: it is one of kubernetes, local, slurm"
    ):
        launch.check_profile("slrum")
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=(
            r"'kubernetes' needs snakemake-executor-plugin-cluster-generic; install it as the head"
            r" of .*config.yaml"
        ),
    ):
        launch.check_profile("kubernetes")


def test_a_dry_run_lists_each_run_with_what_it_asks_for_and_trains_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend_done(run_folder.run_dir(tmp_path, grid.study_runs("quick")[0]))
    assert launch.dry_run("quick", tmp_path) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Job ")]
    names = [run_folder.run_name(config) for config in grid.study_runs("quick")]
    assert len(lines) == len(names) and not any(names[0] in line for line in lines), (
        "a line for each but the one that is done, and the study's own"
    )
    assert all(any(f"{name}: threads 1, " in line for line in lines) for name in names[1:])
    assert len(list((tmp_path / "quick" / "runs").glob("*/*/*"))) == 1


def test_jobs_are_runs_whatever_their_threads_and_no_more_than_the_cards_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ("0", "1"))
    words = launch.snakemake_command(
        "paper", tmp_path, None, Launch(jobs=8, runs_per_gpu=3, allow_drift=True)
    )
    assert words[words.index("--cores") + 1] == "32", "four threads a run"
    assert words[words.index("--resources") + 1 :][:2] == ["at_once=8", "gpu=6"]
    assert {"gpu=1", "runs_per_gpu=3", "allow_drift=1"} <= set(words[words.index("--config") :])
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ())
    words = launch.snakemake_command("quick", tmp_path, None)
    assert (
        words[words.index("--resources") + 1 :][:2] == ["at_once=2", "--directory"]
        and "gpu=0" in words
    )


def listed_jobs(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a dry run that name a run to train."""
    return [line for line in capfd.readouterr().out.splitlines() if "threads" in line]


def test_a_jobs_command_reaches_its_folders_whatever_their_names(tmp_path: Path) -> None:
    """Blanks and apostrophes in the results, the data and the log: one word each for the shell; and
    a home folder that cannot be written into."""
    results, data = tmp_path / "Ann's results", tmp_path / "Ann's scans"
    data.mkdir()
    (tmp_path / "file").touch()
    homeless = {**os.environ, "HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": ""}
    words = launch.snakemake_command("quick", results, data, Launch(), dry=True)
    quiet = words.index("--quiet")
    words[quiet : quiet + 4] = ["--printshellcmds"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=homeless)
    shown = [line for line in done.stdout.splitlines() if " -m mvl train " in line]
    assert len(shown) == len(grid.study_runs("quick"))
    for line in shown:
        command, log = shlex.split(line.replace(" 2>&1", ""))[:-2], shlex.split(line)[-2]
        assert command[command.index("--results-dir") + 1] == str(results)
        assert command[command.index("--data-dir") + 1] == str(data)
        assert log.startswith(f"{results}/quick/logs/") and log.endswith(".log")


def test_why_snakemake_failed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [sys.executable, "-c", "import sys; sys.exit('no room for the graph')"]
    monkeypatch.setattr(launch, "snakemake_command", lambda *_, **__: broken)
    assert launch.run_study("quick", tmp_path) == 1
    assert "Snakemake ended with 1" in (said := capsys.readouterr().err)
    assert "no room for the graph" in said


def test_runs_of_this_machine_ask_for_a_card_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ("0",))
    assert launch.dry_run("quick", tmp_path) == 0
    lines = listed_jobs(capfd)
    assert lines and all("1 GPU" in line for line in lines)


@pytest.mark.parametrize(("device", "asked"), [("h100", "1 GPU"), ("", "0 GPU")])
def test_a_clusters_runs_ask_for_a_card_when_they_are_planned_for_one(
    device: str,
    asked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The graph is read as a cluster's: by a profile of another name with the local executor, as no
    cluster is here."""
    workflow = tmp_path / "workflow" / "profiles" / "cluster"
    workflow.mkdir(parents=True)
    (workflow / "config.yaml").write_text(
        "jobs: 2\ndefault-resources:\n  gpu: 0\nrerun-triggers: mtime\nnolock: true\n"
    )
    monkeypatch.setattr(launch, "PROFILES", workflow.parent)
    assert (
        launch.dry_run(
            "quick",
            tmp_path / "results",
            None,
            Launch(profile="cluster", device=device),
            write_needs,
        )
        == 0
    )
    lines = listed_jobs(capfd)
    assert lines and all(asked in line for line in lines)


def test_the_profile_may_name_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "config.yaml").write_text("executor: slurm\nconfig: [device=a100]\n")
    assert launch.device_of(Launch(profile="slurm")) == "cpu"
    monkeypatch.setattr(launch, "PROFILES", tmp_path)
    assert launch.device_of(Launch(profile="slurm")) == "a100"
    assert launch.device_of(Launch(profile="slurm", device="h100")) == "h100"


def test_the_inline_engine_holds_a_card_and_ends_when_it_is_lost(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr(gpu_slots, "slots_folder", lambda: tmp_path / "slots")
    monkeypatch.setattr(gpu_slots, "gpu_is_lost", lambda: len(trained) == 2)
    shown: list[str | None] = []
    monkeypatch.setattr(
        inline,
        "progress_line",
        lambda status, jobs: shown.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or "",
    )
    assert inline.run_inline("quick", tmp_path) == inline.GPU_LOST
    assert len(trained) == 2 and shown == ["0", "0"]


def test_a_cuda_error_that_nothing_survives_ends_the_process_and_not_the_study(
    trained: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run that hit it is recorded with the reason; a new process, by the same command, trains
    the rest."""
    seal, first = run.train_run, grid.study_runs("quick")[0]

    def dying(config: Config, folder: Path, *_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.undo()
    monkeypatch.setattr(run, "prepare", dying)
    assert launch.run_study("quick", tmp_path, launch=Launch(engine="inline")) == inline.GPU_LOST
    assert "no longer answers; the same command goes on" in capsys.readouterr().err
    status = study_status("quick", tmp_path)
    assert status["failed"] == 1 and status["missing"] == status["total"] - 1
    assert (
        "device-side assert triggered"
        in run_folder.read_status(run_folder.run_dir(tmp_path, first))["error"]
    )
    assert (
        launch.ensure_runs("quick", grid.study_runs("quick", "lora"), tmp_path)
        and study_status("quick", tmp_path)["failed"] == 2
    )
    monkeypatch.setattr("mvl.training.run.train_run", seal)
    assert launch.run_study("quick", tmp_path, launch=Launch(engine="inline")) == 1
    assert study_status("quick", tmp_path)["done"] == status["total"] - 1, (
        "all but the one that `trained` fails"
    )


def test_what_another_process_saw_fail_is_not_tried_again(
    trained: list[str], tmp_path: Path
) -> None:
    first = grid.study_runs("quick")[0]
    failed = {"state": "failed", "error": "x", "updated": "2026-01-01T00:00:10Z"}
    files.write_json(run_folder.run_dir(tmp_path, first) / "status.json", failed)
    inline.run_inline("quick", tmp_path, since="2026-01-01T00:00:10Z")
    assert run_folder.run_name(first) not in trained
    inline.run_inline("quick", tmp_path, since="2026-01-01T00:00:11Z")
    assert run_folder.run_name(first) in trained


def test_runs_of_another_machine_go_on_only_when_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "mvl.training.run.train_run",
        lambda config, results, data, allow_drift, study: asked.append(allow_drift),
    )
    inline.run_inline("quick", tmp_path, launch=Launch(allow_drift=True))
    launch.ensure_runs("quick", grid.study_runs("quick", "lora"), tmp_path, allow_drift=True)
    launch.ensure_runs("quick", grid.study_runs("quick", "lora"), tmp_path)
    assert asked == [True] * (len(grid.study_runs("quick")) + 3) + [False] * 3
