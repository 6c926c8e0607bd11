"""Best, median and worst test case: every arm's whole mask, and one slice of it over the scan.

Masks are drawn from weights once and kept as a small file beside the tables; scan and label are read from the data each time, never kept.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mvl import runs
from mvl.chapters import Chapter, open_chapter
from mvl.config import ROOT
from mvl.datasets.tasks import TaskError
from mvl.figures import Example

FILE = "examples.npz"
RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Drawn:
    """What the networks said of one test case, whole: a mask per arm on the scan's own grid, and nothing of the scan."""

    task: str
    "Task name."
    case: str
    "Case id."
    rank: str
    "best, median or worst by the Dice of the first arm."
    z: int
    "Axial slice that holds most of the label; 0 for a picture."
    affine: tuple[tuple[float, ...], ...]
    "The scan's affine, 4 x 4, mm; the identity for a picture."
    predictions: dict[str, np.ndarray]
    "Boolean mask by system name."
    dice: dict[str, float]
    "Dice of the whole case by system name."


def load_examples(chapter: Chapter, data_dir: Path | None = None) -> tuple[list[Example], list[str]]:
    """The chapter's examples on one slice over their scans, and what is missing for them, one of the two being empty."""
    drawn, holes = load_drawn(chapter, data_dir)
    try:
        return [example(one, data_dir) for one in drawn], holes
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]


def load_drawn(chapter: Chapter, data_dir: Path | None = None, home: Path | None = None) -> tuple[list[Drawn], list[str]]:
    """The chapter's whole masks and what is missing for them, one of the two being empty.

    They are read from `<results_dir>/<study>/examples.npz` where that was made by the recorded weights; else made anew where weights
    (in `home`, the results' or the clone's own runs) and data are at hand.
    """
    if chapter.done.empty:
        return [], ["no finished run to draw predictions of"]
    chosen = common_runs(chapter.done)
    path = chapter.folder / FILE
    if kept := read_drawn(path, chosen):
        return kept, []
    homes = [h for h in (home, chapter.results_dir, runs.default_results_dir()) if h]
    found = next((h for h in homes if all(has_weights(h / row.run, row.weights_sha256) for row in chosen.itertuples())), None)
    if found is None:
        return [], [f"example segmentations need the weights of {', '.join(chosen['run'])}; `mvl study run {chapter.study}` makes them"]
    try:
        drawn = draw(chapter, chosen, found, data_dir)
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]
    if not chapter.published:
        runs.atomic_write(path, packed(drawn, chosen))
    return drawn, []


def relative(error: Exception) -> str:
    """An error's text without the place of this clone."""
    return str(error).replace(f"{ROOT}/", "")


