"""Which cases must stay together in a split, and the deal of whole groups to ten blocks, balanced
in size and kind."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mvl.core.seeds import draw_seed
from mvl.datasets.task import Case, Task, TaskError

RULE = (
    "groups of near duplicates (see mvl/datasets/duplicates.py) stay whole; larger groups first,"
    " then by sha256 of (seed, 'blocks', task, first case), each to the block with the smallest"
    " share of its kinds, then the fewest cases; a fold's training list takes each kind's groups by"
    " sha256 of (seed, 'train', task, fold, first case), the kinds interleaved in proportion"
)

PATIENT_RULE = RULE.replace(
    "near duplicates (see mvl/datasets/duplicates.py)",
    "scans of one patient (`patients` in dataset.json)",
)

PERSON_RULE = RULE.replace(
    "near duplicates (see mvl/datasets/duplicates.py)",
    "scans of one person (cases numbered 2k-1 and 2k)",
)
KNOWN_RULE = RULE.replace(
    "near duplicates (see mvl/datasets/duplicates.py)",
    "cases that the registry keeps together (frames of one sequence, one image with two labels)",
)


def known_groups(task: Task, case_ids: Sequence[str]) -> list[list[str]]:
    """Return the groups of two and more cases that the registry keeps together, sorted.

    A group lists the cases that `together` names, or the frames of one sequence.

    Raises:
        TaskError: a case is no frame number, or lies behind the last sequence.
    """
    known = set(case_ids)
    held: dict[str, list[str]] = {}
    for names in task.together:
        held[names[0]] = sorted(known.intersection(names))
    if task.sequence_ends:
        for case in sorted(case_ids):
            held.setdefault(f"sequence {sequence_of(task, case)}", []).append(case)
    return sorted(group for group in held.values() if len(group) > 1)


def sequence_of(task: Task, case_id: str) -> int:
    """Return the number of a frame's sequence, counted from 1.

    Raises:
        TaskError: the case is no frame number, or lies behind the last sequence.
    """
    number = int(case_id) if case_id.isdecimal() else 0
    if not 1 <= number <= task.sequence_ends[-1]:
        raise TaskError(
            f"{task.name}: case {case_id} is no frame of its sequences (1 to"
            f" {task.sequence_ends[-1]}); remove it from the data folder"
        )
    return bisect_left(task.sequence_ends, number) + 1


def person_groups(task: Task, case_ids: Sequence[str]) -> list[list[str]]:
    """Groups of two cases that the registry's `persons` says to be of one person; a person with one
    case is in none.

    Raises:
        TaskError: the registry does not say how the task's names tell persons.
    """
    if task.persons != "pairs":
        raise TaskError(
            f"{task.name}: its case names do not tell persons, so it has no split by person; "
            "set data.split to folds"
        )
    held: dict[int, list[str]] = {}
    for case in sorted(case_ids):
        number = int(case.rpartition("_")[2])
        held.setdefault((number + 1) // 2, []).append(case)
    return sorted(group for group in held.values() if len(group) > 1)


def find_groups(task: Task, cases: Sequence[Case], folder: Path) -> list[list[str]]:
    """Return the groups of two and more cases that must stay in one block.

    Those are the groups that the registry knows, else near duplicates among pictures, else scans of
    one patient.
    """
    if task.together or task.sequence_ends:
        return known_groups(task, [case.case_id for case in cases])
    if task.layout not in ("busi", "pairs"):
        held: dict[str, list[str]] = {}
        for case, key in patients(folder).items():
            held.setdefault(key, []).append(case)
        known = {case.case_id for case in cases}
        return sorted(
            group for names in held.values() if len(group := sorted(known.intersection(names))) > 1
        )
    from mvl.datasets.duplicates import duplicate_groups

    names, paths = [case.case_id for case in cases], [case.image for case in cases]
    return duplicate_groups(names, paths, task.least_correlation)


def rule_of(task: Task) -> str:
    """Return the words for how a task with groups is dealt."""
    if task.together or task.sequence_ends:
        return KNOWN_RULE
    return RULE if task.layout in ("busi", "pairs") else PATIENT_RULE


def patients(folder: Path) -> dict[str, str]:
    """Case id -> patient, from `patients` in the folder's dataset.json; nothing where it says none.

    Raises:
        TaskError: it is not a mapping of words to words.
    """
    path = folder / "dataset.json"
    keys = json.loads(path.read_text()).get("patients", {}) if path.is_file() else {}
    if not isinstance(keys, dict) or not all(isinstance(key, str) and key for key in keys.values()):
        raise TaskError(
            f'{path}: `patients` is not a mapping of cases to patients; write e.g. "patients":'
            ' {"case_a_0": "a", "case_a_1": "a"}'
        )
    return keys


def kind_of(case_id: str) -> str:
    """What a case is balanced by: BUSI's class; any other case is of the one kind `case`."""
    word = case_id.rpartition("_")[0]
    return word if word in ("benign", "malignant", "normal") else "case"


def units(case_ids: Sequence[str], groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every case once: the groups, and each other case alone; sorted."""
    grouped = {case for group in groups for case in group}
    return sorted(
        [tuple(sorted(group)) for group in groups]
        + [(case,) for case in case_ids if case not in grouped]
    )


def deal(
    task_name: str, all_units: list[tuple[str, ...]], seed: int, blocks: int
) -> list[list[str]]:
    """Units dealt to blocks; each block sorted."""
    total = Counter(kind_of(case) for unit in all_units for case in unit)
    held: list[Counter[str]] = [Counter() for _ in range(blocks)]
    out: list[list[str]] = [[] for _ in range(blocks)]
    for unit in sorted(
        all_units, key=lambda unit: (-len(unit), draw_seed(seed, "blocks", task_name, unit[0]))
    ):
        kinds = Counter(map(kind_of, unit))
        load = [
            sum(n * held[k][kind] / total[kind] for kind, n in kinds.items()) for k in range(blocks)
        ]
        best = min(range(blocks), key=lambda k: (load[k], len(out[k]), k))
        out[best] += unit
        held[best] += kinds
    return [sorted(block) for block in out]


def training_order(
    task_name: str, members: Sequence[str], all_units: list[tuple[str, ...]], fold: int, seed: int
) -> list[str]:
    """The training cases of a fold so that every prefix holds the kinds in about their proportion
    and cuts at most one group."""
    chosen, places = set(members), []
    total, seen = (
        Counter(kind_of(case) for case in members),
        Counter(),
    )  # type: Counter[str], Counter[str]
    drawn = sorted(
        (unit for unit in all_units if unit[0] in chosen),
        key=lambda unit: draw_seed(seed, "train", task_name, fold, unit[0]),
    )
    for unit in drawn:
        kind = Counter(map(kind_of, unit)).most_common(1)[0][0]
        places.append(((seen[kind] + len(unit) / 2) / total[kind], unit))
        seen[kind] += len(unit)
    return [case for _, unit in sorted(places, key=lambda place: place[0]) for case in unit]
