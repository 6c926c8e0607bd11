"""Split files, read with nothing trusted: disjoint blocks, whole folds, groups that stay
together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvl.datasets.task import TaskError

NUM_FOLDS = 10
"Blocks of a split, unless `folds` in the dataset.json of your own data asks for fewer."
FEWEST_FOLDS = 4
"One block to test, two to validate on and one to train on."


def roles(fold: int, num_folds: int = NUM_FOLDS) -> tuple[int, int, int]:
    """Test block and the two validation blocks of a fold."""
    return fold, (fold + 1) % num_folds, (fold + 2) % num_folds


def read_split(path: Path) -> dict[str, Any]:
    """The split in `path`, with ten disjoint blocks and folds that follow from them.

    Raises:
        TaskError: unreadable, a block or fold missing, a case twice, or a training list that is not
            the other seven blocks.
    """
    try:
        split = json.loads(path.read_text())
        blocks, folds = split["blocks"], split["folds"]
        facts = [(row["test"], row["val"], row["train"]) for row in folds]
        num_folds = int(split.get("num_folds", NUM_FOLDS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(
            f"{path}: not a split file ({type(error).__name__}: {error}); {_remedy(path)}"
        ) from error
    _check_blocks(blocks, num_folds, path)
    check_groups(split.get("groups", []), blocks, path)
    if len(facts) != num_folds:
        raise TaskError(
            f"{path}: {len(facts)} folds, expected {num_folds} (fold {len(facts)} is missing);"
            f" {_remedy(path)}"
        )
    for fold, (test, val, train) in enumerate(facts):
        _check_fold(blocks, fold, (test, *val), train, path)
    return split


def _check_blocks(blocks: list[list[str]], num_folds: int, path: Path) -> None:
    if len(blocks) != num_folds or num_folds < FEWEST_FOLDS:
        raise TaskError(f"{path}: {len(blocks)} blocks, expected {num_folds}; {_remedy(path)}")
    home: dict[str, int] = {}
    for k, block in enumerate(blocks):
        for case in block:
            if case in home:
                raise TaskError(
                    f"{path}: case {case} is in block {home[case]} and again in block {k};"
                    f" {_remedy(path)}"
                )
            home[case] = k


def check_groups(groups: list[list[str]], blocks: list[list[str]], path: Path) -> None:
    """Nothing where each group lies in one block.

    Raises:
        TaskError: names the first group that does not.
    """
    home = {case: k for k, block in enumerate(blocks) for case in block}
    for group in groups:
        if len({home.get(case) for case in group}) > 1:
            raise TaskError(
                f"{path}: near duplicates {group[0]} and {group[-1]} lie in different blocks (or"
                f" scans of one person); {_remedy(path)}"
            )


def _check_fold(
    blocks: list[list[str]], fold: int, held_out: tuple[int, ...], train: list[str], path: Path
) -> None:
    wanted_out = roles(fold, len(blocks))
    if held_out != wanted_out:
        raise TaskError(
            f"{path}: fold {fold} holds out blocks {held_out}, expected {wanted_out};"
            f" {_remedy(path)}"
        )
    known = {case: k for k, block in enumerate(blocks) for case in block}
    for case in train:
        if train.count(case) > 1:
            raise TaskError(
                f"{path}: case {case} is twice in the training list of fold {fold}; {_remedy(path)}"
            )
        if known.get(case) in held_out:
            raise TaskError(
                f"{path}: case {case} is both trained on and held out in fold {fold};"
                f" {_remedy(path)}"
            )
    wanted = {case for case, k in known.items() if k not in held_out}
    if odd := sorted(wanted.symmetric_difference(train)):
        raise TaskError(
            f"{path}: case {odd[0]} and the training list of fold {fold} do not belong together;"
            f" {_remedy(path)}"
        )


def check_cases(split: dict[str, Any], case_ids: list[str], path: Path) -> None:
    """Nothing when the split and the disk hold the same cases.

    Raises:
        TaskError: names the first case that only one of them has.
    """
    known = {case for block in split["blocks"] for case in block}
    if extra := sorted(set(case_ids) - known):
        raise TaskError(
            f"{path}: case {extra[0]} is on disk but in no block ({len(extra)} such); "
            "remove it from the data folder, or, for your own data, delete this file to deal anew"
        )
    if absent := sorted(known - set(case_ids)):
        raise TaskError(
            f"{path}: case {absent[0]} is in the split but not on disk ({len(absent)} such); "
            "fetch the task again, or, for your own data, delete this file to deal anew"
        )


def _remedy(path: Path) -> str:
    return (
        f"restore {path.name} with `git checkout data/splits`, or delete it if it was written on"
        " this machine"
    )
