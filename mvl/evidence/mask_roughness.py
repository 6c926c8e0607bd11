"""How rough the predicted masks of volumes are, measured from the recorded weights: `masks.csv`,
one row per run and test case.

Roughness is the mask's spherical disproportion divided by the label's: below 1 the mask is smoother
than what was drawn by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mvl.core import files, run_folder
from mvl.core.columns import KEYS_IN_STUDY, RUN_KEYS
from mvl.core.markdown import markdown_table
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.evidence import run_pairs, stats
from mvl.evidence.arms import caveat, ordered, title
from mvl.evidence.chapter import Chapter
from mvl.evidence.predicted import first_with_weights, predicted_masks, read_volume, relative

FILE = "masks.csv"
MEASURES = [
    "components",
    "volume_mm3",
    "surface_mm2",
    "disproportion",
    "label_components",
    "label_volume_mm3",
    "label_surface_mm2",
    "label_disproportion",
    "roughness",
]
COLUMNS = [*RUN_KEYS, "case", *MEASURES, "weights_sha256"]
FOLDS = (0,)
"Folds whose test cases are measured, when not recorded, unless more are asked for."


def disproportion(volume: float, surface: float) -> float:
    """Spherical disproportion: the surface over that of a ball of the same volume; 1 is a ball, NaN
    an empty mask.

    Source: Image Biomarker Standardisation Initiative, feature KRCK.
    """
    return surface / (36 * np.pi * volume**2) ** (1 / 3) if volume else float("nan")


def mask_measures(
    mask: np.ndarray, label: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """The `MEASURES` of one predicted mask beside its label (boolean, one 3-D shape; `spacing` in
    mm).

    The surface is that of marching cubes (`monai.metrics.get_mask_edges`); components share a face,
    an edge or a corner.
    """
    import torch
    from monai.metrics import get_mask_edges
    from scipy import ndimage

    both = [np.pad(array.astype(bool), 1) for array in (mask, label)]
    areas = get_mask_edges(
        *map(torch.from_numpy, both), crop=False, spacing=tuple(map(float, spacing))
    )[2:]
    out: dict[str, float] = {}
    for prefix, array, area in zip(("", "label_"), both, areas):
        volume, surface = (
            float(array.sum() * np.prod(spacing)),
            float(np.asarray(area, dtype=np.float64).sum()),
        )
        out |= {
            f"{prefix}components": float(ndimage.label(array, np.ones((3, 3, 3)))[1]),
            f"{prefix}volume_mm3": volume,
            f"{prefix}surface_mm2": surface,
            f"{prefix}disproportion": disproportion(volume, surface),
        }
    return out | {"roughness": out["disproportion"] / out["label_disproportion"]}


def run_rows(run: dict[str, Any], folder: Path, cases: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `masks.csv` for one run: its masks of these cases, each measured on the scan's own
    grid."""
    masks = predicted_masks(folder, cases)
    keys = {key: run[key] for key in RUN_KEYS}
    rows = []
    for case in cases:
        _, label, affine = read_volume(str(run["task"]), case)
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        measured = mask_measures(masks[case], label, spacing)
        rows.append(
            keys
            | {
                "case": case,
                **{k: round(v, 6) for k, v in measured.items()},
                "weights_sha256": str(run["weights_sha256"])[:16],
            }
        )
    return rows


