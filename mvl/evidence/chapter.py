"""A chapter: the runs of a study that it reads, those that it trains, and the arms it compares."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.core import run_folder
from mvl.core.columns import CASE_COLUMNS, RUN_KEYS
from mvl.core.config import ROOT
from mvl.datasets.registry import find_task
from mvl.datasets.task import MADE
from mvl.evidence.arms import title
from mvl.evidence.topics import TOPICS, Topic
from mvl.study import tables
from mvl.study.grid import load_study, study_runs
from mvl.study.launch import ensure_runs


@dataclass(frozen=True)
class Chapter:
    """The tables of one chapter, restricted to its runs."""

    topic: str
    "Key of `TOPICS`."
    study: str
    "Study that the runs belong to."
    results_dir: Path
    "Folder of the studies' results."
    runs: pd.DataFrame
    "One row per planned run of the chapter, holes included."
    cases: pd.DataFrame
    "One row per done run, case and label."
    history: pd.DataFrame
    "One row per done run and epoch."
    holes: tuple[str, ...]
    "What is planned, or asked by the chapter, and not there."

    @property
    def folder(self) -> Path:
        """Folder of the study's tables."""
        return self.results_dir / Path(self.study).stem

    @property
    def tasks(self) -> list[str]:
        """Tasks of the chapter's blocks."""
        study = load_study(self.study)
        blocks = [block for block in study.grid if block["name"] in TOPICS[self.topic].blocks]
        return list(
            dict.fromkeys(task for block in blocks for task in block.get("tasks", study.tasks))
        ) or list(study.tasks)

    @property
    def smoke(self) -> bool:
        """True when the chapter has generated data only, so that no number may stand beside a
        paper's."""
        return set(self.tasks) <= set(MADE)

    @property
    def unit(self) -> str:
        """Unit of the chapter's distances: mm, or px for pictures."""
        return find_task(self.tasks[0]).unit

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """The topic's contrasts of which the study plans both systems."""
        planned = systems_of(self.study, TOPICS[self.topic])
        return [pair for pair in TOPICS[self.topic].contrasts if set(pair) <= set(planned)]

    @property
    def published(self) -> bool:
        """True when the runs are the committed records."""
        return self.results_dir.resolve() == run_folder.records_dir().resolve()

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `runs` that are done."""
        return self.runs[self.runs["state"] == "done"]


def open_chapter(
    topic: str, study: str, results_dir: str | Path, allow_drift: bool = False
) -> Chapter:
    """Train what the chapter lacks (never into the published records), collect, and read its
    tables.

    A relative `results_dir` starts at the clone's top folder. With `allow_drift`, runs that another
    machine began go on here, marked.
    """
    folder = ROOT / results_dir
    for block in used_blocks(study, TOPICS[topic]):
        ensure_runs(study, block, folder, allow_drift=allow_drift)
    if folder.resolve() != run_folder.records_dir().resolve():
        tables.collect(study, folder)
    return read_chapter(topic, study, folder)


def read_chapter(topic: str, study: str, results_dir: str | Path) -> Chapter:
    """The chapter from the study's tables as they are; trains and writes nothing."""
    folder, spec = ROOT / results_dir, TOPICS[topic]
    frames = read_tables(study, folder)
    systems = systems_of(study, spec)
    kept = [_restricted(frame, systems, spec, units_of(study, spec)) for frame in frames]
    return Chapter(
        topic,
        study,
        folder,
        kept[0],
        _foreground(kept[1]),
        kept[2],
        tuple(_holes(study, spec, systems, kept[0])),
    )


