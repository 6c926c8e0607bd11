"""External tests: a run is scored on every case of another task, sealed, collected, and never on
cases it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvl.cli.main import main
from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS
from mvl.core.config import load_config
from mvl.datasets.case_store import CaseStore
from mvl.datasets.registry import find_task
from mvl.datasets.task_data import TaskData
from mvl.study.status import state_of
from mvl.study.tables import collect, read_external, read_rows, record
from mvl.training.external import (
    ExternalError,
    check_fits,
    check_unseen,
    evaluate_on,
    image_digests,
)
from mvl.training.metrics import class_masks, dice
from mvl.training.run import train_run
from mvl.training.trained import load_run

STUDY = """
title: test
tasks: [ISIC2017_256]
grid: [{name: all, systems: [cmunext], folds: [0], seeds: [0]}]
data: {img_size: [128, 128]}
train: {train_epochs: 2, batch_size: 7, lr: 0.05}
"""


def write_pictures(folder: Path, names: list[str], seed: int) -> None:
    """Red blobs on green, of sizes like those of the tasks, with their masks."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:192, :256]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name in names:
        middle = rng.uniform(70, 120, 2)
        blob = np.hypot(rows - middle[0], columns - middle[1]) < rng.uniform(20, 50)
        picture = np.stack([40 + 160 * blob, 150 - 100 * blob, np.full_like(rows, 60)], -1)
        picture = np.clip(picture + rng.normal(0, 9, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(blob.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Coloured pictures under the names of two tasks, with split files in a folder of their own."""
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "ISIC2017_256", [f"ISIC_{i:07d}" for i in range(10)], 0)
    write_pictures(root / "PH2_256", ["IMD002", "IMD003", "IMD004"], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mvl.datasets.splits.split_path",
            lambda data, *_: root / "splits" / f"{data.task.name}.json",
        )
        patch.setattr(
            "mvl.datasets.preflight.split_path",
            lambda task, *_: root / "splits" / f"{task.name}.json",
        )
        yield root


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("study") / "skin.yaml"
    path.write_text(STUDY)
    return str(path)


@pytest.fixture(scope="module")
def trained(data: Path, study: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The results folder, and the folder of a CMUNeXt run on coloured pictures of 128 x 128."""
    results = tmp_path_factory.mktemp("runs")
    config = load_config(study, "ISIC2017_256", "cmunext")
    return results, train_run(config, results, data, progress=False)


def test_every_case_is_scored_sealed_collected_and_recorded(
    trained, data, study, tmp_path, capsys
) -> None:
    results, folder = trained
    first = (folder / "cases.csv").read_bytes()
    before = collect(study, results)
    assert not (before / "external.csv").exists() and read_external(study, results).empty
    assert main(["evaluate", str(folder), "--on", "ph2", "--data-dir", str(data)]) == 0
    path = folder / "cases_on_PH2_256.csv"
    assert capsys.readouterr().out == f"{path}: 3 rows\n"
    rows = read_rows(path, CASE_COLUMNS)
    assert [(row["task"], row["system"], row["case"]) for row in rows] == [
        ("PH2_256", "cmunext", f"IMD00{i}") for i in (2, 3, 4)
    ]
    assert (folder / "cases.csv").read_bytes() == first
    assert run_folder.read_status(folder)["files"][path.name] == files.sha256_file(path)

    table = read_external(study, collect(study, results).parent)
    assert table[["trained_on", "task"]].drop_duplicates().to_numpy().tolist() == [
        ["ISIC2017_256", "PH2_256"]
    ]
    assert table["dice"].tolist() == [float(row["dice"]) for row in rows]
    kept = record(study, results, tmp_path)
    assert (kept / "external.csv").read_bytes() == (
        results / kept.name / "external.csv"
    ).read_bytes()
    [copy] = kept.rglob("cases_on_PH2_256.csv")
    assert copy.read_bytes() == path.read_bytes() and not list(kept.rglob("*.safetensors"))

    text = path.read_text()
    path.write_text(text.replace("IMD002", "IMD009"))
    config = load_config(study, "ISIC2017_256", "cmunext")
    assert state_of(folder, config) == "damaged"
    path.write_text(text)
    assert state_of(folder, config) == "done"


def test_scores_are_those_of_the_runs_own_network(trained, data) -> None:
    """Predicted here anew, picture by picture, on the grid of the network."""
    _, folder = trained
    task = find_task("PH2_256", data)
    _, rows = evaluate_on(folder, "PH2_256", data)
    store = CaseStore(
        TaskData(task, data),
        tuple(case.case_id for case in TaskData(task, data).cases),
        run_folder.read_config(folder).data,
    )
    network = load_run(folder)
    for index, row in enumerate(rows):
        image, label = store.get(index)
        assert image.shape == (3, 128, 128)
        with torch.inference_mode():
            mask = class_masks(torch.sigmoid(network(image[None]))[0].numpy())[0]
        assert row["dice_resized"] == dice(mask, label[0].numpy() > 0)


def test_your_own_data_are_given_by_path(trained, data, tmp_path, capsys) -> None:
    """They need not lie where the run's own data do."""
    _, folder = trained
    write_pictures(tmp_path / "Mine", ["a", "b"], 2)
    asked = ["evaluate", str(folder), "--on", str(tmp_path / "Mine"), "--data-dir", str(data)]
    assert main(asked) == 0
    assert capsys.readouterr().out == f"{folder / 'cases_on_Mine.csv'}: 2 rows\n"


def test_a_task_with_other_channels_dimensions_or_labels_is_refused(trained, data) -> None:
    _, folder = trained
    with pytest.raises(ExternalError, match="BUSI: its cases have 1 channels, .* with 3"):
        evaluate_on(folder, "BUSI", data)
    config, skin = run_folder.read_config(folder), find_task("ISIC2017_256")
    with pytest.raises(ExternalError, match="3 dimensions"):
        check_fits(config, skin, dataclasses.replace(skin, dims=3))
    polyps = find_task("CVC_ClinicDB_256")
    check_fits(config, skin, polyps)
    apart = dataclasses.replace(config, data=dataclasses.replace(config.data, labels="all"))
    with pytest.raises(ExternalError, match="same labels"):
        check_fits(apart, skin, polyps)


def test_cases_that_were_trained_on_are_refused(trained, data, tmp_path) -> None:
    _, folder = trained
    with pytest.raises(ExternalError, match="trained on cases of this data set"):
        evaluate_on(folder, "ISIC2017_256", data)
    skin, strange = find_task("ISIC2017_256"), find_task("PH2_256")
    root = tmp_path / "data"
    write_pictures(root / "ISIC2017_256", ["ISIC_0000000", "ISIC_0000001"], 0)
    write_pictures(root / "PH2_256", ["IMD002"], 1)
    check_unseen(TaskData(skin, root), TaskData(strange, root))
    # The same pixels in another file: its bytes differ, what it shows does not.
    Image.open(root / "ISIC2017_256" / "images" / "ISIC_0000001.jpg").save(
        root / "PH2_256" / "images" / "IMD002.bmp"
    )
    (root / "PH2_256" / "images" / "IMD002.jpg").unlink()
    with pytest.raises(ExternalError, match="its case IMD002 is case ISIC_0000001 of ISIC2017_256"):
        check_unseen(TaskData(skin, root), TaskData(strange, root))
    assert list(image_digests(TaskData(strange, root))) == ["IMD002"]


def test_a_reduced_copy_of_what_was_trained_on_is_refused() -> None:
    whole, half = find_task("Task02_Heart"), find_task("Task02_Heart_half")
    for own, other in ((whole, half), (half, whole), (half, half)):
        with pytest.raises(ExternalError, match="this data set"):
            check_unseen(TaskData(own), TaskData(other))
