"""Activation measures and maps as records: made from weights by `mvl study maps`, kept beside the
tables, read by the book without weights.

Maps are kept as small pictures of one slice; scan and label are read from the data each time, never
kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core import files, run_folder
from mvl.core.config import Config
from mvl.datasets.task import TaskError
from mvl.evidence import example_masks, predicted
from mvl.evidence.arms import title
from mvl.evidence.chapter import Chapter
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, LLM4SEG_RANDOM, RANDOM, VIT
from mvl.study import tables
from mvl.study.grid import load_study, study_runs

TABLE, PICTURES = "activations.csv", "activations.npz"
CASES = 24
"Test cases per run: evenly spaced in the order of their names, of those with a label."
ROWS = ((VIT, HYBRID, RANDOM), (CNN, LLM4SEG, LLM4SEG_RANDOM))
"Arms of the seven-column figure."
PLACES = {
    "at the block's width": (("mapper1",), "block"),
    "at the network's width": (("encoder", "bottleneck"), "mapper2"),
}
"""Where before and after are compared: what enters the block and what leaves it; the features
before mapper 1 and after mapper 2."""
DRAWN = ("vit_baseline", "medvisionllama_v3", "medvisionllama_v1", "cnn", "llm4seg")
"Architectures with named stages."


@dataclass(frozen=True)
class Maps:
    """The seven-column figure's pictures: one slice of one test case, the same for every arm."""

    task: str
    "Task name."
    case: str
    "Case id."
    fold: int
    "Fold whose test case it is."
    ranked_by: str
    "System by whose Dice it is the median case."
    slice: int
    "Axial slice on the network's grid; 0 for a picture."
    arms: dict[str, dict[str, np.ndarray]]
    "Map by column, by system."
    dice: dict[str, float]
    "Dice of the whole case on its own grid, by system."
    numbers: dict[str, dict[str, dict[str, float]]]
    "Measure by stage, by system, of the whole case."
    scan: np.ndarray | None = None
    "What the network saw, z-scored; None where the data are absent."
    label: np.ndarray | None = None
    "Foreground on the same slice; None where the data are absent."


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
    state = tables.run_state(folder, config)
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


