"""Cases stacked on the device give the loader's batches, bit for bit, and only where they fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mvl.core.config import Config, DataConfig, TrainConfig
from mvl.datasets import device_store
from mvl.datasets.case_store import CaseStore
from mvl.datasets.device_store import Feed, bytes_of, fits
from mvl.datasets.loaders import training_loader
from mvl.datasets.released_faults import VersionStore
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData

CPU = torch.device("cpu")


def store_of(toy, data, cases=7):
    task, root = toy
    return CaseStore(
        TaskData(task, root),
        tuple(case.case_id for case in TaskData(task, root).cases)[:cases],
        data,
    )


def config_of(**data):
    return Config(data=DataConfig(img_size=(12, 16, 12), **data), train=TrainConfig(batch_size=3))


def same(ours, theirs):
    pairs = list(zip(ours, theirs, strict=True))
    return pairs and all(
        a["cases"] == b["cases"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["label"], b["label"])
        for a, b in pairs
    )


@pytest.mark.parametrize(
    "data", [{}, {"augment": False}, {"augmentation": "flip_rot90"}, {"labels": "all"}]
)
def test_batches_are_the_loaders(toy, data):
    config = config_of(**data)
    for rank, world in ((0, 1), (1, 2), (2, 3)):
        feed = Feed(store_of(toy, config.data), CPU, rank, world)
        for epoch, step in ((0, 0), (1, 1)):
            assert same(
                feed.epoch(config, epoch, step),
                training_loader(store_of(toy, config.data), config, epoch, step, rank, world),
            )
        assert feed.stacked is not None and feed.loader is None


def test_versions_of_the_audit_are_the_loaders(toy):
    config = config_of(augmentation="released_planes")
    cases = store_of(toy, config.data, 2)
    items = tuple(f"{case}@{version}" for case in cases.case_ids for version in range(3))
    feed = Feed(VersionStore(cases, items, fixed=False), CPU)
    assert same(
        feed.epoch(config, 3), training_loader(VersionStore(cases, items, fixed=False), config, 3)
    )
    assert len(feed.stacked.images) == 2


def test_a_changed_batch_leaves_the_stack_alone(toy):
    config = config_of()
    feed = Feed(store_of(toy, config.data), CPU)
    first = list(feed.epoch(config, 0))
    kept = feed.stacked.images.clone()
    assert same(first, feed.epoch(config, 0)) and torch.equal(kept, feed.stacked.images)
    assert feed.store.get(0)[0].data_ptr() == feed.stacked.images[0].data_ptr(), (
        "one copy in memory"
    )


def test_what_does_not_fit_goes_through_the_loader(toy, monkeypatch):
    config = config_of()
    size = bytes_of(store_of(toy, config.data))
    assert size == 7 * 12 * 16 * 12 * 5
    for cache_gb, workers, expected in (
        (size / 1e9, 0, True),
        ((size - 1) / 1e9, 0, False),
        (1.0, 1, False),
    ):
        data = dataclasses.replace(config.data, cache_gb=cache_gb, num_workers=workers)
        assert fits(store_of(toy, data), CPU) is expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * size, 10 * size))
    assert fits(store_of(toy, config.data), torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * size - 2, 10 * size))
    assert not fits(store_of(toy, config.data), torch.device("cuda"))
    monkeypatch.setattr(device_store, "fits", lambda store, device: False)
    feed = Feed(store_of(toy, config.data), CPU)
    assert all(
        same(feed.epoch(config, epoch), training_loader(store_of(toy, config.data), config, epoch))
        for epoch in (0, 1)
    )


def test_loader_processes_live_through_the_epochs(toy):
    config = config_of(num_workers=1)
    feed = Feed(store_of(toy, config.data), CPU)
    plain, pids = config_of(), set()
    for epoch in (0, 1):
        assert same(
            feed.epoch(config, epoch), training_loader(store_of(toy, plain.data), plain, epoch)
        )
        pids |= {worker.pid for worker in feed.loader._iterator._workers}
    assert len(pids) == 1, "the same process serves both epochs"


def test_a_case_that_cannot_be_read_is_named(toy, monkeypatch):
    config = config_of()
    store = store_of(toy, config.data)
    monkeypatch.setattr(store, "get", lambda index: 1 / 0)
    with pytest.raises(TaskError, match=r"case phantom_000: ZeroDivisionError.*mvl verify"):
        next(Feed(store, CPU).epoch(config, 0))
