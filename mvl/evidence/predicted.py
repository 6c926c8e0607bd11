"""Masks that the recorded weights predict, on the scan's own grid."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core import run_folder
from mvl.core.config import ROOT
from mvl.core.files import sha256_file
from mvl.datasets.task import TaskError


def relative(error: Exception) -> str:
    """An error's text without the place of this clone."""
    return str(error).replace(f"{ROOT}/", "")


def has_weights(folder: Path, sha256: str) -> bool:
    """True when the folder holds the weights that the record names."""
    path = folder / "weights.safetensors"
    return path.is_file() and sha256_file(path) == sha256


def first_with_weights(homes: Iterable[Path | None], runs: pd.DataFrame) -> Path | None:
    """The first of these results folders that holds the recorded weights of every one of the runs;
    None where none does."""
    for home in filter(None, homes):
        if all(has_weights(home / row.run, row.weights_sha256) for row in runs.itertuples()):
            return home
    return None


def read_volume(
    task: str, case: str, data_dir: Path | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan (first channel), foreground and affine of a case on its own grid; of a picture its
    array, and the identity.

    Raises:
        TaskError: the task's data or this case are absent.
    """
    import nibabel

    from mvl.datasets.task_data import open_task

    data = open_task(task, data_dir)
    files = {c.case_id: c for c in data.cases}
    if case not in files:
        raise TaskError(f"{task}: case {case} is not on disk; run `{data.task_command('verify')}`")
    if data.task.dims == 2:
        from mvl.datasets.cases_2d import read_plane

        image, mask, _ = read_plane(data.task, files[case])
        return image[0], mask > 0, np.eye(4)
    file = nibabel.nifti1.load(files[case].label)
    scan = np.asarray(nibabel.nifti1.load(files[case].image).dataobj, dtype=np.float32)
    return (
        scan[..., 0] if scan.ndim == 4 else scan,
        np.asarray(file.dataobj) > 0,
        np.asarray(file.affine, dtype=np.float64),
    )


def best_slice(label: np.ndarray) -> int:
    """Index of the axial slice that holds most of the label; 0 for a picture."""
    return int(label.sum(axis=(0, 1)).argmax()) if label.ndim == 3 else 0


def packed(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> bytes:
    """One npz of arrays and facts; the same content gives the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def view(array: np.ndarray, z: int, task: str, data_dir: Path | None = None) -> np.ndarray:
    """What a figure shows of an array on the case's own grid, first axis to the right and second
    upwards: slice `z`, or the whole picture."""
    from mvl.datasets.registry import find_task

    if array.ndim == 3:
        return array[..., z]
    return array if find_task(task, data_dir).layout == "slices" else array[::-1].T


def predicted_masks(
    folder: Path, cases: Sequence[str], data_dir: Path | None = None
) -> dict[str, np.ndarray]:
    """Foreground mask on the scan's own grid, by case."""
    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.task_data import open_task
    from mvl.training.evaluate import native_masks
    from mvl.training.trained import Predictor, load_run

    config = run_folder.read_config(folder)
    store = CaseStore(open_task(config.task, data_dir), tuple(cases), config.data)
    predictor = Predictor(load_run(folder), config)
    return {
        case: np.any(native_masks(predictor, store.get(index)[0][None], store, index), axis=0)
        for index, case in enumerate(cases)
    }
