"""Best, median and worst test case: every arm's whole mask, and one slice of it over the scan.

Masks are drawn from weights once and kept as a small file beside the tables; scan and label are
read from the data each time, never kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.core import files, run_folder
from mvl.core.columns import KEYS_IN_STUDY
from mvl.core.command_lines import command_line
from mvl.datasets.task import TaskError
from mvl.evidence import predicted
from mvl.evidence.chapter import Chapter, open_chapter
from mvl.evidence.example_cases import (
    STUDY_WORST,
    common_runs,
    pick_cases,
    same_arms,
    study_worst,
    used_runs,
)
from mvl.evidence.predicted import (
    best_slice,
    first_with_weights,
    predicted_masks,
    read_volume,
    relative,
    view,
)

FILE = "examples.npz"


@dataclass(frozen=True)
class Drawn:
    """What the networks said of one test case, whole: a mask per arm on the scan's own grid, and
    nothing of the scan."""

    task: str
    "Task name."
    case: str
    "Case id."
    rank: str
    "One of `RANKS` by the Dice of the first arm, or `STUDY_WORST`."
    z: int
    "Axial slice that holds most of the label; 0 for a picture."
    affine: tuple[tuple[float, ...], ...]
    "The scan's affine, 4 x 4, mm; the identity for a picture."
    predictions: dict[str, np.ndarray]
    "Boolean mask by system name."
    dice: dict[str, float]
    "Dice of the whole case by system name."
    fold: int = 0
    seed: int = 0
    "Of the runs that drew the masks."


def load_examples(chapter: Chapter) -> tuple[list[Example], list[str]]:
    """The chapter's examples on one slice over their scans, and what is missing for them, one of
    the two being empty."""
    drawn, holes = load_drawn(chapter)
    try:
        return [example(one) for one in drawn], holes
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]


def load_drawn(
    chapter: Chapter, data_dir: Path | None = None, home: Path | None = None
) -> tuple[list[Drawn], list[str]]:
    """The chapter's whole masks and what is missing for them, one of the two being empty.

    They are read from `<results_dir>/<study>/examples.npz` where that was made by the recorded
    weights; else made anew where weights (in `home`, the results' or the clone's own runs) and data
    are at hand.
    """
    if chapter.done.empty:
        return [], ["no finished run to draw predictions of"]
    chosen = common_runs(chapter.done)
    path = chapter.folder / FILE
    if kept := read_drawn(path, chosen, chapter.done):
        return kept, []
    homes = (home, chapter.results_dir, run_folder.default_results_dir())
    found = first_with_weights(homes, chosen)
    if found is None:
        where = None if chapter.published else chapter.results_dir
        again = command_line("study", "run", chapter.study, results_dir=where)
        return [], [
            f"example segmentations need the weights of {', '.join(chosen['run'])}; `{again}` makes"
            " them"
        ]
    try:
        drawn = draw(chapter, chosen, found, data_dir)
    except TaskError as error:
        return [], [f"example segmentations need the scans: {relative(error)}"]
    if not chapter.published:
        write_drawn(chapter, drawn)
    return drawn, []


def write_drawn(chapter: Chapter, drawn: Sequence[Drawn]) -> Path:
    """Keep masks, and which runs they are of, beside the chapter's tables."""
    runs = used_runs(chapter.done, [(one.fold, one.seed) for one in drawn])
    files.atomic_write(chapter.folder / FILE, packed(drawn, runs))
    return chapter.folder / FILE


def save_examples(chapter: Chapter, home: Path | None = None) -> Path | None:
    """Keep the masks beside the tables (published records come without weights); None where they
    cannot be drawn."""
    drawn, _ = load_drawn(chapter, home=home)
    return write_drawn(chapter, drawn) if drawn else None


def draw(
    chapter: Chapter, chosen: pd.DataFrame, home: Path, data_dir: Path | None = None
) -> list[Drawn]:
    """Predict the picked cases with every chosen run, and the study's worst case with its own runs
    where their weights are at hand."""
    picked = pick_cases(chapter.cases, chosen)
    out = _drawn_by(chapter, chosen, picked, home, data_dir)
    worst = study_worst(chapter.cases, chosen)
    if worst["case"] not in dict(picked):
        runs = same_arms(chapter.done, chosen, int(worst["fold"]), int(worst["seed"]))
        # another run's weights may not be kept; then the page names the case without showing it
        if len(runs) == len(chosen) and first_with_weights([home], runs):
            case = (str(worst["case"]), STUDY_WORST)
            out += _drawn_by(chapter, runs, [case], home, data_dir)
    return out


def _drawn_by(
    chapter: Chapter,
    runs: pd.DataFrame,
    picked: Sequence[tuple[str, str]],
    home: Path,
    data_dir: Path | None,
) -> list[Drawn]:
    """Predict cases of one fold by its runs."""
    first = runs.iloc[0]
    task, fold, seed = str(first["task"]), int(first["fold"]), int(first["seed"])
    masks = {
        str(row.system): predicted_masks(
            home / str(row.run), [case for case, _ in picked], data_dir
        )
        for row in runs.itertuples()
    }
    out = []
    for case, rank in picked:
        _, label, affine = read_volume(task, case, data_dir)
        shown = {system: mask[case] for system, mask in masks.items()}
        dice = case_dice(chapter.cases, runs, case)
        place = tuple(map(tuple, affine.tolist()))
        out.append(Drawn(task, case, rank, best_slice(label), place, shown, dice, fold, seed))
    return out