def load_masks(
    chapter: Chapter, home: Path | None = None, folds: Sequence[int] | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the chapter's done runs, and what is not there.

    They are read from `<results_dir>/<study>/masks.csv` where the recorded weights made them; else,
    at these folds (none of published records unless asked for, and then not kept), measured where
    weights (in `home`, the results' or the clone's own runs) and scans are.
    """
    if folds is None:
        folds = () if chapter.published else FOLDS
    found: list[pd.DataFrame] = []
    holes: list[str] = []
    kept = read_masks(chapter.folder / FILE)
    for run in chapter.done.to_dict("records"):
        if find_task(str(run["task"])).dims != 3:
            continue
        try:
            rows = of_run(kept, run)
            if rows.empty and run["fold"] in folds:
                rows = measured_run(chapter, run, home)
        except TaskError as error:
            return pd.DataFrame(columns=COLUMNS), [f"roughness needs the scans: {relative(error)}"]
        found += [rows] if len(rows) else []
        holes += [] if len(rows) else [str(run["system"])]
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)
    if found and not chapter.published:
        write_masks(chapter.folder / FILE, kept, table)
    return table, [
        f"roughness of {title(s)}: {holes.count(s)} of its runs, `python -m"
        f" mvl.evidence.example_masks {chapter.study}`"
        for s in dict.fromkeys(holes)
    ]


def measured_run(chapter: Chapter, run: dict[str, Any], home: Path | None) -> pd.DataFrame:
    """Rows of one run measured from its weights; none where they are not at hand."""
    homes = (home, chapter.results_dir, run_folder.default_results_dir())
    found = first_with_weights(homes, pd.DataFrame([run]))
    if found is None:
        return pd.DataFrame(columns=COLUMNS)
    same = np.logical_and.reduce([chapter.cases[k] == run[k] for k in KEYS_IN_STUDY])
    cases = [str(case) for case in chapter.cases[same]["case"]]
    return pd.DataFrame(run_rows(run, found / run["run"], cases), columns=COLUMNS)


def of_run(table: pd.DataFrame, run: dict[str, Any]) -> pd.DataFrame:
    """The table's rows of one run, if its recorded weights made them."""
    same = [table[k] == run[k] for k in KEYS_IN_STUDY]
    return table[
        np.logical_and.reduce([*same, table["weights_sha256"] == str(run["weights_sha256"])[:16]])
    ]


def read_masks(path: Path) -> pd.DataFrame:
    """`masks.csv`, empty where it is absent."""
    text = {"study": str, "task": str, "system": str, "case": str, "weights_sha256": str}
    return pd.read_csv(path, dtype=text) if path.is_file() else pd.DataFrame(columns=COLUMNS)


def write_masks(path: Path, kept: pd.DataFrame, table: pd.DataFrame) -> None:
    """Write the kept rows with the table's in place of those of the same runs and cases."""
    both = pd.concat([kept, table], ignore_index=True) if len(kept) else table
    both = both.drop_duplicates([*RUN_KEYS, "case"], keep="last")
    rows = [{k: "" if v != v else v for k, v in row.items()} for row in both.to_dict("records")]
    files.write_csv(path, rows, COLUMNS)


def save_masks(
    chapter: Chapter, home: Path | None = None, folds: Sequence[int] = FOLDS
) -> Path | None:
    """Keep the rows beside the tables (published records come without weights); None where there
    are none."""
    table, _ = load_masks(chapter, home, folds)
    if len(table):
        write_masks(chapter.folder / FILE, read_masks(chapter.folder / FILE), table)
    return chapter.folder / FILE if len(table) else None


def roughness_table(table: pd.DataFrame, holes: Sequence[str] = ()) -> str:
    """Markdown table: each arm's mean roughness and components, and its paired difference of
    roughness from the first arm, with interval."""
    if table.empty:
        return f"Not yet recorded: {'; '.join(holes) or 'the roughness of the masks'}."
    whole = table.dropna(subset=["roughness"])
    first, *others = ordered(list(whole["system"]))
    head = (
        f"system | runs | cases | roughness | components | roughness minus {title(first)}'s, 95 %"
        " interval | pairs of runs"
    )
    rows = [_cells(whole, system, first) for system in [first, *others]]
    made = caveat(list(table["task"]))
    notes = [
        f"{made}." if made else "",
        "Mean over runs and test cases; below 1 a mask is smoother than its label.",
        f"Not yet recorded: {'; '.join(holes)}." if holes else "",
    ]
    if empty := len(table) - len(whole):
        notes.append(f"{empty} empty masks have no roughness and are left out.")
    return f"{markdown_table(head, 'lrrrrlr', rows)}\n\n{' '.join(filter(None, notes))}"


def _cells(whole: pd.DataFrame, system: str, first: str) -> list[object]:
    own = whole[whole["system"] == system]
    runs_, cases = len(own[["fraction", "fold", "seed"]].drop_duplicates()), own["case"].nunique()
    means = f"{own['roughness'].mean():.3f}", f"{own['components'].mean():.2f}"
    shown = [title(system), runs_, cases, *means]
    if system == first:
        return [*shown, "", ""]
    try:
        task, fraction = str(own["task"].iloc[0]), float(own["fraction"].iloc[0])
        found = stats.row(stats.compare(whole, system, first, task, fraction, "roughness"))
    except run_pairs.StatsError as error:
        return [*shown, error, ""]
    over = "" if found["n_runs"] > 1 else " over cases alone"
    interval = f"[{found['low']:+z.3f}, {found['high']:+z.3f}]"
    return [*shown, f"{found['difference']:+z.3f} {interval}{over}", found["n_runs"]]
