"""Best, median and worst test case on one slice, with every arm's mask.

Masks are drawn from weights once and kept as a small file beside the tables; scan and label are read from the data each time, never kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mvl import runs
from mvl.chapters import Chapter
from mvl.config import ROOT
from mvl.datasets.tasks import TaskError
from mvl.figures import Example

FILE = "examples.npz"
RANKS = ("best", "median", "worst")


def load_examples(chapter: Chapter, data_dir: Path | None = None) -> tuple[list[Example], list[str]]:
    """The chapter's examples and what is missing for them, one of the two being empty.

    They are read from `<results_dir>/<study>/examples.npz` where that was made by the recorded weights; else made anew where weights
    (in the results' or the clone's own runs) and data are at hand.
    """
    if chapter.done.empty:
        return [], ["no finished run to draw predictions of"]
    chosen = common_runs(chapter.done)
    path = chapter.folder / FILE
    try:
        if kept := read_examples(path, chosen, data_dir):
            return kept, []
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]
    homes = [chapter.results_dir, runs.default_results_dir()]
    home = next((h for h in homes if all(has_weights(h / row.run, row.weights_sha256) for row in chosen.itertuples())), None)
    if home is None:
        return [], [f"example segmentations need the weights of {', '.join(chosen['run'])}; `mvl study run {chapter.study}` makes them"]
    try:
        examples = draw_examples(chapter, chosen, home, data_dir)
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]
    if not chapter.published:
        runs.atomic_write(path, packed(examples, chosen))
    return examples, []


def relative(error: Exception) -> str:
    """An error's text without the place of this clone."""
    return str(error).replace(f"{ROOT}/", "")


def save_examples(chapter: Chapter, data_dir: Path | None = None) -> Path | None:
    """Keep the examples beside the tables (published records come without weights); None where they cannot be drawn."""
    examples, _ = load_examples(chapter, data_dir)
    path = chapter.folder / FILE
    if examples:
        runs.atomic_write(path, packed(examples, common_runs(chapter.done)))
    return path if examples else None


def common_runs(done: pd.DataFrame) -> pd.DataFrame:
    """One run of each arm, at the lowest fold and seed that most arms have, on all the data."""
    whole = done[done["fraction"] == done["fraction"].max()]
    arms = whole.groupby(["task", "fold", "seed"])["system"].nunique()
    task, fold, seed = min(arms.index, key=lambda key: (-arms[key], *key))
    return whole[(whole["task"] == task) & (whole["fold"] == fold) & (whole["seed"] == seed)].reset_index(drop=True)


def has_weights(folder: Path, sha256: str) -> bool:
    """True when the folder holds the weights that the record names."""
    path = folder / "weights.safetensors"
    return path.is_file() and runs.sha256_file(path) == sha256


