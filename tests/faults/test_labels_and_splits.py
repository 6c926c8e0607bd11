"""Group D: labels that are none, pairs that do not fit, and every way in which a case could be on
two sides of a split."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvl.core import files, run_folder
from mvl.core.config import Config, DataConfig
from mvl.core.progress import Interrupted
from mvl.datasets import preflight
from mvl.datasets.case_store import CaseStore
from mvl.datasets.decathlon import read_cases
from mvl.datasets.registry import find_task
from mvl.datasets.splits import Split, load_split, make_split, read_split, select, split_path
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.datasets.verify import verify
from mvl.training import loop
from mvl.training.run import train_run
from tests.faults.figures import record_figure
from tests.faults.test_scan_files import NAME, Change, refused, voxels

ROWS = [f"D{k}" for k in range(1, 14)]
NOT_HERE: dict[str, str] = {}
ELSEWHERE = {"D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D12", "D13"}
DATA = DataConfig(img_size=(8, 8, 8))


def value(number: float, kind: type) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(kind)
        array[0, 0, 0] = number
        return array

    if kind is not np.int64:
        return voxels(change)

    def write(path: Path) -> None:
        import gzip

        import nibabel

        image = nibabel.Nifti1Image(
            change(np.asarray(nibabel.load(path).dataobj)), np.eye(4), dtype=np.int64
        )
        path.write_bytes(gzip.compress(image.to_bytes()))

    return write


LABELS: dict[str, tuple[Change, str]] = {
    "D1-999": (
        value(0.999, np.float32),
        r"1 values are not labels of Toy \(0, 1, 2\): 0.999 \(1 voxels\)",
    ),
    "D1-half": (value(2.5, np.float32), r"2.5 \(1 voxels\)"),
    "D1-negative": (value(-1, np.int16), r"-1 \(1 voxels\)"),
    "D1-255": (value(255, np.uint8), r"255 \(1 voxels\)"),
    "D1-huge": (value(2**40 + 1, np.int64), r"1.09951e\+12"),
    "D1-nan": (value(np.nan, np.float32), "nan"),
    "D2-shape": (voxels(lambda v: v[:-2]), "label grid .* differs from the image's"),
    "D3-flipped": (voxels(lambda v: v, np.diag([-1.0, -1, 1, 1])), "label lies up to 42.4 mm away"),
    "D3-shifted": (
        voxels(lambda v: v, np.array([[1.0, 0, 0, 500], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        "up to 500 mm away",
    ),
    "D3-spacing": (voxels(lambda v: v, np.diag([2.0, 2, 2, 1])), "label lies up to .* mm away"),
}


def test_every_row_is_here() -> None:
    assert {row.partition("-")[0] for row in LABELS} | ELSEWHERE | set(NOT_HERE) == set(ROWS)


@pytest.fixture
def toy(case_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a task without a manifest, so that only a look at its files finds what is
    wrong."""
    (case_folder / "manifest.json").unlink()
    monkeypatch.setattr(preflight, "_SOUND", {})
    return case_folder


def leak_of(folder: Path, run: Path) -> str:
    """What the start of a run says of fold 0 of the task."""
    task = find_task("Toy", folder.parent)
    split = load_split(TaskData(task, folder.parent), 0, 1.0)
    with pytest.raises(TaskError) as caught:
        preflight.check_inputs(TaskData(task, folder.parent), split, run)
    return str(caught.value)


@pytest.mark.parametrize("row", LABELS)
def test_a_label_is_refused(row: str, toy: Path, tree_hash: Callable[[Path], str]) -> None:
    change, pattern = LABELS[row]
    path = toy / "labelsTr" / f"{NAME}.nii.gz"
    change(path)
    refused(toy, path, pattern, tree_hash)


@pytest.mark.parametrize("row", ["D4"])
def test_swapped_image_and_label(row: str, toy: Path) -> None:
    image, label = (toy / kind / f"{NAME}.nii.gz" for kind in ("imagesTr", "labelsTr"))
    scan, drawn = image.read_bytes(), label.read_bytes()
    image.write_bytes(drawn)
    label.write_bytes(scan)
    found = {finding.path: finding.fault for finding in verify(open_task("Toy", toy.parent))}
    assert (
        set(found) == {str(image), str(label)}
        and "swapped" in found[str(image)]
        and "not labels" in found[str(label)]
    )