def draw_maps(there: Sequence[Config], results_dir: Path, data_dir: Path | None) -> bytes:
    """The seven columns of the median test case by the first arm's Dice, at the lowest fold that
    most arms have, as one npz."""
    from mvl.evidence.activations import maps

    arms = [
        c
        for c in there
        if c.system in next((row for row in ROWS if {c.system for c in there} & set(row)), ())
    ]
    chosen = example_masks.common_runs(run_table(arms, results_dir))
    cases = pd.concat(
        [pd.read_csv(results_dir / run / "cases.csv", dtype={"case": str}) for run in chosen["run"]]
    )
    picks = example_masks.pick_cases(
        cases[cases["label"].isin(("foreground", cases["label"].iloc[0]))], chosen
    )
    case = next((name for name, rank in picks if rank == "median"), picks[0][0])
    first = chosen.iloc[0]
    facts: dict[str, Any] = {
        "task": str(first["task"]),
        "case": case,
        "fold": int(first["fold"]),
        "ranked_by": str(first["system"]),
        "weights": dict(zip(chosen["run"], chosen["weights_sha256"])),
        "systems": list(chosen["system"]),
        "dice": example_masks.case_dice(cases, chosen, case),
        "numbers": {},
        "ranges": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for row in chosen.itertuples():
        slices, facts["numbers"][row.system], facts["slice"] = maps(
            results_dir / str(row.run), data_dir, case
        )
        for column, values in slices.items():
            arrays[f"{row.system}/{column}"], facts["ranges"][f"{row.system}/{column}"] = squeezed(
                values
            )
    return packed(arrays, facts)


def run_table(configs: Sequence[Config], results_dir: Path) -> pd.DataFrame:
    """The columns of runs.csv that say which runs these are."""
    keys = ("task", "system", "fraction", "fold", "seed")
    rows = []
    for config in configs:
        status = run_folder.read_status(run_folder.run_dir(results_dir, config))
        row = {key: getattr(config, key) for key in keys}
        row["run"] = f"{config.study}/runs/{run_folder.run_name(config)}"
        row["weights_sha256"] = status["files"]["weights.safetensors"]
        rows.append(row)
    return pd.DataFrame(rows)


def squeezed(values: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """A picture in 256 steps, and the values of the first and the last."""
    low, high = float(f"{values.min():.6g}"), float(f"{values.max():.6g}")
    steps = np.clip((values - low) / ((high - low) or 1.0), 0, 1) * 255
    return np.round(steps).astype(np.uint8), [low, high]


def packed(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> bytes:
    """One npz; the same content gives the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def open_measures(chapter: Chapter, data_dir: Path | None = None) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `activations.csv` that the chapter's recorded weights made, and what is missing;
    made first where the weights are at hand."""
    holes = refresh(chapter, data_dir)
    rows = read_table(chapter.folder / TABLE)
    keys = ["task", "system", "fraction", "fold", "seed"]
    made = chapter.done[[*keys, "weights_sha256"]].assign(
        weights=chapter.done["weights_sha256"].astype(str).str[:12]
    )
    rows = (
        rows.merge(made[[*keys, "weights"]], on=[*keys, "weights"])
        if len(rows) and len(made)
        else rows.iloc[:0]
    )
    measured = set(rows[["system", "fold", "seed"]].itertuples(index=False, name=None))
    lacking = [c.system for c in wanted(chapter) if (c.system, c.fold, c.seed) not in measured]
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


def refresh(chapter: Chapter, data_dir: Path | None = None) -> list[str]:
    """Make the files anew where the chapter is not the published one and its weights are newer than
    they; what kept them from being made."""
    if chapter.published or not chapter.folder.is_dir():
        return []
    there = [c for c in planned(chapter.study) if not absent(c, chapter.results_dir)]
    known = set(read_table(chapter.folder / TABLE)["weights"])
    if there and not set(run_table(there, chapter.results_dir)["weights_sha256"].str[:12]) <= known:
        try:
            record(chapter.study, chapter.results_dir, chapter.folder, data_dir)
        except TaskError as error:
            return [f"activations need the scans: {predicted.relative(error)}"]
    return []


def open_maps(chapter: Chapter, data_dir: Path | None = None) -> tuple[Maps | None, list[str]]:
    """The kept maps over scan and label, None where there are none of the recorded weights; and
    what is missing."""
    holes = refresh(chapter, data_dir)
    path, recorded = (
        chapter.folder / PICTURES,
        dict(zip(chapter.done["run"], chapter.done["weights_sha256"])),
    )
    if not path.is_file():
        return None, [
            *holes,
            f"activation maps; `mvl study maps {chapter.study}` makes them from weights",
        ]
    with np.load(path) as kept:
        facts, steps = (
            json.loads(str(kept["facts"])),
            {name: kept[name] for name in kept.files if name != "facts"},
        )
    if any(recorded.get(run) != weights for run, weights in facts["weights"].items()):
        return None, [
            *holes,
            (
                "activation maps of the recorded weights (those kept are of others); `mvl study"
                f" maps {chapter.study}` makes them"
            ),
        ]
    arms: dict[str, dict[str, np.ndarray]] = {system: {} for system in facts["systems"]}
    for name, picture in steps.items():
        (system, column), (low, high) = name.split("/"), facts["ranges"][name]
        arms[system][column] = low + (high - low) * picture / 255
    scan, label, fault = seen(chapter, facts, data_dir)
    found = Maps(
        facts["task"],
        facts["case"],
        facts["fold"],
        facts["ranked_by"],
        facts["slice"],
        arms,
        facts["dice"],
        facts["numbers"],
        scan,
        label,
    )
    lacking = [s for row in ROWS if set(row) & set(arms) for s in row if s not in arms]
    return found, [*holes, *fault, *(f"activation maps of {title(s)}" for s in lacking)]


def seen(
    chapter: Chapter, facts: dict[str, Any], data_dir: Path | None
) -> tuple[np.ndarray | None, np.ndarray | None, list[str]]:
    """Scan and label of the maps' slice on the network's grid; or why they are not there."""
    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.registry import find_task

    config = run_folder.read_config(chapter.results_dir / next(iter(facts["weights"])))
    try:
        image, label = CaseStore(
            find_task(facts["task"], data_dir), (facts["case"],), config.data, data_dir
        ).get(0)
    except TaskError as error:
        return None, None, [f"the scan under the activation maps: {predicted.relative(error)}"]

    def shown(array: np.ndarray) -> np.ndarray:
        return predicted.view(array, facts["slice"], facts["task"], data_dir)

    return shown(image[0].numpy()), shown(label[0].numpy() > 0), []


def before_after(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per run and place: system, fold, seed, place, before and after (means over the run's
    cases; NaN without a block) and n_cases."""
    keys = ["task", "system", "fraction", "fold", "seed"]
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
