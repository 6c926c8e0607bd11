"""Activation maps of one slice: drawn from weights, kept as small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core import run_folder
from mvl.core.columns import KEYS_IN_STUDY
from mvl.core.config import Config
from mvl.datasets.task import TaskError
from mvl.evidence import example_cases, example_masks, predicted
from mvl.evidence.chapter import Chapter
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, RANDOM, VIT

ROWS = ((VIT, HYBRID, RANDOM), (CNN, LLM4SEG, LLM4SEG_RANDOM))
"Arms of the seven-column figure."


@dataclass(frozen=True)
class Maps:
    """The seven-column figure's pictures: one slice of one test case, the same for every arm."""

    task: str
    "Task name."
    case: str
    "Case id."
    fold: int
    "Fold whose test case it is."
    ranked_by: str
    "System by whose Dice it is the median case."
    slice: int
    "Axial slice on the network's grid; 0 for a picture."
    arms: dict[str, dict[str, np.ndarray]]
    "Map by column, by system."
    dice: dict[str, float]
    "Dice of the whole case on its own grid, by system."
    numbers: dict[str, dict[str, dict[str, float]]]
    "Measure by stage, by system, of the whole case."
    scan: np.ndarray | None = None
    "What the network saw, z-scored; None where the data are absent."
    label: np.ndarray | None = None
    "Foreground on the same slice; None where the data are absent."


def draw_maps(there: Sequence[Config], results_dir: Path, data_dir: Path | None) -> bytes:
    """The seven columns of the median test case by the first arm's Dice, at the lowest fold that
    most arms have, as one npz."""
    from mvl.evidence.activations import maps

    arms = [
        c
        for c in there
        if c.system in next((row for row in ROWS if {c.system for c in there} & set(row)), ())
    ]
    chosen = example_cases.common_runs(run_table(arms, results_dir))
    cases = pd.concat(
        [pd.read_csv(results_dir / run / "cases.csv", dtype={"case": str}) for run in chosen["run"]]
    )
    picks = example_cases.pick_cases(
        cases[cases["label"].isin(("foreground", cases["label"].iloc[0]))], chosen
    )
    case = next((name for name, rank in picks if rank == "median"), picks[0][0])
    first = chosen.iloc[0]
    facts: dict[str, Any] = {
        "task": str(first["task"]),
        "case": case,
        "fold": int(first["fold"]),
        "ranked_by": str(first["system"]),
        "weights": dict(zip(chosen["run"], chosen["weights_sha256"])),
        "systems": list(chosen["system"]),
        "dice": example_masks.case_dice(cases, chosen, case),
        "numbers": {},
        "ranges": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for row in chosen.itertuples():
        slices, facts["numbers"][row.system], facts["slice"] = maps(
            results_dir / str(row.run), data_dir, case
        )
        for column, values in slices.items():
            arrays[f"{row.system}/{column}"], facts["ranges"][f"{row.system}/{column}"] = squeezed(
                values
            )
    return predicted.packed(arrays, facts)


def run_table(configs: Sequence[Config], results_dir: Path) -> pd.DataFrame:
    """The columns of runs.csv that say which runs these are."""
    rows = []
    for config in configs:
        status = run_folder.read_status(run_folder.run_dir(results_dir, config))
        row = {key: getattr(config, key) for key in KEYS_IN_STUDY}
        row["run"] = f"{config.study}/runs/{run_folder.run_name(config)}"
        row["weights_sha256"] = status["files"]["weights.safetensors"]
        rows.append(row)
    return pd.DataFrame(rows)


def squeezed(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """A picture in 256 steps, and the values of the first and the last."""
    low, high = float(f"{values.min():.6g}"), float(f"{values.max():.6g}")
    steps = np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255
    return np.round(steps).astype(np.uint8), [low, high]


def seen(
    chapter: Chapter, facts: dict[str, Any]
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Scan and label of the maps' slice on the network's grid; or why they are not there."""
    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.task_data import open_task

    config = run_folder.read_config(chapter.results_dir / next(iter(facts["weights"])))
    try:
        data = open_task(facts["task"])
        image, label = CaseStore(data, (facts["case"],), config.data).get(0)
    except TaskError as error:
        return None, None, [f"the scan under the activation maps: {predicted.relative(error)}"]

    def shown(array: np.ndarray) -> np.ndarray:
        return predicted.view(array, facts["slice"], facts["task"])

    return shown(image[0].numpy()), shown(label[0].numpy() > 0), []