def save_examples(chapter: Chapter, data_dir: Path | None = None, home: Path | None = None) -> Path | None:
    """Keep the masks beside the tables (published records come without weights); None where they cannot be drawn."""
    drawn, _ = load_drawn(chapter, data_dir, home)
    path = chapter.folder / FILE
    if drawn:
        runs.atomic_write(path, packed(drawn, common_runs(chapter.done)))
    return path if drawn else None


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
    """(case, rank): best, median and worst by the Dice of the first chosen run, ties broken by name; of cases with a label where any has one."""
    first = chosen.iloc[0]
    labelled = cases[cases["voxels_label"] > 0] if "voxels_label" in cases else cases
    cases = cases if labelled.empty else labelled
    same = cases[np.logical_and.reduce([cases[key] == first[key] for key in ("task", "system", "fraction", "fold", "seed")])]
    order = [str(case) for case in same.sort_values(["dice", "case"], ascending=[False, True])["case"]]
    return list(dict(zip((order[0], order[len(order) // 2], order[-1]), RANKS)).items())


def draw(chapter: Chapter, chosen: pd.DataFrame, home: Path, data_dir: Path | None = None) -> list[Drawn]:
    """Predict the picked cases with every chosen run."""
    task, picked = str(chosen["task"].iloc[0]), pick_cases(chapter.cases, chosen)
    masks = {str(row.system): predicted_masks(home / str(row.run), [case for case, _ in picked], data_dir) for row in chosen.itertuples()}
    out = []
    for case, rank in picked:
        _, label, affine = read_volume(task, case, data_dir)
        z = int(label.sum(axis=(0, 1)).argmax()) if label.ndim == 3 else 0
        shown = {system: mask[case] for system, mask in masks.items()}
        out.append(Drawn(task, case, rank, z, tuple(map(tuple, affine.tolist())), shown, case_dice(chapter.cases, chosen, case)))
    return out


def example(drawn: Drawn, data_dir: Path | None = None) -> Example:
    """One slice of a drawn case over its scan.

    Raises:
        TaskError: the scan is absent.
    """
    scan, label, _ = read_volume(drawn.task, drawn.case, data_dir)
    flat = lambda array: view(array, drawn.z, drawn.task, data_dir)
    shown = {system: flat(mask) for system, mask in drawn.predictions.items()}
    return Example(drawn.task, drawn.case, drawn.rank, flat(scan), flat(label), shown, drawn.dice)


def read_volume(task: str, case: str, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scan (first channel), foreground and affine of a case on its own grid; of a picture its array, and the identity.

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
        return image[0], mask > 0, np.eye(4)
    file = nibabel.nifti1.load(files[case].label)
    scan = np.asarray(nibabel.nifti1.load(files[case].image).dataobj, dtype=np.float32)
    return scan[..., 0] if scan.ndim == 4 else scan, np.asarray(file.dataobj) > 0, np.asarray(file.affine, dtype=np.float64)


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
    from mvl.predictor import Predictor, load_run

    config = runs.read_config(folder)
    store, masks = CaseStore(find_task(config.task, data_dir), tuple(cases), config.data, data_dir), {}
    predictor = Predictor(load_run(folder), config)
    for index, case in enumerate(cases):
        with torch.no_grad():
            probabilities = predict_probabilities(predictor, store.get(index)[0][None]).cpu()
        masks[case] = np.any(class_masks(np.asarray(store.to_native(index, probabilities[0]))), axis=0)
    return masks


def packed(drawn: Sequence[Drawn], chosen: pd.DataFrame) -> bytes:
    """What the networks said of the cases as one npz: a mask of bits per arm, and which weights, cases and scores; nothing of the scans."""
    arrays = {f"{i}_bits_{system}": np.packbits(mask) for i, one in enumerate(drawn) for system, mask in one.predictions.items()}
    shape = lambda one: list(next(iter(one.predictions.values())).shape)
    facts = {"weights": dict(zip(chosen["run"], chosen["weights_sha256"])), "ranked_by": str(chosen["system"].iloc[0]),
             "examples": [{"task": e.task, "case": e.case, "rank": e.rank, "z": e.z, "affine": e.affine, "dice": e.dice, "shape": shape(e)}
                          for e in drawn]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, sort_keys=True)), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_drawn(path: Path, chosen: pd.DataFrame) -> list[Drawn]:
    """The kept masks of these runs' arms; none where the file is absent, or was drawn by other weights or ranked by another arm."""
    if not path.is_file():
        return []
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        others = any(facts["weights"].get(row.run) != row.weights_sha256 for row in chosen.itertuples())
        if others or facts.get("ranked_by") != chosen["system"].iloc[0]:
            return []
        bits = lambda name, shape: np.unpackbits(kept[name], count=int(np.prod(shape))).reshape(shape).astype(bool)
        systems = [str(s) for s in chosen["system"]]
        return [Drawn(e["task"], e["case"], e["rank"], e["z"], tuple(map(tuple, e["affine"])),
                      {s: bits(f"{i}_bits_{s}", e["shape"]) for s in systems}, {s: e["dice"][s] for s in systems})
                for i, e in enumerate(facts["examples"])]


def main(words: Sequence[str] | None = None) -> None:
    """`python -m mvl.examples STUDY`: draws the published study's masks and measures their roughness, and keeps both beside its tables."""
    from mvl.chapters import covered
    from mvl.roughness import save_masks

    parser = argparse.ArgumentParser("python -m mvl.examples", description="keep the example masks and their roughness beside the tables")
    parser.add_argument("study")
    parser.add_argument("--weights", type=Path, help="folder of runs that holds the weights (default: data/runs)")
    args = parser.parse_args(words)
    topics = covered(args.study)
    chapter = open_chapter("qualitative" if "qualitative" in topics else topics[0], args.study, runs.records_dir())
    print(save_examples(chapter, home=args.weights), save_masks(chapter, home=args.weights, folds=range(10)))


if __name__ == "__main__":
    main()