@pytest.mark.parametrize("row", ["D5"])
def test_an_empty_label_is_a_healthy_case_only_in_your_own_data(row: str, toy: Path) -> None:
    """A registered task has none; in your own it stays in, and every table says its status."""
    path = toy / "labelsTr" / f"{NAME}.nii.gz"
    voxels(lambda v: v * 0)(path)
    own = find_task("Toy", toy.parent)
    assert verify(TaskData(own, toy.parent)) == []
    known = dataclasses.replace(own, licence="CC")
    assert [(f.path, f.fault) for f in verify(TaskData(known, toy.parent))] == [
        (str(path), "no foreground voxel")
    ]


def copied(folder: Path) -> None:
    """Give the first test case the voxels of a training case, packed otherwise."""
    import gzip

    split = load_split(open_task("Toy", folder.parent), 0, 1.0)
    for kind in ("imagesTr", "labelsTr"):
        source, target = (
            folder / kind / f"{case}.nii.gz" for case in (split.train[0], split.test[0])
        )
        target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))


def one_patient(folder: Path) -> None:
    """Say, after the split was dealt, that a training and a test case are of one patient."""
    split = load_split(open_task("Toy", folder.parent), 0, 1.0)
    path = folder / "dataset.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"patients": {split.train[0]: "p", split.test[0]: "p"}}
        )
    )


@pytest.mark.parametrize(
    ("row", "change", "pattern"),
    [
        (
            "D6",
            copied,
            (
                r"Toy: toy_\d+ \((train|test)\) and toy_\d+ \((train|test)\) hold the same scan"
                r" .*keep one .*delete .*Toy.json to deal anew"
            ),
        ),
        (
            "D7",
            one_patient,
            (
                r"dataset.json: toy_\d+ \((train|test)\) and toy_\d+ \((train|test)\) are of one"
                r" patient; correct .*to deal anew"
            ),
        ),
    ],
)
def test_a_scan_or_patient_on_two_sides_stops_the_run(
    row: str, change: Change, pattern: str, toy: Path, tmp_path: Path
) -> None:
    change(toy)
    assert re.search(pattern, leak_of(toy, tmp_path / "run"))


@pytest.mark.parametrize("row", ["D6-verify"])
def test_a_copy_is_listed_by_verify_too(row: str, toy: Path) -> None:
    copied(toy)
    assert any(
        "the same voxels as" in finding.fault for finding in verify(open_task("Toy", toy.parent))
    )


