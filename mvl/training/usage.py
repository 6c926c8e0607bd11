"""How much a hybrid uses its block: test Dice with the block knocked out in several ways, no
retraining, and the sizes of what it adds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvl.core import files, run_folder
from mvl.core.columns import run_columns
from mvl.core.command_lines import require_finished
from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.core.means import mean
from mvl.datasets.case_store import CaseStore, open_test_cases
from mvl.models.control_blocks import TokenBlock
from mvl.models.interventions import INTERVENTIONS, SIZES, Intervened, intervened_block, replaced
from mvl.training.evaluate import label_names, native_masks
from mvl.training.metrics import dice, label_masks
from mvl.training.trained import Predictor, load_run
from mvl.training.usage_records import FILE

COLUMNS = [
    "study",
    "task",
    "system",
    "fraction",
    "fold",
    "seed",
    "intervention",
    "dice",
    "dice_difference",
    *SIZES,
]
"Columns of usage.csv, in order; a size that is not defined is empty."


class UsageError(MvlError, ValueError):
    """A run whose use of its block cannot be measured; the message says why."""


def has_block(config: Config) -> bool:
    """Whether a system has a block, whose use every run of it records."""
    return config.model.architecture.startswith(("medvisionllama", "llm4seg"))


def measure_usage(predictor: Predictor, store: CaseStore) -> list[dict[str, Any]]:
    """One row per intervention over the cases of the store, keys `COLUMNS`.

    dice is the mean over cases and labels on the scan's own grid, as in cases.csv; dice_difference
    is that minus the Dice as trained, so that below 0 the network is worse without what was taken.
    The sizes are those of x and of the replaced h, means over cases.
    """
    network, config = predictor.network, predictor.config
    block = network.block
    assert isinstance(block, TokenBlock)
    names = label_names(config, store.task)
    blocks = {name: intervened_block(block, name, config.seed) for name in INTERVENTIONS}
    scores: dict[str, list[float]] = {name: [] for name in INTERVENTIONS}
    for index in range(len(store.case_ids)):
        image = store.get(index)[0][None]
        truths = label_masks(np.asarray(store.native(index).label), names)
        for name, other in blocks.items():
            with replaced(network, other, no_mappers=name == "no_block"):
                found = native_masks(predictor, image, store, index)
            scores[name] += [dice(mask, truth) for mask, truth in zip(found, truths, strict=True)]
    as_trained = mean(scores["as_trained"])
    return [
        run_columns(config)
        | {
            "intervention": name,
            "dice": mean(scores[name]),
            "dice_difference": mean(scores[name]) - as_trained,
            **mean_sizes(blocks[name]),
        }
        for name in INTERVENTIONS
    ]


def mean_sizes(block: nn.Module) -> dict[str, Any]:
    """Means over cases of what a block noted; empty where a size is not defined."""
    noted = block.noted if isinstance(block, Intervened) else []
    out: dict[str, Any] = {}
    for size in SIZES:
        values = [row[size] for row in noted]
        defined = bool(values) and all(map(math.isfinite, values))
        out[size] = mean(values) if defined else ""
    return out


def write_usage(folder: Path, predictor: Predictor, store: CaseStore) -> list[dict[str, Any]]:
    """Measure the use of the block and write usage.csv, which the run's seal then covers; no block,
    no file."""
    if not has_block(predictor.config):
        return []
    rows = measure_usage(predictor, store)
    files.write_csv(folder / FILE, rows, COLUMNS)
    return rows


def usage_of_run(run_dir: Path, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """The use of the block in a finished run with weights; written into a run that has none yet.

    Raises:
        RunError: the run is not done, or a file does not have its recorded hash.
        UsageError: the run's network has no block.
    """
    run_dir = Path(run_dir)
    require_finished(run_dir)
    config = run_folder.read_config(run_dir)
    if not has_block(config):
        raise UsageError(
            f"{run_dir}: {config.system} has no block between an encoder and a decoder; "
            "choose a run of MedVisionLlama or LLM4Seg"
        )
    torch.set_num_threads(config.train.num_threads)
    store = open_test_cases(config, data_dir)
    predictor = Predictor(load_run(run_dir), config)
    rows = measure_usage(predictor, store)
    if FILE not in run_folder.read_status(run_dir)["files"]:
        run_folder.write_sealed(run_dir, FILE, files.csv_text(rows, COLUMNS))
    return rows


def usage_as_text(rows: list[dict[str, Any]]) -> str:
    """The rows as a table: Dice and its difference in points, then the sizes."""
    heads = ("|x|", "|h|", "variation", "cosine")
    lines = [f"{'intervention':<18}{'Dice':>8}{'points':>9}" + "".join(f"{h:>11}" for h in heads)]
    for row in rows:
        numbers = "".join(
            f"{row[size]:>11.4g}" if row[size] != "" else f"{'-':>11}" for size in SIZES
        )
        points = 100 * row["dice_difference"]
        lines.append(f"{row['intervention']:<18}{row['dice']:>8.4f}{points:>+9.2f}{numbers}")
    return "\n".join(lines)
