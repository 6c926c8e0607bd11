"""Training batches of a store of cases.

Every random draw is a function of (seed, purpose, epoch, case), so that worker count, order of
visits and interruption change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mvl.core.config import Config
from mvl.core.seeds import draw_seed
from mvl.datasets.augment import augmentation
from mvl.datasets.case_store import CaseStore, read_case

WORKER_TIMEOUT_S = 300
"A loader process that answers nothing for so long is given up."


class TrainingBatches(Dataset):
    """Cases by (epoch, index), augmented as (seed, epoch, case) say."""

    def __init__(self, store: CaseStore, config: Config) -> None:
        self.store, self.config = store, config
        self.augment = augmentation(config.data)

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.store)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """`image` (C, *spatial) float32, `label` (1, *spatial) uint8 and `case`."""
        epoch, index = place
        case = self.store.case_ids[index]
        image, label = read_case(self.store, index)
        if self.config.data.augment:
            image, label = self.augment(
                image,
                label,
                draw_seed(self.config.seed, "augment", epoch, case),
                *self.store.version(index),
            )
        return {"image": image, "label": label, "case": case}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch: `image` (B, C, *spatial), `label` (B, 1, *spatial), `cases`."""
        channels, size = len(self.store.task.channels), self.config.data.img_size
        image = (
            torch.stack([s["image"] for s in samples])
            if samples
            else torch.zeros(0, channels, *size)
        )
        label = (
            torch.stack([s["label"] for s in samples])
            if samples
            else torch.zeros(0, 1, *size, dtype=torch.uint8)
        )
        return {"image": image, "label": label, "cases": [s["case"] for s in samples]}


def steps_per_epoch(n_cases: int, batch_size: int) -> int:
    """Optimiser steps of an epoch; the last, short batch counts."""
    return -(-n_cases // batch_size)


def epoch_order(case_ids: tuple[str, ...], seed: int, epoch: int) -> list[int]:
    """Indices of the cases in the order in which `epoch` visits them, a function of (seed, epoch,
    case ids)."""
    return sorted(
        range(len(case_ids)), key=lambda index: draw_seed(seed, "order", epoch, case_ids[index])
    )


def batch_rows(
    cases: int, batch_size: int, first_step: int, rank: int, world_size: int
) -> Iterator[slice]:
    """Where the cases of each batch stand in an epoch's order: process `rank` gets every
    `world_size`-th of a batch.

    A process for which a short last batch leaves no case gets an empty slice, so that all take the
    same number of steps.
    """
    for start in range(first_step * batch_size, cases, batch_size):
        end = min(start + batch_size, cases)
        yield slice(min(start + rank, end), end, world_size)


def training_loader(
    store: CaseStore,
    config: Config,
    epoch: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """Batches `first_step`, `first_step + 1`, ... of an epoch, each case read and augmented by
    itself; see `batch_rows`."""
    return batch_loader(store, config).at(epoch, first_step, rank, world_size)


class BatchLoader(DataLoader):
    """A loader whose processes live as long as it does: each epoch tells them anew what to read."""

    def at(
        self, epoch: int, first_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> BatchLoader:
        """This loader, set to the rest of an epoch."""
        data: Any = self.dataset
        order = epoch_order(data.store.case_ids, data.config.seed, epoch)
        parts = batch_rows(len(order), data.config.train.batch_size, first_step, rank, world_size)
        self.batch_sampler.batches = [[(epoch, index) for index in order[part]] for part in parts]  # type: ignore[union-attr]
        self.generator.manual_seed(draw_seed(data.config.seed, "loader", epoch))
        return self


def batch_loader(store: CaseStore, config: Config, pinned: bool = False) -> BatchLoader:
    """A loader for all epochs of a run; `pinned` memory is read by a GPU without waiting."""
    workers = config.data.num_workers
    if workers:
        store.warm()
    dataset = TrainingBatches(store, config)
    return BatchLoader(
        dataset,
        batch_sampler=_Fixed([]),
        collate_fn=dataset.collate,
        num_workers=workers,
        generator=torch.Generator(),
        timeout=WORKER_TIMEOUT_S if workers else 0,
        pin_memory=pinned,
        persistent_workers=workers > 0,
    )


class _Fixed(torch.utils.data.Sampler):
    """Batches of places, as given."""

    def __init__(self, batches: list[list[tuple[int, int]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)
