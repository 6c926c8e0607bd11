"""A chapter: the runs of a study that it reads, those that it trains, and the arms it compares."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.core import run_folder
from mvl.core.columns import CASE_COLUMNS, KEYS_IN_STUDY, RUN_KEYS
from mvl.core.config import Config
from mvl.datasets.registry import find_task
from mvl.evidence.arms import caveat, title
from mvl.evidence.topics import TOPICS, Topic
from mvl.study import tables
from mvl.study.grid import Study, load_study, study_runs
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

    @cached_property
    def plan(self) -> Study:
        """The study, read once."""
        return load_study(self.study)

    @property
    def tasks(self) -> list[str]:
        """Tasks of the chapter's blocks."""
        found: list[str] = []
        for block in self.plan.grid:
            if block["name"] in TOPICS[self.topic].blocks:
                found += block.get("tasks", self.plan.tasks)
        return list(dict.fromkeys(found)) or list(self.plan.tasks)

    @property
    def smoke(self) -> bool:
        """True when every task of the chapter has a caveat, so that no number may stand beside a
        paper's."""
        return all(caveat([task]) for task in self.tasks)

    @property
    def unit(self) -> str:
        """Unit of the chapter's distances: mm, or px for pictures."""
        return find_task(self.tasks[0]).unit

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """The topic's contrasts of which the study plans both systems."""
        planned = systems_of(self.plan, TOPICS[self.topic])
        return [pair for pair in TOPICS[self.topic].contrasts if set(pair) <= set(planned)]

    @property
    def published(self) -> bool:
        """True when the runs are the committed records."""
        return run_folder.is_records(self.results_dir)

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `runs` that are done."""
        return self.runs[self.runs["state"] == "done"]


def train_chapter(
    topic: str, study: str, results_dir: str | Path, allow_drift: bool = False
) -> None:
    """Train what the chapter lacks, never into the published records, and collect its tables.

    `results_dir` is what `results_folder` takes. With `allow_drift`, runs that another
    machine began go on here, marked.
    """
    folder = run_folder.results_folder(results_dir)
    if run_folder.is_records(folder):
        return
    ensure_runs(study, planned_runs(study, TOPICS[topic]), folder, allow_drift=allow_drift)
    tables.collect(study, folder)


def open_chapter(topic: str, study: str, results_dir: str | Path) -> Chapter:
    """Read the chapter from the study's tables as they are; this trains and writes nothing."""
    folder, spec, plan = run_folder.results_folder(results_dir), TOPICS[topic], load_study(study)
    systems, units = systems_of(plan, spec), units_of(plan, spec)
    runs, cases, history = (
        _restricted(frame, systems, spec, units) for frame in read_tables(study, folder)
    )
    holes = _holes(study, plan, spec, runs)
    return Chapter(topic, study, folder, runs, _foreground(cases), history, tuple(holes))


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


def used_blocks(plan: Study, spec: Topic) -> list[str]:
    """Name the blocks of the study's grid that the topic reads."""
    known = [str(block["name"]) for block in plan.grid]
    wanted = [*spec.blocks, *(spec.beside if spec.extra else ())]
    return [name for name in dict.fromkeys(wanted) if name in known]


def planned_runs(study: str, spec: Topic) -> list[Config]:
    """Configs of the runs that the chapter shows and its study plans, each once."""
    plan = load_study(study)
    systems, units = systems_of(plan, spec), units_of(plan, spec)
    runs = {
        run_folder.run_name(run): run
        for block in used_blocks(plan, spec)
        for run in study_runs(study, block)
        if run.system in systems and run.fraction in spec.fractions
        if not units or (run.task, run.fold, run.seed) in units
    }
    return list(runs.values())


def systems_of(plan: Study, spec: Topic) -> list[str]:
    """Name the chapter's systems that the study plans, those of the topic's own blocks first."""
    own: list[str] = []
    beside: list[str] = []
    for name in used_blocks(plan, spec):
        into = own if name in spec.blocks else beside
        into += map(str, plan.block(name)["systems"])

    further = [system for system in spec.extra if system in (*own, *beside)]
    systems = list(dict.fromkeys([*own, *further]))
    return [system for system in systems if system in spec.only] if spec.only else systems


def units_of(plan: Study, spec: Topic) -> set[tuple[str, int, int]]:
    """List (task, fold, seed) of the topic's own blocks, over which its systems are compared; none
    where the study has none of the blocks."""
    units: set[tuple[str, int, int]] = set()
    for block in plan.grid:
        if block["name"] in spec.blocks:
            tasks = block.get("tasks", plan.tasks)
            units |= set(itertools.product(tasks, block.get("folds", [0]), block.get("seeds", [0])))
    return units


def planned_pairs(
    plan: Study, spec: Topic, system: str, reference: str, task: str, fraction: float
) -> tuple[tuple[int, int], ...]:
    """List (fold, seed) at which the study's grid has both systems on the task and share, among
    those that the topic compares."""
    have: dict[str, set[tuple[int, int]]] = {system: set(), reference: set()}
    for block in plan.grid:
        shares = [float(share) for share in block.get("fractions", [1.0])]
        if task not in block.get("tasks", plan.tasks) or fraction not in shares:
            continue
        units = set(itertools.product(block.get("folds", [0]), block.get("seeds", [0])))
        for name in {system, reference} & set(block["systems"]):
            have[name] |= units

    both = have[system] & have[reference]
    if compared := units_of(plan, spec):
        both = {unit for unit in both if (task, *unit) in compared}
    return tuple(sorted(both))


def _restricted(
    frame: pd.DataFrame, systems: Sequence[str], spec: Topic, units: set[tuple[str, int, int]]
) -> pd.DataFrame:
    """The rows of the chapter's systems and shares, over its own (task, fold, seed)."""
    rows = frame[frame["system"].isin(systems) & frame["fraction"].isin(spec.fractions)]
    inside = [not units or unit in units for unit in zip(rows["task"], rows["fold"], rows["seed"])]
    return rows[np.array(inside, dtype=bool)].reset_index(drop=True)


def _holes(study: str, plan: Study, spec: Topic, table: pd.DataFrame) -> list[str]:
    """Write one line for a block that the study has not, and one for each arm with planned runs
    that are not done."""
    lines = []
    if spec.blocks[0] not in used_blocks(plan, spec):
        lines.append(f"block `{spec.blocks[0]}` is not in the grid of study `{study}`")

    wanted = {(r.task, r.system, r.fraction, r.fold, r.seed) for r in planned_runs(study, spec)}
    done = table.loc[table["state"] == "done", KEYS_IN_STUDY].itertuples(index=False, name=None)
    arms = Counter((system, fraction) for _, system, fraction, *_ in sorted(wanted - set(done)))
    for (system, fraction), count in arms.items():
        runs = "1 run" if count == 1 else f"{count} runs"
        lines.append(f"{title(system)} at {fraction:.0%} of the data: {runs}")
    return lines


def unplanned(chapter: Chapter) -> Sequence[str]:
    """Systems of the topic's contrasts that the study does not plan."""
    spec = TOPICS[chapter.topic]
    compared = dict.fromkeys(itertools.chain.from_iterable(spec.contrasts))
    return [name for name in compared if name not in systems_of(chapter.plan, spec)]


def _foreground(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of the whole foreground where they are, else the mean over a case's labels."""
    if cases.empty or (cases["label"] == "foreground").any():
        return cases[cases["label"] == "foreground"].reset_index(drop=True)
    return cases.groupby([*RUN_KEYS, "case"], as_index=False, sort=False).mean(numeric_only=True)
