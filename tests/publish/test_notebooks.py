"""The notebooks keep the rules (DESIGN: never in a notebook), and executing one fails whenever it
did not run to its end."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mvl.core.block_config import TokenBlockConfig
from mvl.core.config import DataConfig, ModelConfig, TrainConfig
from mvl.core.privacy import redact
from mvl.evidence.topics import TOPICS
from mvl.publish.colab import own_study
from mvl.publish.notebooks import (
    FOLDER,
    NotebookError,
    check_parameters,
    declared_parameters,
    list_notebooks,
    notebook_path,
    run_notebook,
)
from mvl.study.grid import load_study
from mvl.study.links import colab_url, repository_url

NAMES = list_notebooks()
HYPERPARAMETERS = {
    f.name
    for c in (DataConfig, ModelConfig, TokenBlockConfig, TrainConfig)
    for f in dataclasses.fields(c)
}


def load(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code(notebook):
    return [
        (cell, "".join(cell["source"])) for cell in notebook["cells"] if cell["cell_type"] == "code"
    ]


def test_the_chapters_are_there():
    assert NAMES == [
        "01_baseline",
        "02_llm_hybrid",
        "03_few_shot",
        "04_lora_ablation",
        "05_controls",
        "06_llm4seg",
        "07_comparators",
        "08_qualitative",
    ]
    opened = {
        topic
        for name in NAMES
        for _, text in code(load(name))
        for topic in re.findall(r'open_chapter\("(\w+)"', text)
    }
    assert {name[3:] for name in NAMES} <= opened == set(TOPICS)


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs_and_stable_ids(name):
    notebook, stem = load(name), name[3:].replace("_", "-")
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell, _ in code(notebook)
    )
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(i.startswith(f"{stem}-") for i in ids)


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_only_show(name):
    for _, source in code(load(name)):
        assert len(ast.parse(source).body) <= 8
        tree = list(ast.walk(ast.parse(source)))
        assert not any(
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda))
            for node in tree
        )
        assigned = {n.id for n in tree if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        assigned |= {k.arg for k in tree if isinstance(k, ast.keyword)}
        assert not assigned & HYPERPARAMETERS
        assert not [
            n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, float)
        ]


@pytest.mark.parametrize("name", NAMES)
def test_no_machine_path_and_no_typed_result(name):
    text = "\n".join("".join(cell["source"]) for cell in load(name)["cells"])
    assert not re.search(r"/(?:home|root|work|tmp|Users|content)/|[A-Z]:\\", text)
    assert not re.search(r"\b0\.\d{2,}", text), "a result is typed by hand"


@pytest.mark.parametrize("name", NAMES)
def test_one_setup_and_one_parameters_cell(name):
    notebook = load(name)
    tags = [tag for cell in notebook["cells"] for tag in cell["metadata"].get("tags", ())]
    assert tags.count("setup") == 1 and tags.count("parameters") == 1
    declared = declared_parameters(notebook, name)
    assert declared == {
        "study": ("str", "auto"),
        "results_dir": ("str", "data/runs"),
        "drive": ("bool", False),
        "allow_drift": ("bool", False),
        "run": ("bool", True),
    }
    assert name in load_study(own_study(name)).notebooks, (
        "the study that a notebook shows by itself owns it"
    )
    opened = next(source for cell, source in code(notebook) if cell["id"].endswith("-open"))
    assert (
        f'study, results_dir = colab.ready("{name}", study, results_dir, drive, allow_drift)'
        in opened
    )
    asked = re.findall(r'\n    train_chapter\("(\w+)", study, results_dir, allow_drift\)', opened)
    assert asked == re.findall(r'open_chapter\("(\w+)", study, results_dir\)', opened)
    assert opened.index("\nif run:\n") < opened.index("train_chapter(") < opened.index("= open_")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_a_notebook_asks_of_the_package_is_there(name):
    cells = [source for _, source in code(load(name))]
    tree = ast.walk(ast.parse("\n".join(cells)))
    known: dict[str, object] = {}
    for node in tree:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mvl"):
            exec(ast.unparse(node), known)
    used = [
        (node.value.id, node.attr)
        for source in cells
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    asked = {pair for pair in used if isinstance(known.get(pair[0]), types.ModuleType)}
    assert not [f"{module}.{attr}" for module, attr in asked if not hasattr(known[module], attr)]
    assert {module for module, _ in asked} == {
        word for word, value in known.items() if isinstance(value, types.ModuleType)
    }, "a module is imported that no cell uses"


@pytest.mark.parametrize("name", NAMES)
def test_addresses_are_those_of_pyproject(name):
    notebook = load(name)
    assert f"]({colab_url(name)})" in "".join(notebook["cells"][0]["source"])
    setup = next(
        source for cell, source in code(notebook) if "setup" in cell["metadata"].get("tags", ())
    )
    assert f'"{repository_url()}"' in setup


@pytest.mark.parametrize("name", NAMES)
def test_setup_cell_does_nothing_outside_colab(name, tmp_path):
    setup = next(
        source for cell, source in code(load(name)) if "setup" in cell["metadata"].get("tags", ())
    )
    subprocess.run([sys.executable, "-c", setup], cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_setup_cell_clones_once_and_runs_the_setup_on_colab(tmp_path):
    """A stand-in for Colab: `google.colab` is importable, git brings a repository from this
    machine, and its set-up leaves a mark."""
    origin, home, packages = tmp_path / "origin", tmp_path / "home", tmp_path / "packages"
    (origin / "mvl" / "publish").mkdir(parents=True)
    (origin / "mvl" / "__init__.py").touch()
    (origin / "mvl" / "publish" / "__init__.py").touch()
    (origin / "mvl" / "publish" / "colab.py").write_text(
        "from pathlib import Path; Path('set_up').touch()"
    )
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    (packages / "google" / "colab").mkdir(parents=True)
    home.mkdir()
    (home / ".gitconfig").write_text(f'[url "file://{origin}"]\n insteadOf = {repository_url()}\n')
    setup = next(
        source
        for cell, source in code(load(NAMES[0]))
        if "setup" in cell["metadata"].get("tags", ())
    )
    work = tmp_path / "content"
    work.mkdir()
    subprocess.run(
        [sys.executable, "-c", f"{setup}\nos.unlink('set_up')\n{setup}"],  # run twice in one kernel
        cwd=work,
        check=True,
        timeout=60,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(packages)},
    )
    assert (work / "mvl-book" / "set_up").exists()
    assert not (work / "mvl-book" / "mvl-book").exists(), "the second run clones into the clone"


def test_unknown_parameter_and_notebook_are_refused_with_a_hint():
    with pytest.raises(NotebookError, match="did you mean 'study'"):
        run_notebook("01_baseline", {"studdy": "quick"})
    with pytest.raises(NotebookError, match="did you mean '01_baseline'"):
        notebook_path("01_basline")
    for name in ("Study", "study; import os", "1study", ""):
        with pytest.raises(NotebookError, match="no parameter"):
            check_parameters({name: "x"}, {"study": ("str", "quick")}, "here")


def test_parameters_take_their_declared_type():
    declared = {"n": ("int", 1), "x": ("float", 1.0), "b": ("bool", True), "s": ("str", "")}
    assert check_parameters({"n": "3", "x": "2.5", "b": "false", "s": "3"}, declared, "") == {
        "n": 3,
        "x": 2.5,
        "b": False,
        "s": "3",
    }
    assert check_parameters({"x": 2}, declared, "") == {"x": 2.0}
    for bad in (
        {"n": "3.5"},
        {"n": 3.0},
        {"n": True},
        {"b": "yes"},
        {"b": 1},
        {"s": 3},
        {"x": "wide"},
    ):
        with pytest.raises(NotebookError, match="expected"):
            check_parameters(bad, declared, "")


def toy(folder, *sources):
    def cell(i, source, tags=()):
        return {
            "id": f"toy-{i}",
            "cell_type": "code",
            "metadata": {"tags": list(tags)},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }

    cells = [
        cell("p", 'word: str = "quick"', ["parameters"]),
        *(cell(i, s) for i, s in enumerate(sources)),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (folder / "01_toy.ipynb").write_text(json.dumps(notebook))


def test_a_good_notebook_runs_in_this_interpreter(tmp_path):
    toy(tmp_path, "import sys, mvl\nprint(sys.executable, word)")
    executed = json.loads(
        run_notebook("01_toy", {"word": "slow"}, tmp_path / "out.ipynb", tmp_path).read_text()
    )
    said = "".join(executed["cells"][-1]["outputs"][0]["text"])
    assert said == redact(f"{sys.executable} slow\n") and said.endswith(
        f"/{Path(sys.executable).name} slow\n"
    )
    assert "papermill" not in executed["metadata"] and "mvl-last-words" not in json.dumps(executed)


@pytest.mark.parametrize(
    "last",
    [
        "1 / 0",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_a_notebook_that_does_not_end_well_is_an_error_and_leaves_no_file(tmp_path, last):
    toy(tmp_path, "print('fine')", last)
    with pytest.raises(NotebookError, match="01_toy"):
        run_notebook("01_toy", {}, tmp_path / "out.ipynb", tmp_path)
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("start", [".", "notebooks"])
def test_the_published_records_are_shown_and_not_trained_into_from_either_folder(start, tmp_path):
    """What plain papermill and plain Jupyter do: the kernel starts at the clone's top or in
    `notebooks/`, and `../data/results` means the records from both."""
    cells = [source for _, source in code(load("01_baseline"))]
    opened = next(place for place, source in enumerate(cells) if "open_chapter(" in source)
    given = 'results_dir = "../data/results"'
    text = "\n".join([*cells[:opened], given, cells[opened], "print('records', chapter.published)"])
    top = FOLDER.parent
    before = {path.name for path in (*top.parent.iterdir(), *top.iterdir())}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=top / start, capture_output=True, text=True
    )
    assert "records True" in done.stdout, done.stderr
    assert {path.name for path in (*top.parent.iterdir(), *top.iterdir())} == before
