"""Ten-fold splits, committed as `data/splits/<task>.json`: who is trained on, validated on and
tested, for good.

Fold k tests block k, validates on the next two blocks (wrapping) and trains on the other seven. A
subset of the training cases is a prefix of the fold's list, so that the 10 % subset lies in the 30
% subset, which lies in the whole.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.core.config import ROOT, Config
from mvl.core.files import sha256_bytes, waiting_lock, write_json
from mvl.core.run_folder import default_results_dir
from mvl.core.seeds import draw_seed
from mvl.datasets import split_groups
from mvl.datasets.split_files import (
    FEWEST_FOLDS,
    NUM_FOLDS,
    check_cases,
    check_groups,
    read_split,
    roles,
)
from mvl.datasets.task import TaskError, data_root
from mvl.datasets.task_data import TaskData

RULE = (
    "cases ordered by sha256 of (seed, 'blocks', task, case) and dealt to ten blocks in turn; "
    "a fold's training list ordered by sha256 of (seed, 'train', task, fold, case)"
)


@dataclass(frozen=True)
class Split:
    """Case ids of one run, and the sha256 of the three lists."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    sha256: str


def make_split(
    task_name: str,
    case_ids: list[str],
    seed: int = 0,
    groups: list[list[str]] | None = None,
    rule: str = split_groups.RULE,
    num_folds: int = NUM_FOLDS,
) -> dict[str, Any]:
    """The whole split of a task, a function of the case ids, the seed and the groups that must stay
    together, which `rule` describes.

    Raises:
        TaskError: fewer cases than blocks, a case given twice, or groups so few or so large that a
            block would be empty or hold several times its share.
    """
    if len(case_ids) < num_folds or len(set(case_ids)) < len(case_ids):
        raise TaskError(
            f"{task_name}: {len(case_ids)} cases ({len(set(case_ids))} distinct) cannot be dealt to"
            f" {num_folds} blocks; add cases until there are {num_folds}, each under one name"
        )
    head = {"task": task_name, "seed": seed}
    if num_folds != NUM_FOLDS:
        head["num_folds"] = num_folds
    if groups is not None:
        made = _make_grouped(task_name, case_ids, groups, seed, num_folds)
        return {**head, **made, "rule": rule}
    order = sorted(case_ids, key=lambda case: draw_seed(seed, "blocks", task_name, case))
    blocks = [sorted(order[k::num_folds]) for k in range(num_folds)]
    folds = [_fold(task_name, blocks, fold, seed) for fold in range(num_folds)]
    return {**head, "rule": RULE, "blocks": blocks, "folds": folds}


def _make_grouped(
    task_name: str, case_ids: list[str], groups: list[list[str]], seed: int, num_folds: int
) -> dict[str, Any]:
    units = split_groups.units(case_ids, groups)
    blocks = split_groups.deal(task_name, units, seed, num_folds)
    if uneven(blocks):
        possible = [
            number
            for number in range(num_folds - 1, FEWEST_FOLDS - 1, -1)
            if not uneven(split_groups.deal(task_name, units, seed, number))
        ]
        raise TaskError(_uneven_groups(task_name, blocks, units, possible))
    folds = []
    for fold in range(num_folds):
        test, *val = roles(fold, num_folds)
        members = [
            case for k, block in enumerate(blocks) if k not in (test, *val) for case in block
        ]
        folds.append(
            {
                "test": test,
                "val": val,
                "train": split_groups.training_order(task_name, members, units, fold, seed),
            }
        )
    return {"groups": groups, "blocks": blocks, "folds": folds}


def uneven(blocks: list[list[str]]) -> bool:
    """Return whether a block is empty, or holds more than three times its share and one case.

    A fold that tests such a block trains on too little, or scores nothing and would still be done.
    """
    sizes = [len(block) for block in blocks]
    return min(sizes) == 0 or max(sizes) > 3 * sum(sizes) / len(sizes) + 1