def read_tables(study: str, results_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read a study's runs, cases and history; empty tables where nothing is recorded."""
    if not (results_dir / Path(study).stem / "runs.csv").is_file():
        columns = (
            tables.RUN_COLUMNS,
            CASE_COLUMNS,
            [*RUN_KEYS, *tables.HISTORY_COLUMNS],
        )
        runs, cases, history = (pd.DataFrame(columns=names) for names in columns)
        return runs, cases, history
    return (
        tables.read_runs(study, results_dir),
        tables.read_cases(study, results_dir),
        tables.read_history(study, results_dir),
    )


def covered(study: str) -> list[str]:
    """Topics whose first block is in the study's grid."""
    known = {str(block["name"]) for block in load_study(study).grid}
    return [topic for topic, spec in TOPICS.items() if spec.blocks[0] in known]


def used_blocks(study: str, spec: Topic) -> list[str]:
    """Blocks of the study's grid that the topic reads."""
    known = [str(block["name"]) for block in load_study(study).grid]
    return [
        b for b in dict.fromkeys([*spec.blocks, *(spec.beside if spec.extra else ())]) if b in known
    ]


def systems_of(study: str, spec: Topic) -> list[str]:
    """Systems of the chapter that the study plans, those of the topic's own blocks first."""
    plan, used = load_study(study), used_blocks(study, spec)
    own, beside = (
        [str(s) for b in used if (b in spec.blocks) == mine for s in plan.block(b)["systems"]]
        for mine in (True, False)
    )
    return [
        s
        for s in dict.fromkeys([*own, *(s for s in spec.extra if s in (*own, *beside))])
        if not spec.only or s in spec.only
    ]


def units_of(study: str, spec: Topic) -> set[tuple[str, int, int]]:
    """(task, fold, seed) of the topic's own blocks, over which its systems are compared; empty
    where the study has none of the blocks."""
    plan = load_study(study)
    blocks = [block for block in plan.grid if block["name"] in spec.blocks]
    return {
        unit
        for b in blocks
        for unit in itertools.product(
            b.get("tasks", plan.tasks), b.get("folds", [0]), b.get("seeds", [0])
        )
    }


def planned_pairs(
    study: str, spec: Topic, system: str, reference: str, task: str, fraction: float
) -> tuple[tuple[int, int], ...]:
    """(fold, seed) at which the study's grid has both systems on the task and share, among those
    that the topic compares."""
    plan, units = load_study(study), units_of(study, spec)
    have: dict[str, set[tuple[int, int]]] = {system: set(), reference: set()}
    for block in plan.grid:
        if task in block.get("tasks", plan.tasks) and fraction in map(
            float, block.get("fractions", [1.0])
        ):
            for name in {system, reference} & set(block["systems"]):
                have[name] |= set(
                    itertools.product(block.get("folds", [0]), block.get("seeds", [0]))
                )
    return tuple(
        sorted(u for u in have[system] & have[reference] if not units or (task, *u) in units)
    )


def _restricted(
    frame: pd.DataFrame, systems: Sequence[str], spec: Topic, units: set[tuple[str, int, int]]
) -> pd.DataFrame:
    """The rows of the chapter's systems and shares, over its own (task, fold, seed)."""
    rows = frame[frame["system"].isin(systems) & frame["fraction"].isin(spec.fractions)]
    inside = [not units or unit in units for unit in zip(rows["task"], rows["fold"], rows["seed"])]
    return rows[np.array(inside, dtype=bool)].reset_index(drop=True)


def _holes(study: str, spec: Topic, systems: Sequence[str], table: pd.DataFrame) -> list[str]:
    """One line for a block that the study has not, and one per arm with planned runs that are not
    done."""
    used = used_blocks(study, spec)
    absent = [
        f"block `{b}` is not in the grid of study `{study}`"
        for b in spec.blocks[:1]
        if b not in used
    ]
    done = set(
        map(
            tuple,
            table.loc[table["state"] == "done", ["system", "fraction", "fold", "seed"]].itertuples(
                index=False
            ),
        )
    )
    units = units_of(study, spec)
    planned = {
        (r.task, r.system, r.fraction, r.fold, r.seed) for b in used for r in study_runs(study, b)
    }
    wanted = {
        p[1:]
        for p in planned
        if p[1] in systems and p[2] in spec.fractions and (not units or (p[0], *p[3:]) in units)
    }
    arms: dict[tuple[str, float], int] = {}
    for system, fraction, *_ in sorted(wanted - done):
        arms[system, fraction] = arms.get((system, fraction), 0) + 1
    return absent + [
        f"{title(s)} at {f:.0%} of the data: {n} run{'s' if n > 1 else ''}"
        for (s, f), n in arms.items()
    ]


def unplanned(chapter: Chapter) -> Sequence[str]:
    """Systems of the topic's contrasts that the study does not plan."""
    planned = systems_of(chapter.study, TOPICS[chapter.topic])
    return list(
        dict.fromkeys(
            s for pair in TOPICS[chapter.topic].contrasts for s in pair if s not in planned
        )
    )


def _foreground(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of the whole foreground where they are, else the mean over a case's labels."""
    if cases.empty or (cases["label"] == "foreground").any():
        return cases[cases["label"] == "foreground"].reset_index(drop=True)
    keys = ["study", "task", "system", "fraction", "fold", "seed", "case"]
    return cases.groupby(keys, as_index=False, sort=False).mean(numeric_only=True)