@pytest.mark.parametrize("row", ["D7-dealt"])
def test_patients_are_dealt_whole(row: str, toy: Path) -> None:
    path, pairs = toy / "dataset.json", {f"toy_{k:03d}": f"p{k // 2}" for k in range(4)}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patients": pairs}))
    task = find_task("Toy", toy.parent)
    with pytest.raises(
        TaskError, match=r"dataset.json: `patients` is neither a mapping of cases to patients nor"
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"patients": {"toy_000": 7}}))
        load_split(TaskData(task, toy.parent), 0, 1.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patients": pairs}))
    load_split(TaskData(task, toy.parent), 0, 1.0)
    split = read_split(split_path(TaskData(task, toy.parent)))
    home = {case: k for k, block in enumerate(split["blocks"]) for case in block}
    assert (
        home["toy_000"] == home["toy_001"]
        and home["toy_002"] == home["toy_003"]
        and "one patient" in split["rule"]
    )


@pytest.mark.parametrize("row", ["D8"])
def test_a_split_is_of_cases_before_anything_is_augmented(row: str, toy: Path) -> None:
    """The lists are the files' names, frozen by sha256; versions of a case exist only after (and
    the audit of the released code says so)."""
    task = find_task("Toy", toy.parent)
    split = load_split(TaskData(task, toy.parent), 0, 1.0)
    assert sorted((*split.train, *split.val, *split.test)) == [
        case.case_id for case in read_cases(toy)
    ]
    assert split == load_split(TaskData(task, toy.parent), 0, 1.0) and DataConfig().split == "folds"


@pytest.mark.parametrize("row", ["D9"])
def test_nothing_is_fitted_on_other_cases(row: str, toy: Path) -> None:
    """What the network sees of a case is the same bits alone, among others, and after the others
    have changed."""
    task = find_task("Toy", toy.parent)
    alone = CaseStore(TaskData(task, toy.parent), (NAME,), DATA).get(0)[0]
    voxels(lambda v: v * 3)(toy / "imagesTr" / "toy_004.nii.gz")
    among = CaseStore(TaskData(task, toy.parent), ("toy_004", NAME), DATA)
    among.get(0)
    assert among.get(1)[0].equal(alone)


@pytest.mark.parametrize("row", ["D10"])
def test_training_cannot_read_test_cases(
    row: str, toy: Path, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peek(trainer: loop.Trainer, progress: bool = True) -> None:
        test = load_split(TaskData(trainer.train_cases.task, toy.parent), 0, 1.0).test
        CaseStore(TaskData(trainer.train_cases.task, toy.parent), test, tiny.data).get(0)

    monkeypatch.setattr("mvl.training.run.fit", peek)
    with pytest.raises(
        TaskError,
        match=(
            r"toy_\d+.nii.gz: a test case, closed until the run's weights are chosen; train and"
            r" select on"
        ),
    ):
        train_run(tiny, tmp_path / "out", toy.parent, progress=False)
    assert run_folder.read_status(run_folder.run_dir(tmp_path / "out", tiny))["state"] == "failed"


@pytest.mark.parametrize("row", ["D10-exception"])
def test_only_the_audit_of_the_released_code_opens_them(row: str) -> None:
    sources = {
        path.name: path.read_text() for path in Path(preflight.__file__).parent.parent.rglob("*.py")
    }
    assert {name for name, text in sources.items() if re.search(r"\.opened = ", text)} == {
        "released_faults.py"
    }


@pytest.mark.parametrize("row", ["D11"])
def test_an_edited_split_is_refused(
    row: str, toy: Path, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two training cases swapped, which leaves every list whole; then a case removed."""

    def stop(trainer: loop.Trainer, progress: bool = True) -> None:
        raise Interrupted(15, "again")

    monkeypatch.setattr("mvl.training.run.fit", stop)
    with pytest.raises(Interrupted):
        train_run(tiny, tmp_path / "out", toy.parent, progress=False)
    path = split_path(open_task("Toy", toy.parent))
    split = json.loads(path.read_text())
    order = split["folds"][0]["train"]
    order[0], order[1] = order[1], order[0]
    path.write_text(json.dumps(split))
    with pytest.raises(
        files.RunError,
        match=(
            r"split.json: the run was begun with another split .*restore data/splits, or delete .*"
            r" to start anew"
        ),
    ):
        train_run(tiny, tmp_path / "out", toy.parent, progress=False)
    order.pop()
    path.write_text(json.dumps(split))
    with pytest.raises(
        TaskError,
        match=(
            r"Toy.json: case toy_\d+ and the training list of fold 0 do not belong together;"
            r" restore"
        ),
    ):
        load_split(open_task("Toy", toy.parent), 0, 1.0)


@pytest.mark.parametrize("row", ["D12"])
def test_no_such_fold(row: str, toy: Path) -> None:
    with pytest.raises(TaskError, match=r"Toy.json: no fold 10; folds are 0-9"):
        load_split(open_task("Toy", toy.parent), 10, 1.0)


@pytest.mark.parametrize("row", ["D13"])
def test_subsets_are_nested_and_repeatable(row: str) -> None:
    split = make_split("T", [f"c{k:03d}" for k in range(60)])
    for fold in range(10):
        tenth, third, whole = (
            select(split, fold, fraction, Path("T.json")).train for fraction in (0.1, 0.3, 1.0)
        )
        assert (
            tenth == whole[: len(tenth)]
            and third == whole[: len(third)]
            and len(tenth) < len(third) < len(whole)
        )
    assert make_split("T", [f"c{k:03d}" for k in range(60)]) == split


@pytest.mark.faults
def test_leaks_at_length(pristine_task: Path, tmp_path: Path) -> None:
    """Every training case copied over, or made one patient with, a test case, and each listed on
    two sides: 3 leaks a case."""
    folder = Path(shutil.copytree(pristine_task, tmp_path / "data" / "Toy"))
    task, refusals, count = find_task("Toy", folder.parent), 0, 0
    split = load_split(TaskData(task, folder.parent), 0, 1.0)
    sides = preflight.case_sides(TaskData(task), split)
    for case in (*split.train, *split.val):
        for keys in (
            {c: "scan" if c in (case, split.test[0]) else c for c in sides},
            {case: "p", split.test[0]: "p"},
        ):
            count += 1
            found = preflight.on_two_sides(sides, keys)
            refusals += case in found and split.test[0] in found
        count += 1
        try:
            preflight.case_sides(
                TaskData(task), Split(split.train, split.val, (*split.test, case), "x")
            )
        except TaskError as error:
            refusals += case in str(error)
    record_figure(
        "leakage",
        refusals,
        count,
        "a shared case, patient or voxel hash between train, val and test",
    )
    assert refusals == count