def _uneven_groups(
    task_name: str, blocks: list[list[str]], units: list[tuple[str, ...]], possible: list[int]
) -> str:
    largest, sizes = max(units, key=len), ", ".join(str(len(block)) for block in blocks)
    told = (
        f"{task_name}: {sum(map(len, units))} cases in {len(units)} groups cannot be dealt evenly"
        f" to {len(blocks)} blocks: they would hold {sizes} cases,"
        f" the largest group ({largest[0]} ... {largest[-1]}) has {len(largest)}; "
    )
    if possible:
        return told + (
            f'{possible[0]} folds are possible: write "folds": {possible[0]} into the dataset.json'
            " of your own data, or add cases of other patients"
        )
    return told + (
        f"not even {FEWEST_FOLDS} folds are possible: add cases of other patients, or state in"
        " groups.csv (columns case, patient) which cases belong together"
    )


def _fold(task_name: str, blocks: list[list[str]], fold: int, seed: int) -> dict[str, Any]:
    test, *val = roles(fold, len(blocks))
    cases = [case for k, block in enumerate(blocks) if k not in (test, *val) for case in block]
    return {
        "test": test,
        "val": val,
        "train": sorted(cases, key=lambda case: draw_seed(seed, "train", task_name, fold, case)),
    }


def load_split(data: TaskData, fold: int, fraction: float, kind: str = "folds") -> Split:
    """Cases of fold `fold` with a `fraction` of its training cases: round(fraction * n), at least
    1; `kind` is the config's `data.split`.

    Raises:
        TaskError: missing fold, overlap, duplicate, or a case that is on disk but not in the split,
            or the reverse; names file and case.
    """
    path = split_file(data.whole, kind)
    split = select(read_split(path), fold, fraction, path)
    return split if data.task.layout != "slices" else _slices(data, split)


def _slices(data: TaskData, volumes: Split) -> Split:
    """The slices of each list's volumes: they share their volumes' fold, and a subset is one of
    volumes."""
    held: dict[str, list[str]] = {}
    for case in data.cases:
        held.setdefault(case.case_id.rpartition("_z")[0], []).append(case.case_id)
    train, val, test = (
        tuple(case for volume in part for case in held[volume])
        for part in (volumes.train, volumes.val, volumes.test)
    )
    digest = sha256_bytes(json.dumps([data.task.name, train, val, test]).encode())
    return Split(train, val, test, digest)


def run_split(config: Config, data: TaskData) -> Split:
    """Cases of the run that `config` describes, from the split file that its `data.split` names.

    Raises:
        TaskError: as `load_split`.
    """
    return load_split(data, config.fold, config.fraction, config.data.split)


def split_file(data: TaskData, kind: str = "folds") -> Path:
    """The task's split file, checked against the cases on disk; written by the seeded rule where
    there is none yet."""
    task, case_ids = data.task, [case.case_id for case in data.cases]
    path = split_path(data, kind)
    if not path.is_file():
        path = _deal(data, path, kind)
    split = read_split(path)
    check_cases(split, case_ids, path)
    check_groups(split_groups.known_groups(task, case_ids), split["blocks"], path)
    if kind == "persons":
        # A file without its groups would pass every other check and leak a person into the test.
        check_groups(split_groups.person_groups(task, case_ids), split["blocks"], path)
    return path


def _deal(data: TaskData, path: Path, kind: str) -> Path:
    """Write the split that does not exist yet, and return where it lies."""
    task, folder, case_ids = data.task, data.folder, [case.case_id for case in data.cases]
    manner = _manner(data, kind)
    stems = split_groups.shared_stems(case_ids)
    if task.own and stems and not split_groups.patients(folder, case_ids):
        # Scans of one patient on two sides of a split flatter every score.
        print(
            f"{folder}: {len(stems)} beginnings of names are shared by several cases (e.g."
            f" {stems[0]}); if these are of one patient, state it (see `patients` in the book, Your"
            f" own data) and delete {path}",
            file=sys.stderr,
        )
    try:
        return write_split_file(task.name, case_ids, path, **manner)
    except OSError:
        # Data are often kept where nobody may write: the split then lies with the runs.
        aside = path_beside_runs(path)
        if path == aside:
            raise
        return write_split_file(task.name, case_ids, aside, **manner)


