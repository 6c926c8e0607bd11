"""Predictions on the scan's own grid, in millimetres: one row per case and label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, run_columns
from mvl.core.command_lines import require_finished
from mvl.core.config import Config
from mvl.core.means import MetricError
from mvl.datasets.case_store import CaseStore, open_test_cases
from mvl.datasets.task import Task
from mvl.training.metrics import case_metrics, class_masks, dice, label_masks
from mvl.training.objective import predict_probabilities
from mvl.training.trained import Predictor, load_run


def label_names(config: Config, task: Task) -> dict[str, int | None]:
    """What the rows of a case are called, and the label value of each (None: any above 0)."""
    if config.data.labels == "foreground":
        return {"foreground": None}
    return {task.labels[value]: value for value in sorted(task.labels)}


def evaluate_store(predictor: Predictor, store: CaseStore) -> list[dict[str, Any]]:
    """Predict every case of the store and score it on its own grid: rows in case and label order,
    keys `CASE_COLUMNS`."""
    rows: list[dict[str, Any]] = []
    config = predictor.config
    for index, probabilities in enumerate(predictions(predictor, store)):
        who = run_columns(config) | {"case": store.case_ids[index]}
        rows += [who | row for row in evaluate_case(probabilities, store, index, config)]
    return [{column: row[column] for column in CASE_COLUMNS} for row in rows]


def predictions(predictor: Predictor, store: CaseStore) -> Iterator[Tensor]:
    """Class probabilities (K, *S) of each case of the store in turn, on the CPU, predicted as many
    at once as the predictor takes."""
    step = predictor.cases_at_once()
    for start in range(0, len(store.case_ids), step):
        images = torch.stack(
            [store.get(index)[0] for index in range(start, min(start + step, len(store.case_ids)))]
        )
        with torch.inference_mode():
            found = predict_probabilities(predictor, images).cpu().float()
        yield from found


def native_masks(
    predictor: Predictor, image: Tensor, store: CaseStore, index: int
) -> list[np.ndarray]:
    """Return the network's masks of one case on the scan's own grid, one per foreground class."""
    with torch.inference_mode():
        resized = predict_probabilities(predictor, image)[0].cpu()
    return class_masks(np.asarray(store.to_native(index, resized)))


def evaluate_case(
    resized: Tensor, store: CaseStore, index: int, config: Config
) -> list[dict[str, Any]]:
    """One row of metrics per label of case `index`, whose class probabilities on the network's grid
    are `resized` (K, *S).

    Metrics are on the native grid, plus the paper's Dice on the resized grid.
    Differs: the released code pools its resized-grid Dice over the batch; this is per case.
    """
    task = store.task
    names = label_names(config, task)
    resized_label = store.get(index)[1]
    native = store.native(index)
    predictions = class_masks(np.asarray(store.to_native(index, resized)))
    labels = label_masks(np.asarray(native.label), names)
    small_predictions = class_masks(resized.numpy())
    small_labels = label_masks(resized_label[0].numpy(), names)
    if len(predictions) != len(names):
        raise MetricError(
            f"{store.case_ids[index]}: the model predicts {len(predictions)} classes, {task.name}"
            f" has {list(names)}"
        )
    return [
        {
            "label": name,
            **case_metrics(predictions[k], labels[k], native.spacing_mm, task.nsd_tolerance_mm),
            "dice_resized": dice(small_predictions[k], small_labels[k]),
        }
        for k, name in enumerate(names)
    ]


def evaluate_run(run_dir: Path, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """Rebuild a finished run's system from its weights, score its test cases again and write
    `cases.csv` (and its hash in `status.json`).

    Raises:
        RunError: the run is not done, or a file does not have its recorded hash.
    """
    run_dir = Path(run_dir)
    require_finished(run_dir)
    config = run_folder.read_config(run_dir)
    torch.set_num_threads(config.train.num_threads)
    store = open_test_cases(config, data_dir)
    rows = evaluate_store(Predictor(load_run(run_dir), config), store)
    run_folder.write_sealed(run_dir, "cases.csv", files.csv_text(rows, CASE_COLUMNS))
    return rows
