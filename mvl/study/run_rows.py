"""One run as a row of `runs.csv`, and the checks that rows of one study belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.core import run_folder
from mvl.core.block_config import LAYER_KINDS
from mvl.core.columns import DECATHLON, METRICS, RUN_KEYS, run_columns
from mvl.core.command_lines import evaluation_command
from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.core.means import mean
from mvl.datasets.splits import split_name

RUN_COLUMNS = [
    *RUN_KEYS,
    "state",
    "n_test",
    "dice",
    "dice_sd",
    "jaccard",
    "sensitivity",
    "specificity",
    "nsd",
    "hd95_mm",
    "dice_resized",
    "missed",
    "best_epoch",
    "trainable",
    "frozen",
    "total",
    "runtime_s",
    "cpu_s",
    "runtime_per_epoch_s",
    "peak_memory_mb",
    "run",
    "weights_sha256",
    "cases_sha256",
    "history_sha256",
    *DECATHLON,
]
"""Columns of runs.csv, in order; the last two, as in cases.csv, only where a run of the study has
them."""


class TableError(MvlError, RuntimeError):
    """A table or a record is absent, damaged or not complete; the message names the file and the
    remedy."""


class Fingerprints:
    """What the runs of a study say of their frozen tensors, so that an arm that is not what its
    name says is refused."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[tuple[str, str], Path]] = {}
        self.arms: dict[tuple[Any, ...], tuple[str, Path]] = {}

    def check(self, config: Config, status: dict[str, Any], folder: Path) -> None:
        """Take in one done run.

        Raises:
            TableError: its frozen tensors moved in training, are those of an arm with other
                weights, or are not those of its own arm.
        """
        before, after = status.get("frozen_sha256_before"), status.get("frozen_sha256_after")
        if not before or not status.get("parameters", {}).get("frozen"):
            return
        block, again = config.model.token_block, "delete the run's folder and train it again"
        if after != before:
            raise TableError(
                f"{folder / 'status.json'}: its frozen tensors changed in training; {again}"
            )
        layer = (
            (block.kind, block.source)
            if block.kind in LAYER_KINDS and not block.trainable
            else ("no frozen layer", "none")
        )
        weights, other = self.weights.setdefault(before, (layer, folder))
        if weights != layer:
            raise TableError(
                f"{folder / 'status.json'}: an arm with {layer[0]} weights of {layer[1]} has the"
                f" frozen tensors of {other}, whose weights are {weights[0]} of {weights[1]};"
                " delete whichever is wrong and train it again"
            )
        known, other = self.arms.setdefault(
            (config.task, config.system, config.seed), (before, folder)
        )
        if known != before:
            raise TableError(
                f"{folder / 'status.json'}: its frozen tensors are not those of {other}, which is"
                f" the same system and seed; {again}"
            )


def check_split(
    folder: Path, config: Config, seen: dict[tuple[Any, ...], tuple[str, Path]]
) -> None:
    """Nothing when the run had the split of the runs `seen` before on its task, fraction and fold;
    notes it there.

    Raises:
        TableError: it had another, so that the two cannot be compared.
    """
    digest = run_folder.read_status(folder).get("split_sha256")
    if not digest:
        return
    first, other = seen.setdefault(
        (config.task, config.fraction, config.fold, config.data.split), (digest, folder)
    )
    if first != digest:
        raise TableError(
            f"{folder} and {other} were made with different splits (sha256 {digest[:12]}...,"
            f" {first[:12]}...) and cannot be compared; restore"
            f" {split_name(config.task, config.data.split)}, delete the run that has another and"
            " train it again"
        )


def run_row(
    folder: Path, config: Config, state: str, cases: list[dict[str, str]]
) -> dict[str, Any]:
    """One row of `runs.csv`; numbers only when the run is done, always the mean over every case and
    label."""
    row: dict[str, Any] = {
        **dict.fromkeys(RUN_COLUMNS, ""),
        **run_columns(config),
        "state": state,
        "run": f"{config.study}/runs/{run_folder.run_name(config)}",
    }
    if state != "done":
        return row
    if not cases:
        raise TableError(
            f"{folder / 'cases.csv'}: holds no case; score the run again with"
            f" `{evaluation_command(folder)}`"
        )
    status = run_folder.read_status(folder)
    row |= case_means(cases, folder / "cases.csv")
    row |= {
        key: status.get(key, "")
        for key in ("best_epoch", "runtime_s", "cpu_s", "runtime_per_epoch_s", "peak_memory_mb")
    }
    row |= {
        key: status.get("parameters", {}).get(key, "") for key in ("trainable", "frozen", "total")
    }
    return row | {
        f"{name}_sha256": status["files"].get(file, "")
        for name, file in (
            ("weights", "weights.safetensors"),
            ("cases", "cases.csv"),
            ("history", "history.csv"),
        )
    }


def case_means(cases: list[dict[str, str]], path: Path) -> dict[str, Any]:
    """n, mean of each metric, sd of Dice (n - 1; empty for one row) and number of missed masks of
    one run's rows."""
    numbers = {metric: [float(row[metric]) for row in cases] for metric in METRICS}
    for metric, values in numbers.items():
        if not all(map(math.isfinite, values)):
            raise TableError(
                f"{path}: {metric} holds a value that is not finite; score the run again with"
                f" `{evaluation_command(path.parent)}`"
            )
    numbers |= decathlon_numbers(cases, path)
    out: dict[str, Any] = {
        "n_test": len({row["case"] for row in cases}),
        "missed": sum(row["status"] == "missed" for row in cases),
    }
    return (
        out
        | {metric: mean(values) for metric, values in numbers.items()}
        | {"dice_sd": deviation(numbers["dice"])}
    )


def decathlon_numbers(cases: list[dict[str, str]], path: Path) -> dict[str, list[float]]:
    """The Decathlon's metrics of one run's rows; nothing for a run that was scored before they
    were.

    Raises:
        TableError: a value is empty or not finite.
    """
    held = [metric for metric in DECATHLON if metric in cases[0]]
    numbers = {metric: [float(row[metric] or "nan") for row in cases] for metric in held}
    if not all(map(math.isfinite, [value for values in numbers.values() for value in values])):
        raise TableError(
            f"{path}: a metric is empty or not finite; score the run again with"
            f" `{evaluation_command(path.parent)}`"
        )
    return numbers


def deviation(values: Sequence[float | int]) -> float | str:
    """Standard deviation with n - 1, or "" for a single value."""
    if len(values) < 2:
        return ""
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
