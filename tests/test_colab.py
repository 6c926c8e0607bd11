"""A stand-in for Colab: the set-up cell installs from a local clone beside a torch, numpy and matplotlib that it must not touch.

Installs packages and takes minutes: `make check` runs it, `make test` does not.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from mvl.config import ROOT
from mvl.report import repository_url

BROUGHT = ("torch", "numpy", "matplotlib", "ipykernel")
"What the stand-in has before; IPython is what runs a Colab notebook."
pytestmark = pytest.mark.colab


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
            left += [line.name for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    return found


def bring(distributions, folder):
    """Links to the distributions' files, so that an environment with `folder` on its path has these and no others."""
    folder.mkdir()
    for distribution in distributions.values():
        for top in {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            source, target = Path(distribution.locate_file(top)).resolve(), folder / top
            if source.exists() and not target.exists():
                target.symlink_to(source)


def make_clone(folder):
    """A repository with what git has, or would have, of this one, as the address of the set-up cell gives it."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)


@pytest.fixture
def colab(tmp_path):
    """The stand-in: its Python, its environment variables, and the folder that a notebook starts in."""
    home, work = tmp_path / "venv", tmp_path / "content"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    places = subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True)
    bring(needs(BROUGHT), tmp_path / "brought")
    (Path(places.stdout.strip()) / "brought.pth").write_text(f"{tmp_path / 'brought'}\n")
    (tmp_path / "stub" / "google" / "colab").mkdir(parents=True)
    work.mkdir()
    make_clone(tmp_path / "origin")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MVL_", "PYTHON"))}
    weights = Path(os.environ.get("MVL_WEIGHTS") or ROOT / "data" / "raw" / "weights")
    kept = {key: str(value) for key, value in (("MVL_WEIGHTS", weights), ("MVL_DATA", os.environ.get("MVL_DATA"))) if value and Path(value).is_dir()}
    return python, work, {**clean, **kept, "PYTHONPATH": str(tmp_path / "stub"), "PIP_NO_COMPILE": "1", "VIRTUAL_ENV": str(home),
                          "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": repository_url(),
                          "GIT_CONFIG_KEY_0": f"url.file://{tmp_path / 'origin'}.insteadOf"}


def frozen(python, env):
    """Name -> version, as pip sees it."""
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], env=env, capture_output=True, text=True, check=True)
    return {row["name"].lower().replace("_", "-"): row["version"] for row in json.loads(done.stdout)}


def run(name, values, colab):
    """Execute a notebook with the stand-in's kernel, as it is but for its parameters; returns the executed copy."""
    import nbformat
    from nbclient import NotebookClient

    python, work, env = colab
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in values.items())))
    spec = work.parent / "kernels" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    words = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": words, "display_name": "Colab", "language": "python"}))
    client = NotebookClient(notebook, timeout=1500, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.km = client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs.insert(0, str(spec.parent.parent))
    client.execute(env=env)
    return notebook


def test_the_set_up_cell_leaves_what_colab_brings_and_the_first_notebook_runs(colab, capfd):
    python, work, env = colab
    before = frozen(python, env)
    assert {"torch", "numpy", "matplotlib"} <= set(before) and not {"mvl", "monai", "peft", "seaborn"} & set(before)
    notebook = run("01_baseline", {"study": "quick", "results_dir": "data/results"}, colab)
    after = frozen(python, env)
    changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
    assert not set(changed) & {"torch", "numpy", "matplotlib"} and {"mvl", "monai", "peft", "seaborn"} <= set(after)
    own = subprocess.run([python, "-c", "import torch, numpy, matplotlib; print(torch.__file__, numpy.__file__, matplotlib.__file__)"], env=env,
                         capture_output=True, text=True, check=True).stdout.split()
    assert [Path(path).parent.parent for path in own] == [work.parent / "brought"] * 3
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert all(cell.execution_count for cell in code) and not [output for output in outputs if output.output_type == "error"]
    words = "".join(output.get("text", "") + str(output.get("data", {}).get("text/markdown", "")) for output in outputs)
    words += capfd.readouterr().out  # what the cell's own processes print comes this way where the kernel does not catch it
    assert "installed; kept: torch==" in words and "Phantom data." in words
    assert any("image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}) for output in outputs)
    assert (work / "mvl-book" / "data" / "results").is_dir() and set(changed) <= {"pip", "setuptools"}