def pick_cases(cases: pd.DataFrame, chosen: pd.DataFrame) -> list[tuple[str, str]]:
    """(case, rank): best, median and worst by the mean Dice of the chosen runs, ties broken by name; of cases with a label where any has one."""
    first = chosen.iloc[0]
    labelled = cases[cases["voxels_label"] > 0] if "voxels_label" in cases else cases
    cases = cases if labelled.empty else labelled
    same = cases[(cases["fold"] == first["fold"]) & (cases["seed"] == first["seed"]) & (cases["fraction"] == first["fraction"])]
    means = same.groupby("case")["dice"].mean().reset_index().sort_values(["dice", "case"], ascending=[False, True])
    order = [str(case) for case in means["case"]]
    return list(dict(zip((order[0], order[len(order) // 2], order[-1]), RANKS)).items())


def draw_examples(chapter: Chapter, chosen: pd.DataFrame, home: Path, data_dir: Path | None = None) -> list[Example]:
    """Predict the picked cases with every chosen run and keep the axial slice that holds most of the label."""
    task, picked = str(chosen["task"].iloc[0]), pick_cases(chapter.cases, chosen)
    masks = {str(row.system): predicted_masks(home / str(row.run), [case for case, _ in picked], data_dir) for row in chosen.itertuples()}
    examples = []
    for case, rank in picked:
        scan, label, z = slices(task, case, data_dir)
        shown = {system: view(mask[case], z, task, data_dir) for system, mask in masks.items()}
        examples.append(Example(task, case, rank, scan, label, shown, case_dice(chapter.cases, chosen, case)))
    return examples


def slices(task: str, case: str, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """Scan (first channel) and foreground of a case on the axial slice that holds most of the label, and that slice's index.

    A picture is shown whole, and its index is 0.

    Raises:
        TaskError: the task's data or this case are absent.
    """
    import nibabel

    from mvl.datasets.tasks import find_task, list_cases

    known = find_task(task, data_dir)
    files = {c.case_id: c for c in list_cases(known, data_dir)}
    if case not in files:
        raise TaskError(f"{task}: case {case} is not on disk; run `mvl verify {task}`")
    if known.dims == 2:
        from mvl.datasets.planes import read_plane

        image, mask, _ = read_plane(known, files[case])
        return view(image[0], 0, task, data_dir), view(mask > 0, 0, task, data_dir), 0
    label = np.asarray(nibabel.nifti1.load(files[case].label).dataobj) > 0
    scan = np.asarray(nibabel.nifti1.load(files[case].image).dataobj, dtype=np.float32)
    z = int(label.sum(axis=(0, 1)).argmax())
    return (scan[..., 0] if scan.ndim == 4 else scan)[..., z], label[..., z], z


def view(array: np.ndarray, z: int, task: str, data_dir: Path | None = None) -> np.ndarray:
    """What a figure shows of an array on the case's own grid, first axis to the right and second upwards: slice `z`, or the whole picture."""
    from mvl.datasets.tasks import find_task

    if array.ndim == 3:
        return array[..., z]
    return array if find_task(task, data_dir).layout == "slices" else array[::-1].T


def case_dice(cases: pd.DataFrame, chosen: pd.DataFrame, case: str) -> dict[str, float]:
    """Dice of one case by system, as recorded."""
    keys = ["task", "system", "fraction", "fold", "seed"]
    rows = cases.merge(chosen[keys], on=keys)
    return {str(row.system): float(row.dice) for row in rows[rows["case"] == case].itertuples()}


def predicted_masks(folder: Path, cases: Sequence[str], data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Foreground mask on the scan's own grid, by case."""
    import torch

    from mvl.datasets.loaders import CaseStore
    from mvl.datasets.tasks import find_task
    from mvl.evaluate import class_masks
    from mvl.objective import predict_probabilities
    from mvl.train import load_run

    config = runs.read_config(folder)
    store, model, masks = CaseStore(find_task(config.task, data_dir), tuple(cases), config.data, data_dir), load_run(folder), {}
    for index, case in enumerate(cases):
        with torch.no_grad():
            probabilities = predict_probabilities(model, store.get(index)[0][None])
        masks[case] = np.any(class_masks(np.asarray(store.to_native(index, probabilities[0]))), axis=0)
    return masks


def packed(examples: Sequence[Example], chosen: pd.DataFrame) -> bytes:
    """What the networks said of the examples as one npz: a mask per arm, and which weights, cases and scores; nothing of the scans."""
    arrays: dict[str, np.ndarray] = {}
    for i, example in enumerate(examples):
        arrays |= {f"{i}_mask_{system}": np.asarray(mask, dtype=bool) for system, mask in example.predictions.items()}
    facts = {"weights": dict(zip(chosen["run"], chosen["weights_sha256"])),
             "examples": [{"task": e.task, "case": e.case, "rank": e.rank, "dice": e.dice} for e in examples]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_examples(path: Path, chosen: pd.DataFrame, data_dir: Path | None = None) -> list[Example]:
    """The kept examples of these runs' arms over their scans; none where the file is absent or was drawn by other weights.

    Raises:
        TaskError: the scans are absent.
    """
    if not path.is_file():
        return []
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        if any(facts["weights"].get(row.run) != row.weights_sha256 for row in chosen.itertuples()):
            return []
        systems = [str(s) for s in chosen["system"]]
        return [Example(e["task"], e["case"], e["rank"], *slices(e["task"], e["case"], data_dir)[:2],
                        {s: kept[f"{i}_mask_{s}"] for s in systems}, {s: e["dice"][s] for s in systems})
                for i, e in enumerate(facts["examples"])]
