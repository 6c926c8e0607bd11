"""Training cases on the device: decoded once, stacked there where they fit, and augmented a batch
at a time.

Where they do not fit, or loader processes are asked for on a CPU, the loader of `loaders.py` gives
the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mvl.core.config import Config
from mvl.core.seeds import draw_seed
from mvl.datasets.augment import Changes, augmentation
from mvl.datasets.case_store import CaseStore, read_case
from mvl.datasets.loaders import batch_loader, batch_rows, epoch_order

GPU_SHARE = 0.5
"Share of a GPU's free memory that cases may take."


def bytes_of(store: CaseStore) -> int:
    """Bytes of the decoded cases of a store: images in float32, labels in 8 bits."""
    voxels = math.prod(store.data.img_size)
    return len(store.items()[0]) * voxels * (4 * len(store.task.channels) + 1)


def fits(store: CaseStore, device: torch.device) -> bool:
    """True when the cases of a store may be stacked on a device."""
    if device.type == "cuda":
        return bytes_of(store) <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    return bytes_of(store) <= store.data.cache_gb * 1e9 and store.data.num_workers == 0


class DeviceStore:
    """Every case of a store as one tensor of images (N, C, *S) and one of labels (N, 1, *S)."""

    def __init__(self, store: CaseStore, device: torch.device) -> None:
        """Decode the cases and stack them.

        Raises:
            TaskError: a case cannot be used; names it and the remedy.
        """
        owner, self.places = store.items()
        size = store.data.img_size
        self.images = torch.empty(len(owner), len(store.task.channels), *size, device=device)
        self.labels = torch.empty(len(owner), 1, *size, dtype=torch.uint8, device=device)
        for index in range(len(owner)):
            image, label = read_case(owner, index)
            self.images[index] = image
            self.labels[index] = label
            if device.type == "cpu":  # one copy in memory, not two
                owner.kept[index] = (self.images[index], self.labels[index])

    def take(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the images and labels of some items, whose indices lie on the device."""
        return self.images.index_select(0, items), self.labels.index_select(0, items)


class Feed:
    """The batches of a run's epochs, as one process gets them."""

    def __init__(
        self, store: CaseStore, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        self.store, self.device = store, device
        self.rank, self.world_size = rank, world_size
        self.stacked: DeviceStore | None = None
        self.loader: Any = None

    def epoch(self, config: Config, epoch: int, first_step: int = 0) -> Iterator[dict[str, Any]]:
        """Batches `first_step`, `first_step + 1`, ... of an epoch: `image`, `label` and `cases`."""
        if self.stacked is None and self.loader is None:
            if fits(self.store, self.device):
                self.stacked = DeviceStore(self.store, self.device)
            else:
                self.loader = batch_loader(self.store, config, pinned=self.device.type == "cuda")
        if self.stacked is not None:
            return self.from_device(self.stacked, config, epoch, first_step)
        return iter(self.loader.at(epoch, first_step, self.rank, self.world_size))

    def from_device(
        self, stacked: DeviceStore, config: Config, epoch: int, first_step: int
    ) -> Iterator[dict[str, Any]]:
        """The batches of an epoch from the device's own memory.

        What is drawn for each case of the epoch is drawn before its first step and brought there at
        once.
        """
        order = epoch_order(self.store.case_ids, config.seed, epoch)
        items = torch.tensor(
            [stacked.places[index] for index in order], dtype=torch.long, device=self.device
        )
        changes = self.drawn(config, order, epoch) if config.data.augment else None
        for rows in batch_rows(
            len(order), config.train.batch_size, first_step, self.rank, self.world_size
        ):
            image, label = stacked.take(items[rows])
            if changes is not None:
                image, label = changes.apply(image, label, rows)
            yield {
                "image": image,
                "label": label,
                "cases": [self.store.case_ids[index] for index in order[rows]],
            }

    def drawn(self, config: Config, order: list[int], epoch: int) -> Changes:
        """The table of an epoch's draws, in the order of its visits."""
        augment = augmentation(config.data)
        ids = self.store.case_ids
        seeds = [draw_seed(config.seed, "augment", epoch, ids[index]) for index in order]
        drawn = [
            augment.draw(seed, *self.store.version(index)) for seed, index in zip(seeds, order)
        ]
        return Changes(drawn, config.data.img_size, self.device)
