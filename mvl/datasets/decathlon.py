"""Cases in the Medical Segmentation Decathlon's layout, read from `dataset.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from mvl.datasets.task import Case, TaskError, case_name, is_stray


def read_cases(folder: Path) -> list[Case]:
    """Cases that `folder/dataset.json` lists, sorted by case id; the files themselves are not
    looked at."""
    path = folder / "dataset.json"
    try:
        rows = [(row["image"], row["label"]) for row in json.loads(path.read_text())["training"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"{path}: not a Decathlon dataset.json ({type(error).__name__}: {error}); fetch the"
            " task again"
        ) from error
    rows = [(image, label) for image, label in rows if not is_stray(Path(image).name)]
    cases = [
        Case(case_name(image), _inside(folder, image), _inside(folder, label))
        for image, label in rows
    ]
    ids = [case.case_id for case in cases]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise TaskError(f"{path}: case {twice[0]} is listed twice; fetch the task again")
    return sorted(cases, key=lambda case: case.case_id)


def _inside(folder: Path, relative: str) -> Path:
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TaskError(
            f"{folder / 'dataset.json'}: {relative!r} leaves the folder; do not use this copy,"
            " fetch the task again"
        )
    return Path(os.path.normpath(path))
