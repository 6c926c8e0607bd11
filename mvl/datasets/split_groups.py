"""Which cases must stay together in a split, and the deal of whole groups to ten blocks, balanced
in size and kind."""

from __future__ import annotations

import csv
import io
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.core.seeds import draw_seed
from mvl.datasets.task import Case, Task, TaskError, case_name, composed

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
    groups = [sorted(known.intersection(names)) for names in task.together]
    frames: dict[int, list[str]] = {}
    if task.sequence_ends:
        for case in sorted(case_ids):
            frames.setdefault(sequence_of(task, case), []).append(case)
    return sorted(group for group in (*groups, *frames.values()) if len(group) > 1)


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

    Those are the groups that the registry knows, else scans of one patient, joined with near
    duplicates among pictures.
    """
    case_ids = [case.case_id for case in cases]
    if task.together or task.sequence_ends:
        return known_groups(task, case_ids)
    stated = patient_groups(folder, case_ids)
    if task.layout not in ("busi", "pairs"):
        return stated
    from mvl.datasets.duplicates import duplicate_groups, joined

    alike = duplicate_groups(case_ids, [case.image for case in cases], task.least_correlation)
    if not stated:
        return alike
    pairs = [(group[0], case) for group in (*stated, *alike) for case in group[1:]]
    return joined(case_ids, pairs)


def patient_groups(folder: Path, case_ids: Sequence[str]) -> list[list[str]]:
    """Return the groups of two and more cases of one patient, as the folder says, sorted."""
    held: dict[str, list[str]] = {}
    for case, key in patients(folder, case_ids).items():
        held.setdefault(key, []).append(case)
    return sorted(group for names in held.values() if len(group := sorted(names)) > 1)


def rule_of(task: Task) -> str:
    """Return the words for how a task with groups is dealt."""
    if task.together or task.sequence_ends:
        return KNOWN_RULE
    return RULE if task.layout in ("busi", "pairs") else PATIENT_RULE


def patients(folder: Path, case_ids: Sequence[str]) -> dict[str, str]:
    """Return the patient (or sequence) of each case of which the folder says it.

    It says so in `groups.csv`, whose columns are case and patient, or under `patients` in
    dataset.json: a mapping of cases to patients, or a regular expression for the case's name whose
    first group is the patient.

    Raises:
        TaskError: what is said there cannot be used; names the file and the remedy.
    """
    known, table = set(case_ids), folder / "groups.csv"
    if table.is_file():
        found = _patients_by_column(table)
        if odd := sorted(known ^ found.keys()):
            raise TaskError(
                f"{table}: {odd[0]} is in the table or among the cases, but not in both ({len(odd)}"
                " such); give each case one row"
            )
        return found
    path = folder / "dataset.json"
    stated = _described(path).get("patients", {})
    if isinstance(stated, str):
        return _patients_by_pattern(stated, case_ids, path)
    if not isinstance(stated, dict) or not all(
        isinstance(key, str) and key for key in stated.values()
    ):
        raise TaskError(
            f"{path}: `patients` is neither a mapping of cases to patients nor a pattern; write"
            ' e.g. "patients": {"a_0": "a", "a_1": "a"}, or "patients": "case_(.+)_[0-9]+"'
        )
    found = {composed(case_name(case)): key for case, key in stated.items()}
    # A name that does not match would leave its patient on two sides without a word.
    if odd := sorted(found.keys() - known):
        raise TaskError(
            f"{path}: `patients` names {odd[0]}, which is no case ({len(odd)} such); write the"
            f" cases by their names, e.g. {min(known, default='a_0')}, or take it out"
        )
    return found


def _described(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}


def _patients_by_column(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: is not in UTF-8; save it as CSV in UTF-8") from error
    # Spreadsheets write what stands between two fields as their country does.
    head = text.partition("\n")[0]
    mark = next((mark for mark in ";\t" if mark in head), ",")
    table = csv.reader(io.StringIO(text), delimiter=mark)
    cells = [[cell.strip() for cell in row] for row in table if any(row)]
    names = [name.lower() for name in cells[0]] if cells else []
    rows = [dict(zip(names, row)) for row in cells[1:]]
    found = {composed(case_name(row.get("case", ""))): row.get("patient", "") for row in rows}
    if not rows or len(found) < len(rows) or not all(found) or not all(found.values()):
        raise TaskError(
            f"{path}: needs the columns case and patient, with both filled and each case once"
        )
    return found


def _patients_by_pattern(pattern: str, case_ids: Sequence[str], path: Path) -> dict[str, str]:
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise TaskError(
            f"{path}: `patients` is no regular expression ({error}); correct it"
        ) from error
    found = {}
    for case in case_ids:
        match = form.fullmatch(case)
        if form.groups < 1 or not match or not match[1]:
            raise TaskError(
                f"{path}: `patients` is {pattern!r}, which gives case {case} no patient; write a"
                " pattern that fits every case's whole name, its first group the patient"
            )
        found[case] = match[1]
    return found


def shared_stems(case_ids: Sequence[str]) -> list[str]:
    """Return the beginnings that several cases share and that look like a patient's number.

    `p01_t1` and `p01_t2` share `p01`; `case_01` and `case_02` share `case`, which holds no number.
    """
    stems = Counter(case.rpartition("_")[0] or case.rpartition("-")[0] for case in case_ids)
    found = sorted(stem for stem, count in stems.items() if count > 1 and re.search(r"\d", stem))
    return found if len(stems) > 1 else []


def stated_folds(folder: Path, most: int, fewest: int) -> int:
    """Return how many folds the folder's dataset.json asks for under `folds`, or `most`.

    Raises:
        TaskError: it is no whole number from `fewest` to `most`.
    """
    path = folder / "dataset.json"
    folds = _described(path).get("folds", most)
    if isinstance(folds, bool) or not isinstance(folds, int) or not fewest <= folds <= most:
        raise TaskError(f"{path}: folds is {folds!r}; write a number from {fewest} to {most}")
    return folds


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
