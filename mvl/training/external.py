"""External tests: a finished run's network on every case of another task, whose cases it has never
seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.command_lines import require_finished
from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.datasets.case_store import CaseStore
from mvl.datasets.masks import read_case
from mvl.datasets.preflight import files_of, known_voxels
from mvl.datasets.registry import settle
from mvl.datasets.task import Task
from mvl.datasets.task_data import TaskData, open_task
from mvl.training.evaluate import evaluate_run, evaluate_store
from mvl.training.trained import Predictor, load_run


class ExternalError(MvlError, ValueError):
    """A task cannot be an external test of a run; the message says why."""


def evaluate_command(run_dir: Path, on: str | None, data_dir: Path | None) -> int:
    """Score a finished run on its test cases, or on every case of the task `on`; print the file and
    return 0.

    Raises:
        ExternalError: as `evaluate_on`.
        RunError: the run is not done, or a file does not have its recorded hash.
    """
    if on is None:
        path, rows = run_dir / "cases.csv", evaluate_run(run_dir, data_dir)
    else:
        path, rows = evaluate_on(run_dir, on, data_dir)
    print(f"{path}: {len(rows)} rows")
    return 0


def evaluate_on(
    run_dir: Path, name: str, data_dir: Path | None = None
) -> tuple[Path, list[dict[str, Any]]]:
    """Score a finished run's network on every case of another task, given by name or as the path of
    its folder, and seal `cases_on_<task>.csv` in the run's folder.

    The rows have the columns of cases.csv; their `task` is the external one.

    Raises:
        ExternalError: the task has other channels, dimensions or labels, or the network's own
            cases.
        RunError: the run is not done, or a file does not have its recorded hash.
    """
    run_dir = Path(run_dir)
    require_finished(run_dir)
    config = run_folder.read_config(run_dir)
    torch.set_num_threads(config.train.num_threads)
    own, other = open_task(config.task, data_dir), open_task(*settle(name, data_dir))
    check_fits(config, own.task, other.task)
    check_unseen(own, other)

    store = CaseStore(other, tuple(case.case_id for case in other.cases), config.data)
    asked = dataclasses.replace(config, task=other.task.name)
    rows = evaluate_store(Predictor(load_run(run_dir), asked), store)

    path = run_dir / run_folder.external_file(other.task.name)
    run_folder.write_sealed(run_dir, path.name, files.csv_text(rows, CASE_COLUMNS))
    return path, rows


def check_fits(config: Config, own: Task, other: Task) -> None:
    """Return where a network of the task `own` can be asked about cases of `other`.

    Raises:
        ExternalError: other channels or dimensions, or, where labels are told apart, other labels.
    """
    for what, ours, theirs in (
        ("channels", len(own.channels), len(other.channels)),
        ("dimensions", own.dims, other.dims),
    ):
        if ours != theirs:
            raise ExternalError(
                f"{other.name}: its cases have {theirs} {what}, the run was trained on {own.name}"
                f" with {ours}; choose a task with {ours}"
            )
    if config.data.labels == "all" and own.labels != other.labels:
        raise ExternalError(
            f"{other.name}: its labels are {other.labels}, the run tells {own.labels} apart; "
            "choose a task with the same labels"
        )


def check_unseen(own: TaskData, other: TaskData) -> None:
    """Return where no case of `other` is a case of `own`, be it under another name or in a reduced
    copy.

    Pictures are compared by their pixels, scans by their voxels as the committed manifest has them,
    and scans without such a manifest by their files. All cases of `own` count, for other folds have
    trained on each.

    Raises:
        ExternalError: both are one data set, or a case of one is a case of the other.
    """
    homes = [task.copy_of or task.name for task in (own.whole.task, other.whole.task)]
    if homes[0] == homes[1]:
        raise ExternalError(
            f"{other.task.name}: the run was trained on cases of this data set ({own.task.name}); "
            "an external test needs cases that it has never seen"
        )
    seen = {digest: case for case, digest in image_digests(own.whole).items()}
    for case, digest in image_digests(other.whole).items():
        if digest in seen:
            raise ExternalError(
                f"{other.task.name}: its case {case} is case {seen[digest]} of {own.task.name}, on"
                " which the run was trained; take it out, or choose another task"
            )


def image_digests(data: TaskData) -> dict[str, str]:
    """Return case id -> sha256 of what its image holds."""
    task, cases = data.task, data.cases
    if task.dims == 2:
        channels, top = len(task.channels), max(task.labels)
        digests = {}
        for case in cases:
            image, _ = read_case(case, channels, top)
            digests[case.case_id] = files.sha256_bytes(repr(image.shape).encode() + image.tobytes())
        return digests
    hashes = {path: files.sha256_file(path) for case in cases for path in files_of(case)}
    return known_voxels(data, cases, hashes)
