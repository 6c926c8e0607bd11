"""What every group of faults starts from: a small task to break, and a hash of a tree to see that
nothing else changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvl.core.config import Config, load_config
from mvl.core.files import sha256_bytes
from mvl.datasets.nifti import nifti_bytes

TINY = """
title: tiny
tasks: [Toy]
grid: [{name: main, systems: [vit_baseline]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 32, mlp_dim: 64}
train: {train_epochs: 4, batch_size: 4, checkpoint_s: 0.0}
"""
CASES = 12
SIZE = 16


def hash_of_tree(path: Path) -> str:
    """sha256 over the names, kinds and bytes of everything below `path`, locks left out; of a
    missing path it is that of nothing."""
    total = hashlib.sha256()
    for inner in sorted(Path(path).rglob("*")):
        if inner.name != ".lock" and not (
            inner.name.startswith(".") and inner.name.endswith(".lock")
        ):
            body = (
                str(inner.readlink()).encode()
                if inner.is_symlink()
                else inner.read_bytes()
                if inner.is_file()
                else b""
            )
            total.update(
                f"{inner.relative_to(path)}\0{inner.is_dir()}\0{hashlib.sha256(body).hexdigest()}\n".encode()
            )
    return total.hexdigest()


def box_case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (int16) and label (0, 1, 2) of a 16^3 phantom: two bright boxes in noise."""
    rng = np.random.default_rng(index)
    image, label = rng.normal(100, 10, (SIZE, SIZE, SIZE)), np.zeros((SIZE, SIZE, SIZE), np.uint8)
    x, y, z = rng.integers(2, 7, 3)
    label[x : x + 6, y : y + 6, z : z + 4], label[x : x + 6, y : y + 6, z + 4 : z + 8] = 1, 2
    return (image + 50 * (label > 0) + 20 * label).astype(np.int16), label


def write_task(folder: Path, cases: int = CASES) -> Path:
    """A Decathlon-layout task of 16^3 phantoms with `dataset.json` and the sha256 of every file in
    `manifest.json`."""
    names, hashes = [f"toy_{index:03d}" for index in range(cases)], {}
    for index, name in enumerate(names):
        for kind, voxels in zip(("imagesTr", "labelsTr"), box_case(index)):
            data = nifti_bytes(voxels, np.diag([1.0, 1.0, 1.0, 1.0]))
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{name}.nii.gz").write_bytes(data)
            hashes[f"{kind}/{name}.nii.gz"] = sha256_bytes(data)
    pairs = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in names
    ]
    described = {
        "name": folder.name,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "numTraining": cases,
        "training": pairs,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    (folder / "manifest.json").write_text(json.dumps({"task": folder.name, "files": hashes}))
    return folder


@pytest.fixture(scope="session")
def tree_hash() -> Callable[[Path], str]:
    """`tree_hash(path) -> str`: call it before and after."""
    return hash_of_tree


@pytest.fixture(scope="session")
def pristine_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task that `case_folder` copies; never change it."""
    return write_task(tmp_path_factory.mktemp("pristine") / "Toy")


@pytest.fixture
def case_folder(pristine_task: Path, tmp_path: Path) -> Path:
    """`tmp_path/data/Toy`, a private copy to break; `find_task("Toy", case_folder.parent)` is its
    task."""
    return Path(shutil.copytree(pristine_task, tmp_path / "data" / "Toy"))


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a study of one tiny ViT on the small task; a study may be named by its file."""
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture
def tiny(tiny_study: str) -> Config:
    """A run of two steps in each of four epochs on `case_folder`'s task."""
    return load_config(tiny_study, "Toy", "vit_baseline")
