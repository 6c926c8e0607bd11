"""Best, median and worst test case on one slice, with every arm's mask: drawn from weights once, kept as a small file beside the tables."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mvl import runs
from mvl.datasets.tasks import TaskError
from mvl.figures import Example
from mvl.report import Chapter

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
    kept = read_examples(chapter.results_dir / chapter.study / FILE, chosen)
    if kept:
        return kept, []
    homes = [chapter.results_dir, runs.default_results_dir()]
    home = next((h for h in homes if all(has_weights(h / row.run, row.weights_sha256) for row in chosen.itertuples())), None)
    if home is None:
        return [], [f"example segmentations need the weights of {', '.join(chosen['run'])}; `mvl study run {chapter.study}` makes them"]
    try:
        examples = draw_examples(chapter, chosen, home, data_dir)
    except TaskError as error:
        return [], [f"example segmentations need the scans: {error}"]
    if not chapter.published:
        runs.atomic_write(chapter.results_dir / chapter.study / FILE, packed(examples, chosen))
    return examples, []


def save_examples(chapter: Chapter, data_dir: Path | None = None) -> Path | None:
    """Keep the examples beside the tables (published records come without weights); None where they cannot be drawn."""
    examples, _ = load_examples(chapter, data_dir)
    path = chapter.results_dir / chapter.study / FILE
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
    """(case, rank): best, median and worst by the mean Dice of the chosen runs, ties broken by name."""
    first = chosen.iloc[0]
    same = cases[(cases["fold"] == first["fold"]) & (cases["seed"] == first["seed"]) & (cases["fraction"] == first["fraction"])]
    means = same.groupby("case")["dice"].mean().reset_index().sort_values(["dice", "case"], ascending=[False, True])
    order = [str(case) for case in means["case"]]
    return list(dict(zip((order[0], order[len(order) // 2], order[-1]), RANKS)).items())


def draw_examples(chapter: Chapter, chosen: pd.DataFrame, home: Path, data_dir: Path | None = None) -> list[Example]:
    """Predict the picked cases with every chosen run and keep the axial slice that holds most of the label."""
    import nibabel

    from mvl.datasets.tasks import find_task, list_cases

    task, picked = find_task(str(chosen["task"].iloc[0])), pick_cases(chapter.cases, chosen)
    masks = {str(row.system): predicted_masks(home / str(row.run), [case for case, _ in picked], data_dir) for row in chosen.itertuples()}
    files, examples = {case.case_id: case for case in list_cases(task, data_dir)}, []
    for case, rank in picked:
        label = np.asarray(nibabel.nifti1.load(files[case].label).dataobj) > 0
        scan = np.asarray(nibabel.nifti1.load(files[case].image).dataobj, dtype=np.float32)
        scan = scan[..., 0] if scan.ndim == 4 else scan
        z = int(label.sum(axis=(0, 1)).argmax())
        scores = case_dice(chapter.cases, chosen, case)
        examples.append(Example(task.name, case, rank, scan[..., z], label[..., z], {s: m[case][..., z] for s, m in masks.items()}, scores))
    return examples


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
    store, model, masks = CaseStore(find_task(config.task), tuple(cases), config.data, data_dir), load_run(folder), {}
    for index, case in enumerate(cases):
        with torch.no_grad():
            probabilities = predict_probabilities(model, store.get(index)[0][None])
        masks[case] = np.any(class_masks(np.asarray(store.to_native(index, probabilities[0]))), axis=0)
    return masks


def packed(examples: Sequence[Example], chosen: pd.DataFrame) -> bytes:
    """The examples as one npz: scans as bytes between their 0.5 and 99.5 percentiles, masks as bits of bool."""
    arrays: dict[str, np.ndarray] = {}
    for i, example in enumerate(examples):
        low, high = np.percentile(example.scan, [0.5, 99.5])
        arrays[f"{i}_scan"] = np.clip(255 * (example.scan - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
        arrays[f"{i}_label"] = np.asarray(example.label, dtype=bool)
        arrays |= {f"{i}_mask_{system}": np.asarray(mask, dtype=bool) for system, mask in example.predictions.items()}
    facts = {"weights": dict(zip(chosen["run"], chosen["weights_sha256"])),
             "examples": [{"task": e.task, "case": e.case, "rank": e.rank, "dice": e.dice} for e in examples]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_examples(path: Path, chosen: pd.DataFrame) -> list[Example]:
    """The kept examples of these runs' arms; none where the file is absent or was drawn by other weights."""
    if not path.is_file():
        return []
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        if any(facts["weights"].get(row.run) != row.weights_sha256 for row in chosen.itertuples()):
            return []
        systems = [str(s) for s in chosen["system"]]
        return [Example(e["task"], e["case"], e["rank"], kept[f"{i}_scan"], kept[f"{i}_label"], {s: kept[f"{i}_mask_{s}"] for s in systems},
                        {s: e["dice"][s] for s in systems}) for i, e in enumerate(facts["examples"])]
