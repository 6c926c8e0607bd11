"""Phantoms that tests may copy and break."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from mvl.datasets.phantoms import ensure_phantoms
from mvl.datasets.registry import find_task
from mvl.datasets.shapes2d import ensure_shapes

FEW = 12


@pytest.fixture(scope="session")
def few_phantoms(tmp_path_factory):
    """A data root with twelve phantoms, not to be changed."""
    root = tmp_path_factory.mktemp("few")
    ensure_phantoms(root / "phantoms", FEW)
    return root


@pytest.fixture
def toy(few_phantoms, tmp_path):
    """(task, data root) of a task `Toy` that is a private copy of twelve phantoms, with a
    manifest."""
    folder = tmp_path / "data" / "Toy"
    shutil.copytree(few_phantoms / "phantoms", folder)
    described = json.loads((folder / "dataset.json").read_text())
    described.pop("phantoms")
    (folder / "dataset.json").write_text(json.dumps(described))
    return (
        dataclasses.replace(
            find_task("phantoms"), name="Toy", num_cases=FEW, url="http://127.0.0.1:9/Toy.tar"
        ),
        tmp_path / "data",
    )


@pytest.fixture(scope="session")
def few_shapes(tmp_path_factory):
    """(task, data root) of sixteen generated pictures, not to be changed."""
    root = tmp_path_factory.mktemp("shapes")
    ensure_shapes(root / "shapes", 16)
    return dataclasses.replace(find_task("shapes"), num_cases=16), root