def _manner(data: TaskData, kind: str) -> dict[str, Any]:
    """The groups, the rule and the number of folds by which a task is dealt."""
    task, folder, case_ids = data.task, data.folder, [case.case_id for case in data.cases]
    num_folds = (
        split_groups.stated_folds(folder, NUM_FOLDS, FEWEST_FOLDS) if task.own else NUM_FOLDS
    )
    groups: list[list[str]] | None
    if kind == "persons":
        groups, rule = split_groups.person_groups(task, case_ids), split_groups.PERSON_RULE
    else:
        groups = split_groups.find_groups(task, data.cases, folder)
        rule = split_groups.rule_of(task)
        if not groups and task.layout not in ("busi", "pairs"):
            groups = None
    return {"groups": groups, "rule": rule, "num_folds": num_folds}


def check_deal(data: TaskData) -> None:
    """Nothing where the cases can be dealt as the data's folder says, or lie so in their split file
    already; writes nothing.

    Raises:
        TaskError: names what hinders, and the remedy.
    """
    case_ids, path = [case.case_id for case in data.cases], split_path(data)
    if not path.is_file():
        make_split(data.task.name, case_ids, **_manner(data, "folds"))
        return
    split = read_split(path)
    check_cases(split, case_ids, path)
    check_groups(split_groups.patient_groups(data.folder, case_ids), split["blocks"], path)


def path_beside_runs(path: Path) -> Path:
    """Return where the split of a data folder that cannot be written to is kept."""
    digest = sha256_bytes(os.path.abspath(path).encode())[:8]
    return default_results_dir() / "splits" / f"{path.stem}-{digest}.json"


def split_name(task_name: str, kind: str = "folds") -> str:
    """Return the name of a task's committed split file below the clone, for a config's
    `data.split`."""
    ending = "_persons" if kind == "persons" else ""
    return f"data/splits/{task_name}{ending}.json"


def split_path(data: TaskData, kind: str = "folds") -> Path:
    """`data/splits/<task>.json` of this clone; `splits/` beside the data for your own, or where the
    former is absent and cannot be written; `splits/` beside the runs, where the data cannot be
    written to either.

    For `kind` persons the name ends in `_persons.json`; every other kind starts from the one file
    of the task.
    """
    ours = ROOT / split_name(data.task.name, kind)
    writable = os.access(ours.parent if ours.parent.is_dir() else ROOT, os.W_OK)
    if not data.task.own and (ours.is_file() or writable):
        return ours
    beside = data_root(data.data_dir) / "splits" / ours.name
    aside = path_beside_runs(beside)
    return aside if aside.is_file() and not beside.is_file() else beside


def write_split_file(
    task_name: str,
    case_ids: list[str],
    path: Path,
    seed: int = 0,
    groups: list[list[str]] | None = None,
    rule: str = split_groups.RULE,
    num_folds: int = NUM_FOLDS,
) -> Path:
    """Write the split once; a file that another process wrote meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.parent):
        if not path.is_file():
            write_json(path, make_split(task_name, case_ids, seed, groups, rule, num_folds))
    return path


def select(split: dict[str, Any], fold: int, fraction: float, path: Path) -> Split:
    """The three lists of one fold and fraction out of a checked split."""
    if fold not in range(len(split["folds"])):
        raise TaskError(f"{path}: no fold {fold}; folds are 0-{len(split['folds']) - 1}")
    if not 0 < fraction <= 1:
        raise TaskError(f"{path}: fraction {fraction} is not in (0, 1]")
    row, blocks = split["folds"][fold], split["blocks"]
    train = tuple(row["train"][: max(1, round(fraction * len(row["train"])))])
    val = tuple(case for k in row["val"] for case in blocks[k])
    test = tuple(blocks[row["test"]])
    for side, listed in (("trains on", train), ("validates on", val), ("tests", test)):
        if not listed:
            sizes = ", ".join(str(len(block)) for block in blocks)
            raise TaskError(
                f"{path}: fold {fold} {side} no case (its blocks hold {sizes}); take another fold,"
                " or, for your own data, delete this file to deal anew"
            )
    digest = sha256_bytes(json.dumps([split["task"], train, val, test]).encode())
    return Split(train, val, test, digest)
