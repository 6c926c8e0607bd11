"""Loader processes get everything by pickle, as Python 3.14 starts them: the batches are those of
the run's own process, for each kind of data and each fault of the audit."""

from __future__ import annotations

import dataclasses
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from mvl.core.config import Config, DataConfig, TrainConfig
from mvl.datasets.case_store import CaseStore
from mvl.datasets.label_noise import label_damage
from mvl.datasets.loaders import TrainingBatches, batch_loader
from mvl.datasets.registry import find_task, sliced
from mvl.datasets.released_faults import VersionStore
from mvl.datasets.task_data import TaskData

KINDS = ("scans", "pictures", "slices", "versions of scans", "fixed versions of scans")
AUGMENTATIONS = ("rotate_intensity", "flip_rot90", "released_planes", "one_plane")
NOISE = ("none", "region", "boundary")


def batches(kind, augmentation, noise, roots, workers=0):
    """A store of a kind and the config that reads it."""
    phantoms, (shapes, shapes_root) = roots
    flat = kind in ("pictures", "slices")
    data = DataConfig(
        img_size=(8, 8) if flat else (8, 8, 8),
        augmentation=augmentation,
        label_noise=noise,
        label_noise_rate=0.0 if noise == "none" else 1.0,
        num_workers=workers,
    )
    config = Config(data=data, train=TrainConfig(batch_size=2))
    scans = dataclasses.replace(find_task("phantoms"), num_cases=12)
    task = {"pictures": shapes, "slices": sliced(scans)}.get(kind, scans)
    root = shapes_root if kind == "pictures" else phantoms
    cases = {"pictures": ("shape_000", "shape_001")}.get(kind, ("phantom_000", "phantom_001"))
    if kind == "slices":
        found = [case.case_id for case in TaskData(task, root).cases]
        cases = (found[0], found[-1])
    store = CaseStore(TaskData(task, root), cases, data, label_damage(config, cases))
    if "versions" in kind:
        items = [f"{case}@{version}" for case in cases for version in (0, 2)]
        store = VersionStore(store, items, fixed=kind.startswith("fixed"))
    return store, config


@pytest.fixture
def roots(few_phantoms, few_shapes):
    return few_phantoms, few_shapes


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("image", "label"))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(
    ("kind", "augmentation"),
    [
        (kind, augmentation)
        for kind in KINDS
        for augmentation in (AUGMENTATIONS[2:] if "versions" in kind else AUGMENTATIONS)
    ],
)
def test_what_loader_processes_get_reads_the_same_after_pickling(kind, augmentation, noise, roots):
    store, config = batches(kind, augmentation, noise, roots)
    dataset = TrainingBatches(store, config)
    again, collate = ForkingPickler.loads(ForkingPickler.dumps((dataset, dataset.collate)))
    for place in ((0, 0), (3, 1)):
        assert same(dataset[place], again[place]), place
    assert same(collate([dataset[1, 0]]), dataset.collate([dataset[1, 0]]))


@pytest.mark.parametrize(
    ("kind", "augmentation", "noise"),
    [("versions of scans", "released_planes", "region"), ("pictures", "flip_rot90", "boundary")],
)
def test_a_forkserver_reads_what_the_runs_own_process_reads(kind, augmentation, noise, roots):
    loader = batch_loader(*batches(kind, augmentation, noise, roots, workers=1))
    loader.multiprocessing_context = "forkserver"
    there = list(loader.at(0))
    here = list(batch_loader(*batches(kind, augmentation, noise, roots)).at(0))
    assert len(here) == len(there) and all(map(same, here, there))
