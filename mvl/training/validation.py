"""The look at the watched cases after an epoch: their mean loss and Dice, over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mvl.core.config import Config
from mvl.datasets.case_store import CaseStore
from mvl.datasets.device_store import DeviceStore, fits
from mvl.training.objective import foreground_dice
from mvl.training.trained import Predictor

Loss = Callable[[Tensor, Tensor], Tensor]
"Logits and labels in, one number out."


class Validation:
    """The watched cases of a run, and the score of a network on them on the resized grid."""

    def __init__(
        self, watched_cases: CaseStore, config: Config, loss: Loss, accelerator: Accelerator
    ) -> None:
        self.watched_cases = watched_cases
        self.config = config
        self.loss = loss
        self.accelerator = accelerator
        self.on_device: DeviceStore | None = None

    @torch.no_grad()
    def mean_loss_and_dice(self, network: nn.Module) -> tuple[float, float]:
        """Return the mean loss and the mean foreground Dice of the watched cases.

        Each process predicts every n-th case; the sums go in the order of the cases, so that they
        do not depend on which process was first.
        """
        device = self.accelerator.device
        predictor = Predictor(network, self.config, device)
        cases_at_once = predictor.cases_at_once()
        mine = range(
            self.accelerator.process_index,
            len(self.watched_cases),
            self.accelerator.num_processes,
        )
        scored = []
        for start in range(0, len(mine), cases_at_once):
            indices = mine[start : start + cases_at_once]
            image, label = self.batch(indices, device)
            logits = predictor(image)
            losses = [
                self.loss(logits[k : k + 1], label[k : k + 1].float()) for k in range(len(indices))
            ]
            scored.append((indices, torch.stack(losses), foreground_dice(logits, label)))
        # Only now are numbers read: a GPU has all batches in its queue before it is waited for.
        rows = [
            row
            for indices, losses, dices in scored
            for row in zip(indices, losses.tolist(), dices.tolist(), strict=True)
        ]
        rows = sorted(gather_object(rows))
        return sum(row[1] for row in rows) / len(rows), sum(row[2] for row in rows) / len(rows)

    def batch(self, indices: range, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images and labels of some cases on the device; on a GPU they stay there where they
        fit."""
        store = self.watched_cases
        if self.on_device is None and device.type == "cuda" and fits(store, device):
            self.on_device = DeviceStore(store, device)
        if self.on_device is not None:
            return self.on_device.take(torch.tensor(indices, device=device))
        pairs = [store.get(index) for index in indices]
        images = torch.stack([image for image, _ in pairs])
        labels = torch.stack([label for _, label in pairs])
        return images.to(device), labels.to(device)
