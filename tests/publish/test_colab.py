"""A notebook on Colab finds a study that fits its machine, and keeps its results; and a stand-in
for Colab.

The stand-in installs from a local clone beside a torch, numpy and matplotlib that the set-up cell
must not touch. It takes minutes: `make check` runs it (marker `colab`), `make test` does not.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import time
import types
import venv
from pathlib import Path

import pytest

from mvl.bench import plan, work
from mvl.core import run_folder
from mvl.core.config import ROOT
from mvl.datasets.task import TaskError
from mvl.publish import colab as colab_module
from mvl.publish.colab import chosen_study, copy_newer, kept_versions, ready, set_up
from mvl.study import grid, launch
from mvl.study.links import repository_url

BROUGHT = ("torch", "numpy", "matplotlib", "ipykernel")
"What the stand-in has before; IPython is what runs a Colab notebook."


def needs(names):
    """Distributions that these need, with themselves, as installed here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, left = {}, list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name not in found:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            lines = map(Requirement, found[name].requires or ())
            left += [
                line.name
                for line in lines
                if line.marker is None or line.marker.evaluate({"extra": ""})
            ]
    return found


def bring(distributions, folder):
    """Links to the distributions' files, so that an environment with `folder` on its path has these
    and no others."""
    folder.mkdir()
    for distribution in distributions.values():
        for top in {Path(file).parts[0] for file in distribution.files or ()} - {
            "..",
            "__pycache__",
        }:
            source, target = Path(distribution.locate_file(top)).resolve(), folder / top
            if source.exists() and not target.exists():
                target.symlink_to(source)


