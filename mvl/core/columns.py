"""The columns of every table that a run or a study writes."""

from __future__ import annotations

from typing import Any

from mvl.core.config import Config

DECATHLON = ("nsd_decathlon", "hd95_decathlon_mm")
"""As the Decathlon computes them (see surface.py); a record made before these columns has none,
which never counts as 0."""
RUN_KEYS = ["study", "task", "system", "fraction", "fold", "seed"]
"What names a run, in every table."
KEYS_IN_STUDY = RUN_KEYS[1:]
"What tells a run from the others of its study."
CASE_COLUMNS = [
    *RUN_KEYS,
    "case",
    "label",
    "status",
    "dice",
    "jaccard",
    "sensitivity",
    "specificity",
    "nsd",
    "hd95_mm",
    "dice_resized",
    "nsd_tolerance_mm",
    "voxels_label",
    "voxels_prediction",
    *DECATHLON,
]
"Columns of cases.csv, in order."
METRICS = ("dice", "jaccard", "sensitivity", "specificity", "nsd", "hd95_mm", "dice_resized")
"Columns of every record that are averaged over cases; every one is a finite number in every row."
HISTORY_COLUMNS = ["epoch", "lr", "train_loss", "val_loss", "val_dice"]


def run_columns(config: Config) -> dict[str, Any]:
    """The columns that name a run."""
    return {key: getattr(config, key) for key in RUN_KEYS}
