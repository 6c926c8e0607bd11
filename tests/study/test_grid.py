"""A study is its grid: each run once, nothing done twice, failures counted, published records never
trained into."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mvl.core import files, run_folder
from mvl.core.config import CONFIG_DIR, ConfigError, named, system_names
from mvl.study import grid, status
from tests.finished_run import pretend_done


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "studies").glob("*.yaml")))
def test_every_study_is_well_formed(name: str) -> None:
    configs = grid.study_runs(name)
    assert len({run_folder.run_name(c) for c in configs}) == len(configs) > 0
    assert {c.system for c in configs} <= {*system_names(), *named("studies", name).get("arms", {})}
    blocks = [block["name"] for block in grid.load_study(name).grid]
    assert {run_folder.run_name(c) for c in configs} == {
        run_folder.run_name(c) for block in blocks for c in grid.study_runs(name, block)
    }


def test_arms_never_share_a_folder(tmp_path: Path) -> None:
    folders = [
        run_folder.run_dir(tmp_path, config)
        for name in ("quick", "hippocampus", "colab")
        for config in grid.study_runs(name)
    ]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [phantoms]\ngird: []", "did you mean 'grid'"),
        ("tasks: [phantoms]", "needs tasks and grid"),
        ("tasks: [phantoms]\ngrid: [{name: a, system: [vit_baseline]}]", "a grid block takes"),
        ("tasks: [phantoms]\ntrain: 5", "train is 5; give it keys"),
        ("tasks: [phantoms]\narms: all", "arms is 'all'; give it keys"),
        ("tasks: [phantoms]\noverrides: {unet: 3}", "overrides: unet is 3; give it keys"),
    ],
)
def test_a_malformed_study_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        grid.load_study(str(tmp_path / "odd.yaml"))


def test_unknown_block_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="main, .*few_shot, lora"):
        grid.study_runs("quick", "man")


def test_states_are_what_is_on_disk(tmp_path: Path) -> None:
    first, second, third, fourth = (
        run_folder.run_dir(tmp_path, c) for c in grid.study_runs("quick")[:4]
    )
    pretend_done(first)
    files.write_json(
        second / "status.json", {"state": "running", "epoch": 1, "epochs": 4, "runtime_s": 5.0}
    )
    pretend_done(third)
    (third / "cases.csv").write_text("tampered")
    with files.locked(fourth):
        rows = status.study_status("quick", tmp_path)["runs"][:5]
    states = [row["state"] for row in rows]
    assert rows[3]["held"].startswith(f"pid {os.getpid()} since 20") and rows[0]["held"] is None
    assert states == ["done", "interrupted", "damaged", "running", "missing"]
    json.dumps(status.study_status("quick", tmp_path))


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "oom"),
        (
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't"
                " allocate memory: you tried"
            ),
            "oom",
        ),
        ("MemoryError: ", "oom"),
        (
            (
                "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"
                " `cublasCreate(handle)`"
            ),
            "oom",
        ),
        ("TaskError: label is empty", "failed"),
    ],
)
def test_a_run_that_ran_out_of_memory_is_told_from_another_failure(
    tmp_path: Path, error: str, state: str
) -> None:
    first = grid.study_runs("quick")[0]
    files.write_json(
        run_folder.run_dir(tmp_path, first) / "status.json", {"state": "failed", "error": error}
    )
    assert status.run_state(first, tmp_path)["state"] == state


def test_remaining_time_comes_from_the_runs_so_far() -> None:
    def row(state, epoch=None, runtime=None):
        return {
            "state": state,
            "epoch": epoch,
            "epochs": 4,
            "runtime_s": runtime,
        }

    assert status.remaining_s([row("missing"), row("missing")]) is None
    assert (
        status.remaining_s([row("done", 4, 8.0), row("running", 2, 4.0), row("missing")]) == 4 + 8
    )


HEAD = "title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline]}]\n"
WRONG = {
    "tasks as one word": (HEAD.replace("[phantoms]", "phantoms"), "tasks is 'phantoms'; write a"),
    "systems as one word": (HEAD.replace("[vit_baseline]", "vit_baseline"), "systems is 'vit_base"),
    "a grid that is no list": (HEAD.replace("[{", "{").replace("}]", "}"), "grid is {'name'"),
    "folds as a number": (HEAD.replace("}]", ", folds: 3}]"), "folds is 3; write a list"),
    "a fraction in per cent": (HEAD.replace("}]", ", fractions: ['10%']}]"), "numbers in"),
    "a key that stands twice": (HEAD + "train: {lr: 0.1}\ntrain: {batch_size: 2}\n", "twice"),
    "no voxel on an axis": (HEAD + "data: {img_size: [0, 8, 8]}\n", "img_size must be at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_study_is_refused_with(name, tmp_path):
    text, told = WRONG[name]
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        grid.study_runs(str(tmp_path / "own.yaml"))
    assert "studies/" not in str(error.value), "its own path, not a place in the package"


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_study_in_another_encoding_is_named(encoding, tmp_path):
    (tmp_path / "own.yaml").write_text(HEAD.replace(": t", ": Köpfe"), encoding=encoding)
    with pytest.raises(ConfigError, match=r"own\.yaml: is not in UTF-8"):
        grid.study_runs(str(tmp_path / "own.yaml"))


def test_a_heading_with_nothing_below_changes_nothing(tmp_path):
    below = ("data:\ntrain:\n", "overrides:\narms:\n", "overrides: {vit_baseline: }\n")
    for text in (HEAD, *(HEAD + words for words in below), "\ufeff" + HEAD):
        (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
        [config] = grid.study_runs(str(tmp_path / "own.yaml"))
        assert config.train.lr == 2e-3
