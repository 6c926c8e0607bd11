"""Activation measures and maps as records: made from weights by `mvl study maps`, kept beside the
tables, read by the book without weights.

Maps are kept as small pictures of one slice; scan and label are read from the data each time, never
kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core import files, run_folder
from mvl.core.columns import KEYS_IN_STUDY
from mvl.core.command_lines import command_line
from mvl.core.config import Config
from mvl.datasets.task import TaskError
from mvl.evidence import predicted
from mvl.evidence.activation_maps import ROWS, Maps, draw_maps, run_table, seen
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter
from mvl.study import status
from mvl.study.grid import load_study, study_runs

TABLE, PICTURES = "activations.csv", "activations.npz"
CASES = 24
"Test cases per run: evenly spaced in the order of their names, of those with a label."
PLACES = {
    "at the block's width": (("mapper1",), "block"),
    "at the network's width": (("encoder", "bottleneck"), "mapper2"),
}
"""Where before and after are compared: what enters the block and what leaves it; the features
before mapper 1 and after mapper 2."""
DRAWN = ("vit_baseline", "medvisionllama_v3", "medvisionllama_v1", "cnn", "llm4seg")
"Architectures with named stages."


def planned(study: str) -> list[Config]:
    """Runs that are looked at: the main block's (LLM4Seg's own where there is no main), all data,
    the first seed, networks with named stages."""
    known = [str(block["name"]) for block in load_study(study).grid]
    block = next((name for name in ("main", "llm4seg") if name in known), None)
    found = (
        [c for c in study_runs(study, block) if c.model.architecture in DRAWN and c.fraction == 1.0]
        if block
        else []
    )
    return [c for c in found if c.seed == min(other.seed for other in found)]


def absent(config: Config, results_dir: Path) -> str:
    """Why a run cannot be looked at; empty where it can."""
    folder = run_folder.run_dir(results_dir, config)
    state = status.state_of(folder, config)
    if state != "done":
        return state
    return (
        ""
        if run_folder.is_done(folder, need_weights=True)
        else "its weights are not there; published records carry none"
    )


def sampled(folder: Path, limit: int) -> list[str]:
    """Test cases of a run that hold a label: all, or `limit` evenly spaced in the order of their
    names."""
    cases = pd.read_csv(folder / "cases.csv", dtype={"case": str})
    names = sorted(set(cases.loc[cases["voxels_label"] > 0, "case"]))
    return (
        names
        if len(names) <= limit
        else [names[round(i)] for i in np.linspace(0, len(names) - 1, limit)]
    )


def record(
    study: str,
    results_dir: Path,
    target: Path,
    data_dir: Path | None = None,
    limit: int = CASES,
    tell: Callable[[str], Any] = lambda line: None,
) -> dict[str, Any]:
    """Write `activations.csv` and `activations.npz` into `target` from the weights in
    `results_dir`: {runs, rows, absent: {run: reason}}.

    Raises:
        TaskError: the task's data are absent.
    """
    from mvl.evidence.activations import COLUMNS, measure

    plan = planned(study)
    reasons = {run_folder.run_name(c): absent(c, results_dir) for c in plan}
    there = [c for c in plan if not reasons[run_folder.run_name(c)]]
    rows: list[dict[str, Any]] = []
    for number, config in enumerate(there, 1):
        folder = run_folder.run_dir(results_dir, config)
        rows += measure(folder, data_dir, sampled(folder, limit))
        tell(f"[{number}/{len(there)}] {run_folder.run_name(config)}")
    if there:
        pictures = draw_maps(there, results_dir, data_dir)
        files.write_csv(target / TABLE, rows, COLUMNS)
        files.atomic_write(target / PICTURES, pictures)
    return {
        "study": Path(study).stem,
        "runs": len(there),
        "rows": len(rows),
        "absent": {name: why for name, why in reasons.items() if why},
    }


def open_measures(chapter: Chapter) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `activations.csv` that the chapter's recorded weights made, and what is missing;
    made first where the weights are at hand."""
    holes = refresh(chapter)
    rows = read_table(chapter.folder / TABLE)
    keys = [*KEYS_IN_STUDY, "weights"]
    made = chapter.done.assign(weights=chapter.done["weights_sha256"].astype(str).str[:12])[keys]
    rows = rows.merge(made, on=keys) if len(rows) and len(made) else rows.iloc[:0]
    measured = set(rows[["task", "system", "fold", "seed"]].itertuples(index=False, name=None))
    lacking = [
        c.system for c in wanted(chapter) if (c.task, c.system, c.fold, c.seed) not in measured
    ]
    counts = {system: lacking.count(system) for system in lacking}
    return rows, holes + [
        f"activations of {title(s)}: {n} run{'s' if n > 1 else ''}" for s, n in counts.items()
    ]


