"""Do the cases of a training set pull the encoder in one direction? The mean cosine of their
gradients.

Source: the measure of "Frozen language models are gradient coherence rectifiers" (AAAI 2025), which
explains what a frozen layer does by it. Differs: gradients of whole cases, not of parts of a batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvl.core import files
from mvl.core.columns import RUN_KEYS, run_columns
from mvl.core.config import Config
from mvl.core.run_folder import GRADIENTS_FILE
from mvl.datasets.case_store import CaseStore
from mvl.training import precision

COLUMNS = [*RUN_KEYS, "epochs_done", "mean_cosine"]
"Columns of gradients.csv, in order."
CASES = 16
"Training cases whose gradients are compared: the first of the split's list, the same for all arms."


def encoder_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of a ViT before the block: patch embedding, positions and encoder."""
    vit: Any = getattr(network, "vit", network)
    return [
        p
        for p in (*vit.embed.parameters(), vit.positions, *vit.encoder.parameters())
        if p.requires_grad
    ]


def mean_cosine(gradients: Tensor) -> float:
    """The mean cosine over all pairs of rows of gradients (cases, parameters); nan for a row of
    zeros.

    The sum of all entries of the matrix of cosines is that of the pairs, twice, and of the
    diagonal.
    """
    cases = len(gradients)
    directions = gradients / gradients.norm(dim=1, keepdim=True)
    both = (directions @ directions.T).sum() - cases
    return float(both / (cases * (cases - 1)))


def gradient_cosine(network: nn.Module, store: CaseStore, loss: nn.Module, name: str) -> float:
    """The mean cosine of the encoder's gradients over the first cases of a store, without
    augmentation.

    `network` is in evaluation mode meanwhile, so that neither dropout nor the cases beside one
    another matter; `name` is the run's precision. Gradients that were there and the state of the
    random numbers are left as they were.
    """
    parameters = encoder_parameters(network)
    device = parameters[0].device
    was_training = network.training
    network.eval()
    rows = []
    # A block may draw in evaluation too (`noise`): what training draws next must not depend on it.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for index in range(min(CASES, len(store))):
            image, label = (part[None].to(device) for part in store.get(index))
            with torch.enable_grad(), precision.autocast(name, device):
                logits = network(image)
            found = torch.autograd.grad(loss(logits.float(), label.float()), parameters)
            rows.append(torch.cat([gradient.flatten().float() for gradient in found]))
    network.train(was_training)
    return mean_cosine(torch.stack(rows))


def write_gradients(folder: Path, rows: list[dict[str, Any]], config: Config) -> None:
    """Write gradients.csv, which the run's seal then covers; no row, no file."""
    if rows:
        who = run_columns(config)
        files.write_csv(folder / GRADIENTS_FILE, [who | row for row in rows], COLUMNS)