def example(drawn: Drawn, data_dir: Path | None = None) -> Example:
    """One slice of a drawn case over its scan.

    Raises:
        TaskError: the scan is absent.
    """
    scan, label, _ = read_volume(drawn.task, drawn.case, data_dir)

    def flat(array: np.ndarray) -> np.ndarray:
        return view(array, drawn.z, drawn.task, data_dir)

    shown = {system: flat(mask) for system, mask in drawn.predictions.items()}
    return Example(drawn.task, drawn.case, drawn.rank, flat(scan), flat(label), shown, drawn.dice)


def case_dice(cases: pd.DataFrame, chosen: pd.DataFrame, case: str) -> dict[str, float]:
    """Dice of one case by system, as recorded."""
    rows = cases.merge(chosen[KEYS_IN_STUDY], on=KEYS_IN_STUDY)
    return {str(row.system): float(row.dice) for row in rows[rows["case"] == case].itertuples()}


def packed(drawn: Sequence[Drawn], chosen: pd.DataFrame) -> bytes:
    """What the networks said of the cases as one npz: a mask of bits per arm, and which weights,
    cases and scores; nothing of the scans."""
    arrays = {
        f"{i}_bits_{system}": np.packbits(mask)
        for i, one in enumerate(drawn)
        for system, mask in one.predictions.items()
    }

    facts = {
        "weights": dict(zip(chosen["run"], chosen["weights_sha256"])),
        "ranked_by": str(chosen["system"].iloc[0]),
        "examples": [
            {name: value for name, value in vars(one).items() if name != "predictions"}
            | {"shape": list(next(iter(one.predictions.values())).shape)}
            for one in drawn
        ],
    }
    return predicted.packed(arrays, facts)


def _unpacked(bits: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The mask of this shape in the bits of `packed`, whose last byte is padded."""
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def read_drawn(path: Path, chosen: pd.DataFrame, done: pd.DataFrame | None = None) -> list[Drawn]:
    """The kept masks of these runs' arms; none where the file is absent, or was drawn by other
    weights than those of `chosen`, or of `done`, or ranked by another arm."""
    if not path.is_file():
        return []
    with np.load(path) as kept:
        facts = json.loads(str(kept["facts"]))
        others = any(
            facts["weights"].get(row.run) != row.weights_sha256 for row in chosen.itertuples()
        )
        if done is not None:
            recorded = dict(zip(done["run"], done["weights_sha256"]))
            others |= any(recorded.get(run, sha) != sha for run, sha in facts["weights"].items())
        if others or facts.get("ranked_by") != chosen["system"].iloc[0]:
            return []

        systems = [str(s) for s in chosen["system"]]
        return [
            Drawn(
                e["task"],
                e["case"],
                e["rank"],
                e["z"],
                tuple(map(tuple, e["affine"])),
                {s: _unpacked(kept[f"{i}_bits_{s}"], e["shape"]) for s in systems},
                {s: e["dice"][s] for s in systems},
                # kept masks of the common fold and seed alone once did not name them
                e.get("fold", int(chosen["fold"].iloc[0])),
                e.get("seed", int(chosen["seed"].iloc[0])),
            )
            for i, e in enumerate(facts["examples"])
        ]


def main(words: Sequence[str] | None = None) -> None:
    """`python -m mvl.evidence.example_masks STUDY`: draws the published study's masks and measures
    their roughness, and keeps both beside its tables."""
    from mvl.evidence.chapter import covered
    from mvl.evidence.mask_roughness import save_masks

    parser = argparse.ArgumentParser(
        "python -m mvl.evidence.example_masks",
        description="keep the example masks and their roughness beside the tables",
    )
    parser.add_argument("study")
    parser.add_argument(
        "--weights", type=Path, help="folder of runs that holds the weights (default: data/runs)"
    )
    args = parser.parse_args(words)
    topics = covered(args.study)
    chapter = open_chapter(
        "qualitative" if "qualitative" in topics else topics[0],
        args.study,
        run_folder.records_dir(),
    )
    print(
        save_examples(chapter, home=args.weights),
        save_masks(chapter, home=args.weights, folds=range(10)),
    )


@dataclass(frozen=True)
class Example:
    """One test case on one slice: scan, label and each system's mask, all 2-D and of one shape."""

    task: str
    "Task name; phantoms are marked in the figure."
    case: str
    "Case id."
    rank: str
    "best, median or worst."
    scan: np.ndarray
    "Intensities of the slice."
    label: np.ndarray
    "Label's mask."
    predictions: dict[str, np.ndarray]
    "Mask by system name."
    dice: dict[str, float]
    "Dice of the whole case on its own grid by system name."


if __name__ == "__main__":
    main()