def make_clone(folder):
    """A repository with what git has, or would have, of this one, as the address of the set-up cell
    gives it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)


@pytest.fixture
def colab(tmp_path):
    """The stand-in: its Python, its environment variables, and the folder that a notebook starts
    in."""
    home, work = tmp_path / "venv", tmp_path / "content"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    places = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    bring(needs(BROUGHT), tmp_path / "brought")
    (Path(places.stdout.strip()) / "brought.pth").write_text(f"{tmp_path / 'brought'}\n")
    (tmp_path / "stub" / "google" / "colab").mkdir(parents=True)
    work.mkdir()
    make_clone(tmp_path / "origin")
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("MVL_", "PYTHON"))
    }
    weights = Path(os.environ.get("MVL_WEIGHTS") or ROOT / "data" / "raw" / "weights")
    kept = {
        key: str(value)
        for key, value in (("MVL_WEIGHTS", weights), ("MVL_DATA", os.environ.get("MVL_DATA")))
        if value and Path(value).is_dir()
    }
    return (
        python,
        work,
        {
            **clean,
            **kept,
            "PYTHONPATH": str(tmp_path / "stub"),
            "PIP_NO_COMPILE": "1",
            "VIRTUAL_ENV": str(home),
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_VALUE_0": repository_url(),
            "GIT_CONFIG_KEY_0": f"url.file://{tmp_path / 'origin'}.insteadOf",
        },
    )


def frozen(python, env):
    """Name -> version, as pip sees it."""
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(done.stdout)
    }


STUDY = """
title: One small run
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline], fractions: [0.1]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 3, batch_size: 2}
"""


def begun_elsewhere(folder):
    """A study of one run, and its results folder from another machine: interrupted on its way, on a
    processor that is not this one."""
    from mvl.bench.gpu_run_probes import stopped_after
    from mvl.core.progress import Interrupted
    from mvl.training.run import train_run

    folder.mkdir()
    study = folder / "small.yaml"
    study.write_text(STUDY)
    [config] = grid.study_runs(str(study))
    with pytest.raises(Interrupted), stopped_after(2):
        train_run(config, folder / "results", progress=False)
    place = run_folder.run_dir(folder / "results", config) / "environment.json"
    told = json.loads(place.read_text())
    told["platform"]["processor"] = "another processor"
    place.write_text(json.dumps(told))
    return study, place


def run(name, values, colab):
    """Execute a notebook with the stand-in's kernel, as it is but for its parameters; returns the
    executed copy."""
    import nbformat
    from nbclient import NotebookClient

    python, work, env = colab
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    notebook.cells.insert(
        place + 1,
        nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in values.items())),
    )
    spec = work.parent / "kernels" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    words = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": words, "display_name": "Colab", "language": "python"}))
    client = NotebookClient(
        notebook,
        timeout=1500,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    client.km = client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs.insert(0, str(spec.parent.parent))
    client.execute(env=env)
    return notebook


def test_set_up_leaves_torch_numpy_and_matplotlib_as_they_are(monkeypatch):
    calls = []

    def run(words, **_):
        text = Path(words[words.index("-c") + 1]).read_text() if "pip" in words else ""
        calls.append((words, text))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    set_up()
    words, constraints = calls[0]
    assert words[1:4] == ["-m", "pip", "install"] and words[-2] == "-e"
    assert constraints.split() == kept_versions() and [
        line.split("==")[0] for line in kept_versions()
    ] == ["torch", "numpy", "matplotlib"]
    assert [words[-1] for words, _ in calls[1:3]] == ["weights", "Task04_Hippocampus"]


def test_what_the_set_up_says_stands_before_what_its_commands_print(monkeypatch):
    """The standard output of the set-up is a pipe in a notebook, which is not flushed by line."""
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))

    def run(words, **_):
        pipe.write(" ".join(map(str, words)).encode())
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    set_up()
    found = [
        pipe.getvalue().decode().index(word)
        for word in (
            "setting up",
            "pip install",
            "installed; kept",
            "mvl fetch",
            "weights: fetched",
        )
    ]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("notebook", "gpu", "study"),
    [
        ("01_baseline", "Tesla T4", "colab"),
        ("01_baseline", "", "quick"),
        ("04_lora_ablation", "NVIDIA L4", "colab"),
        ("08_qualitative", "Tesla T4", "colab"),
        ("05_controls", "Tesla T4", "hippocampus"),
        ("06_llm4seg", "", "busi"),
        ("07_comparators", "", "hippocampus"),
    ],
)
def test_a_gpu_gets_scans_and_phantoms_are_for_machines_without_one(notebook, gpu, study):
    assert chosen_study(notebook, gpu) == study


def test_away_from_colab_a_notebook_shows_its_own_study_and_says_nothing(capsys):
    assert ready("05_controls", "auto", "data/runs", drive=True) == ("hippocampus", "data/runs")
    assert ready("01_baseline", "busi", "x") == ("busi", "x") and capsys.readouterr().out == ""


@pytest.fixture
def on_colab(monkeypatch, tmp_path):
    """A notebook that believes it is on Colab, whose Drive is a folder; returns what it mounts."""
    mounts = []
    drive = types.SimpleNamespace(mount=mounts.append)
    for name, module in (
        ("google", types.ModuleType("google")),
        ("google.colab", types.SimpleNamespace(drive=drive)),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(colab_module, "on_colab", lambda: True)
    monkeypatch.setattr(colab_module, "DRIVE", tmp_path / "drive")
    monkeypatch.setattr(launch, "ensure_data", lambda study: None)
    return mounts


def test_a_study_whose_data_are_absent_is_not_begun(on_colab, monkeypatch, tmp_path):
    def absent(study: str) -> None:
        raise TaskError(f"no data of {study}")

    monkeypatch.setattr(launch, "ensure_data", absent)
    monkeypatch.setattr(colab_module, "card", lambda: "")
    with pytest.raises(TaskError, match="no data of busi"):
        ready("06_llm4seg", "auto", str(tmp_path))


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("Tesla T4", "colab: 5 runs are left, about {} minutes on Tesla T4 (2.02 TFLOP/s"),
        ("NVIDIA A9", "colab: 5 runs are left, about {} minutes on NVIDIA A9, planned as a T4 ("),
        ("", "quick: 3 runs are left, about {} minutes on one core of this machine ("),
    ],
)
def test_the_plan_is_said_before_anything_starts(
    on_colab, monkeypatch, tmp_path, capsys, gpu, words
):
    monkeypatch.setattr(colab_module, "card", lambda: gpu)
    monkeypatch.setattr(plan, "cpu_peak", lambda: 100.0)
    study, _ = ready("01_baseline", "auto", str(tmp_path / "results"), allow_drift=True)
    said = capsys.readouterr().out
    runs_left = [run for run in grid.study_runs(study, "main") if run.system == "vit_baseline"]
    minutes = sum(plan.seconds(c, plan.find_device("t4" if gpu else "cpu")) for c in runs_left) / 60
    assert (
        words.format(max(1, round(minutes))) in said
        and "go on here and are marked" in said
        and on_colab == []
    )
    assert said.startswith(f"results: {tmp_path / 'results'}, which ends with this machine")


def test_colab_is_an_hour_of_a_t4_at_most_with_cases_read_one_by_one():
    """By the planner, and by today's loader beside it: 17 ms of one core for each step of two
    cases."""
    t4, all_runs = plan.find_device("t4"), grid.study_runs("colab")
    assert {block["name"] for block in grid.load_study("colab").grid} == {
        "main",
        "few_shot",
        "lora",
    }
    steps = sum(work.visits(c)[0] / c.train.batch_size for c in all_runs)
    assert sum(plan.seconds(c, t4) for c in all_runs) + 0.017 * steps <= 3600
    assert all(plan.memory_mb(c, t4) < t4.memory_mb for c in all_runs[::8])


def test_results_come_from_drive_and_go_there(on_colab, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(colab_module, "card", lambda: "")
    monkeypatch.setattr(colab_module, "plan_text", lambda *words: "plan")
    monkeypatch.setattr(colab_module, "COPY_S", 0.05)
    ends = []
    monkeypatch.setattr(atexit, "register", ends.append)
    there, here = tmp_path / "drive" / "MyDrive" / "mvl" / "runs", tmp_path / "results"
    run = there / "quick" / "runs" / "a"
    run.mkdir(parents=True)
    (run / "checkpoint-000000001-0123.pt").write_text("old")
    ready("01_baseline", "quick", str(here), drive=True)
    assert on_colab == [str(tmp_path / "drive")]
    said = capsys.readouterr().out
    assert "results: 1 files taken" in said and "`allow_drift = True`" in said
    own = here / "quick" / "runs" / "a"
    assert (own / "checkpoint-000000001-0123.pt").read_text() == "old"
    (own / "checkpoint-000000002-4567.pt").write_text("new")
    (own / "checkpoint-000000001-0123.pt").unlink()
    until = time.monotonic() + 20
    while [path.name for path in run.iterdir()] != [
        "checkpoint-000000002-4567.pt"
    ] and time.monotonic() < until:
        time.sleep(0.02)
    assert [path.name for path in run.iterdir()] == ["checkpoint-000000002-4567.pt"]
    (own / "status.json").write_text("done")
    ends[0]()
    assert (run / "status.json").read_text() == "done"


def test_a_copy_is_whole_and_only_of_what_is_newer(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "run").mkdir(parents=True)
    for name in ("status.json", "cases.csv", ".lock", ".cases.csv.1.tmp"):
        (here / "run" / name).write_text("1")
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    assert copy_newer(here, there) == 2 and order == ["cases.csv", "status.json"]
    assert copy_newer(here, there) == 0
    (here / "run" / "cases.csv").write_text("12")
    assert copy_newer(here, there) == 1 and (there / "run" / "cases.csv").read_text() == "12"
    newer = there / "run" / "status.json"
    newer.write_text("of another machine")
    os.utime(newer, (time.time() + 60,) * 2)
    assert copy_newer(here, there) == 0 and newer.read_text() == "of another machine"


def test_a_copy_that_fails_leaves_nothing_on_a_full_drive(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "weights.safetensors").write_text("12")

    def full(_: Path, part: Path) -> None:
        part.write_text("1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(OSError, match="No space"):
        copy_newer(here, there)
    assert list(there.iterdir()) == []


def test_a_run_of_another_machine_goes_on_when_that_is_allowed_and_is_marked(tmp_path, capsys):
    study, place = begun_elsewhere(tmp_path / "mine")
    assert (
        len(
            launch.ensure_runs(
                str(study), grid.study_runs(str(study)), tmp_path / "mine" / "results"
            )
        )
        == 1
    )
    assert "another processor" in capsys.readouterr().err
    assert (
        launch.ensure_runs(
            str(study), grid.study_runs(str(study)), tmp_path / "mine" / "results", allow_drift=True
        )
        == []
    )
    assert any(
        "another processor" in line for line in json.loads(place.read_text())["drift"]
    ) and run_folder.is_done(place.parent)


@pytest.mark.colab
def test_the_set_up_cell_leaves_what_colab_brings_and_the_first_notebook_runs(colab, capfd):
    python, work, env = colab
    before = frozen(python, env)
    assert {"torch", "numpy", "matplotlib"} <= set(before) and not {
        "mvl-companion",
        "monai",
        "peft",
        "seaborn",
    } & set(before)
    notebook = run("01_baseline", {"study": "quick", "results_dir": "data/results"}, colab)
    after = frozen(python, env)
    changed = {
        name: (version, after.get(name))
        for name, version in before.items()
        if after.get(name) != version
    }
    assert not set(changed) & {"torch", "numpy", "matplotlib"} and {
        "mvl-companion",
        "monai",
        "peft",
        "seaborn",
    } <= set(after)
    own = subprocess.run(
        [
            python,
            "-c",
            (
                "import torch, numpy, matplotlib; print(torch.__file__, numpy.__file__,"
                " matplotlib.__file__)"
            ),
        ],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [Path(path).parent.parent for path in own] == [work.parent / "brought"] * 3
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert all(cell.execution_count for cell in code) and not [
        output for output in outputs if output.output_type == "error"
    ]
    words = "".join(
        output.get("text", "") + str(output.get("data", {}).get("text/markdown", ""))
        for output in outputs
    )
    # what the cell's own processes print comes this way where the kernel does not catch it
    words += capfd.readouterr().out
    assert "installed; kept: torch==" in words and "not evidence." in words
    assert (
        "device: CPU only; the study `auto` is `quick`" in words
        and "quick: every run of this notebook is done" in words
    )
    assert any(
        "image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {})
        for output in outputs
    )
    assert (work / "mvl-book" / "data" / "results").is_dir() and set(changed) <= {
        "pip",
        "setuptools",
    }
    study, place = begun_elsewhere(work.parent / "mine")
    code = (
        "import sys; from pathlib import Path\n"
        "from mvl.study.grid import study_runs\n"
        "from mvl.study.launch import ensure_runs\n"
        "runs, drift = study_runs(sys.argv[1]), sys.argv[3] == '1'\n"
        "ensure_runs(sys.argv[1], runs, Path(sys.argv[2]), allow_drift=drift)"
    )
    for allowed in (False, True):
        words = [python, "-c", code, str(study), str(study.parent / "results"), str(int(allowed))]
        subprocess.run(words, cwd=work / "mvl-book", env=env, check=True)
        assert run_folder.is_done(place.parent) is allowed, (
            "results of another machine go on only when that is allowed"
        )
    assert any("another processor" in line for line in json.loads(place.read_text())["drift"])