def wanted(chapter: Chapter) -> list[Config]:
    """Runs of the chapter that are looked at."""
    systems = set(chapter.runs["system"])
    return [c for c in planned(chapter.study) if c.system in systems]


def read_table(path: Path) -> pd.DataFrame:
    """`activations.csv`, empty where there is none."""
    from mvl.evidence.activations import COLUMNS

    return (
        pd.read_csv(path, dtype={"case": str, "weights": str})
        if path.is_file()
        else pd.DataFrame(columns=COLUMNS)
    )


def refresh(chapter: Chapter) -> list[str]:
    """Make the files anew where the chapter is not the published one and its weights are newer than
    they; what kept them from being made."""
    if chapter.published or not chapter.folder.is_dir():
        return []
    there = [c for c in planned(chapter.study) if not absent(c, chapter.results_dir)]
    known = set(read_table(chapter.folder / TABLE)["weights"])
    if there and not set(run_table(there, chapter.results_dir)["weights_sha256"].str[:12]) <= known:
        try:
            record(chapter.study, chapter.results_dir, chapter.folder)
        except TaskError as error:
            return [f"activations need the scans: {predicted.relative(error)}"]
    return []


def maps_command(chapter: Chapter) -> str:
    """Return the command that measures a study's activations."""
    return command_line(
        *("study", "maps", chapter.study),
        results_dir=None if chapter.published else chapter.results_dir,
    )


def open_maps(chapter: Chapter) -> tuple[Maps | None, list[str]]:
    """The kept maps over scan and label, None where there are none of the recorded weights; and
    what is missing."""
    holes = refresh(chapter)
    path = chapter.folder / PICTURES
    recorded = dict(zip(chapter.done["run"], chapter.done["weights_sha256"]))
    command = maps_command(chapter)
    if not path.is_file():
        return None, [*holes, f"activation maps; `{command}` makes them from weights"]
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        steps = {name: kept[name] for name in kept.files if name != "facts"}
    if any(recorded.get(run) != weights for run, weights in facts["weights"].items()):
        others = "activation maps of the recorded weights (those kept are of others)"
        return None, [*holes, f"{others}; `{command}` makes them"]
    arms: dict[str, dict[str, np.ndarray]] = {system: {} for system in facts["systems"]}
    for name, picture in steps.items():
        (system, column), (low, high) = name.split("/"), facts["ranges"][name]
        arms[system][column] = low + (high - low) * picture / 255
    scan, label, fault = seen(chapter, facts)
    kept_as_they_are = ("task", "case", "fold", "ranked_by", "slice", "dice", "numbers")
    found = Maps(
        arms=arms, scan=scan, label=label, **{name: facts[name] for name in kept_as_they_are}
    )
    lacking = [s for row in ROWS if set(row) & set(arms) for s in row if s not in arms]
    return found, [*holes, *fault, *(f"activation maps of {title(s)}" for s in lacking)]


def before_after(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per run and place: system, fold, seed, place, before and after (means over the run's
    cases; NaN without a block) and n_cases."""
    keys = KEYS_IN_STUDY
    means = (
        rows.pivot_table(index=keys, columns="stage", values=column, aggfunc="mean")
        if len(rows)
        else pd.DataFrame()
    )
    counts = rows.groupby(keys)["case"].nunique() if len(rows) else pd.Series(dtype=int)
    out = []
    for key, stages in means.iterrows():
        for place, (before, after) in PLACES.items():
            first = next(
                (stages[name] for name in before if np.isfinite(stages.get(name, np.nan))), np.nan
            )
            out.append(
                dict(zip(keys, key))
                | {
                    "place": place,
                    "before": first,
                    "after": stages.get(after, np.nan),
                    "n_cases": counts[key],
                }
            )
    return pd.DataFrame(out, columns=[*keys, "place", "before", "after", "n_cases"])
