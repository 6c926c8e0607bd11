"""Persons in the Decathlon's hippocampus files: what the numbers of the files say, and what it does
to the test scores.

`python -m mvl.evidence.persons` measures the scans that say how alike neighbours are and writes
`data/persons.csv`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from mvl.core import files, run_folder
from mvl.core.config import ROOT
from mvl.evidence.topics import HYBRID, VIT

TASK = "Task04_Hippocampus"
RECORD = ROOT / "data" / "persons.csv"


def person_of(case: str) -> int:
    """The number of the person of a scan: files 2k - 1 and 2k are the two sides of person k."""
    found = re.search(r"_(\d+)$", case)
    if found is None:
        raise ValueError(f"{case}: the name of a hippocampus scan ends in its number")
    return (int(found[1]) + 1) // 2


def pairs(cases: list[str]) -> int:
    """How many persons have both sides among the cases."""
    numbers = [person_of(case) for case in cases]
    return len(numbers) - len(set(numbers))


def likeness(values: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Correlations over neighbours in number, those of one person by the rule and those of two.

    values: index number of the file; columns volume and intensity.
    """
    out = {}
    for words, first in (("one person", 1), ("two persons", 0)):
        left = [n for n in values.index if n % 2 == first and n + 1 in values.index]
        right = [n + 1 for n in left]
        out[words] = {"pairs": float(len(left))} | {
            name: float(np.corrcoef(values.loc[left, name], values.loc[right, name])[0, 1])
            for name in ("volume", "intensity")
        }
    return out


def measure(task: str = TASK, data_dir: Path | None = None) -> pd.DataFrame:
    """Volume of the label in voxels and median intensity of each scan, by the number of its
    file."""
    import nibabel as nib

    from mvl.datasets.task_data import open_task

    rows = {}
    for case in open_task(task, data_dir).cases:
        label = nib.Nifti1Image.from_filename(case.label).get_fdata() > 0
        scan = nib.Nifti1Image.from_filename(case.image).get_fdata()
        number = int(re.findall(r"\d+", case.case_id)[-1])
        rows[number] = {"volume": float(label.sum()), "intensity": float(np.median(scan))}
    return pd.DataFrame(rows).T.rename_axis("scan")


def other_side_trained(fold: int) -> dict[str, bool]:
    """Say of each test case of a fold of the committed split if its other side is in training."""
    from mvl.datasets.splits import read_split, select

    path = ROOT / "data" / "splits" / f"{TASK}.json"
    split = select(read_split(path), fold, 1.0, path)
    trained = {person_of(case) for case in split.train}
    return {case: person_of(case) in trained for case in split.test}


def effect(cases: pd.DataFrame) -> dict[str, float]:
    """Test cases with the other side in training, all, and the hybrid's mean Dice minus that of the
    ViT with and without.

    cases: rows of the foreground with system, fraction, fold, seed, case, dice.
    """
    rows = cases[cases["system"].isin((HYBRID, VIT)) & (cases["fraction"] == 1.0)]
    dice = rows.set_index(["system", "fold", "seed", "case"])["dice"]
    gain = (dice[HYBRID] - dice[VIT]).dropna()
    folds = {int(fold): other_side_trained(int(fold)) for fold in rows["fold"].unique()}
    beside = np.array([folds[fold][case] for fold, _, case in gain.index], dtype=bool)
    flags = [flag for found in folds.values() for flag in found.values()]
    return {
        "beside": float(sum(flags)),
        "all": float(len(flags)),
        "with": float(gain[beside].mean()),
        "without": float(gain[~beside].mean()),
    }


def sentence() -> str:
    """What is known of persons in the hippocampus data, and its effect on the records where they
    are there."""
    like = likeness(pd.read_csv(RECORD, index_col="scan"))
    names = [case for fold in range(10) for case in other_side_trained(fold)]
    both = pairs(names)
    one, two = like["one person"], like["two persons"]
    return (
        "**The numbers of the files tell who is who**: files 2k - 1 and 2k are the two sides of"
        f" one person. Over the {one['pairs']:.0f} such pairs the label's volume correlates with r"
        f" = {one['volume']:.2f} and the scan's median intensity with r = {one['intensity']:.2f};"
        f" over the {two['pairs']:.0f} pairs 2k and 2k + 1 it is {two['volume']:.2f} and"
        f" {two['intensity']:.2f}. So {2 * both} of the {len(names)} scans form {both} pairs, and"
        f" there are {len(names) - both} persons. The first study's splits do not keep them"
        f" together. {recorded_effect()}New studies split by person"
        " (`data/splits/Task04_Hippocampus_persons.json`)."
    )


def recorded_effect() -> str:
    """What sharing persons between training and test cases did to the published hippocampus
    records; empty without them."""
    from mvl.study.tables import read_cases

    if not (run_folder.records_dir() / "hippocampus" / "cases.csv").is_file():
        return ""
    found = effect(read_cases("hippocampus", run_folder.records_dir()))
    return (
        f"{found['beside']:.0f} of the {found['all']:.0f} test scans of folds 0 to 4 have the other"
        f" side in training. Over these the hybrid differs from the ViT by"
        f" {100 * found['with']:+z.2f} Dice points, over the others by"
        f" {100 * found['without']:+z.2f}. "
    )


if __name__ == "__main__":
    files.atomic_write(RECORD, measure().to_csv(lineterminator="\n"))
