"""The audit's switches turn on the faults that they name, and nothing else; runs without them are
what they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.core import run_folder
from mvl.core.config import ROOT, Config, ConfigError, load_config, to_dict
from mvl.datasets.augment import augmentation
from mvl.datasets.case_store import CaseStore
from mvl.datasets.loaders import TrainingBatches, steps_per_epoch
from mvl.datasets.registry import find_task
from mvl.datasets.released_faults import VersionStore, audited, deal_versions
from mvl.datasets.splits import Split, load_split
from mvl.datasets.task_data import TaskData
from mvl.study.grid import load_study
from mvl.training import run

STUDY = """
title: test
tasks: [phantoms]
grid: [{name: main, systems: [vit_baseline, leak, test, train_loss, released]}]
data: {img_size: [16, 16, 16]}
model: {patch_size: [8, 8, 8], encoder_layers: 1, decoder_layers: 1, hidden_size: 16, mlp_dim: 16}
train: {train_epochs: 2, batch_size: 16}
arms:
  leak:
    system: vit_baseline
    data: {split: copies, augmentation: one_plane}
    train: {train_epochs: 1}
  test: {system: vit_baseline, train: {select: test}}
  train_loss: {system: vit_baseline, train: {select: train_loss}}
  released:
    system: vit_baseline
    data: {split: copies, augmentation: released_planes}
    train: {loss: bce_dice_released, select: train_loss}
"""
TASK = find_task("phantoms")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a study with one tiny arm per fault."""
    path = tmp_path_factory.mktemp("study") / "faults.yaml"
    path.write_text(STUDY)
    return str(path)


def stores(config: Config) -> tuple[Split, CaseStore, CaseStore, Split]:
    """The committed lists, then what `audited` makes of them."""
    split = load_split(TaskData(TASK), config.fold, config.fraction)

    def make(cases):
        return CaseStore(TaskData(TASK), cases, config.data)

    return split, *audited(config, split, make(split.train), make)


def test_without_a_fault_the_committed_lists_are_used(study: str) -> None:
    split, seen, watched, used = stores(load_config(study, "phantoms", "vit_baseline"))
    assert used is split and seen.case_ids == split.train and watched.case_ids == split.val


def test_copies_put_versions_of_one_case_on_both_sides_and_never_a_test_case(study: str) -> None:
    split, seen, watched, used = stores(load_config(study, "phantoms", "leak"))

    def case(item):
        return item.rpartition("@")[0]

    assert sorted((*seen.case_ids, *watched.case_ids)) == sorted(
        f"{c}@{v}" for c in (*split.train, *split.val) for v in range(3)
    )
    assert len(seen) == int(0.8 * 3 * 72) and set(map(case, watched.case_ids)) & set(
        map(case, seen.case_ids)
    )
    assert not set(map(case, (*seen.case_ids, *watched.case_ids))) & set(split.test)
    assert used.test == split.test and used.sha256 != split.sha256 and used.train == seen.case_ids


def test_copies_need_versions_and_the_whole_data(study: str) -> None:
    config = load_config(study, "phantoms", "leak")
    for wrong in (
        replace(config, fraction=0.1),
        replace(config, data=replace(config.data, augmentation="rotate_intensity")),
    ):
        with pytest.raises(ConfigError, match="data.split copies needs"):
            stores(wrong)


def test_a_watched_copy_is_always_the_same_and_a_trained_one_is_drawn_on_each_visit(
    study: str,
) -> None:
    config = load_config(study, "phantoms", "leak")
    cases = CaseStore(TaskData(TASK), ("phantom_000",), config.data)
    items = ("phantom_000@0", "phantom_000@1", "phantom_000@2")
    watched, seen = VersionStore(cases, items, fixed=True), VersionStore(cases, items, fixed=False)
    plain = cases.get(0)[0]
    assert torch.equal(watched.get(0)[0], plain) and torch.equal(
        watched.get(1)[0], watched.get(1)[0]
    )
    assert not torch.equal(watched.get(1)[0], plain) and not torch.equal(watched.get(2)[0], plain)
    given = TrainingBatches(seen, config)
    assert torch.equal(given[0, 0]["image"], plain) and torch.equal(
        given[0, 1]["image"], given[0, 1]["image"]
    )
    assert not torch.equal(given[0, 1]["image"], given[1, 1]["image"])
    assert torch.equal(given[0, 2]["label"], cases.get(0)[1]) and not torch.equal(
        given[0, 2]["image"], plain
    )


def test_dealing_is_a_function_of_the_name() -> None:
    cases = [f"case_{k}" for k in range(10)]
    assert deal_versions(cases, "a") == deal_versions(cases, "a") != deal_versions(cases, "b")
    assert [len(part) for part in deal_versions(cases, "a")] == [24, 6]


@pytest.mark.parametrize(
    ("name", "image_axis", "label_axis"), [("one_plane", 0, 0), ("released_planes", 0, 2)]
)
def test_the_label_turns_with_the_image_or_as_released_in_another_plane(
    study: str, name: str, image_axis: int, label_axis: int
) -> None:
    """A box that does not change along an axis stays so when it is turned about that axis, and only
    then."""
    data = replace(
        load_config(study, "phantoms", "vit_baseline").data, augmentation=name, rotate_degrees=20.0
    )
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    for axis in range(3):
        box = label.clone()
        inside = [slice(5, 11) if k != axis else slice(None) for k in range(3)]
        box[(0, *inside)] = 1
        image, moved = augmentation(data)(box.float(), box, 3, 1)
        spread = [
            float((x.float().amax(axis + 1) - x.float().amin(axis + 1)).max())
            for x in (image, moved)
        ]
        assert [value < 1e-3 for value in spread] == [axis == image_axis, axis == label_axis]
        assert not torch.equal(moved, box) or axis != label_axis


def test_a_third_of_the_visits_is_turned(study: str) -> None:
    data = replace(
        load_config(study, "phantoms", "vit_baseline").data, augmentation="released_planes"
    )
    image, label, change = torch.rand(1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.uint8), None
    change = augmentation(data)
    same = [torch.equal(change(image, label, seed)[0], image) for seed in range(90)]
    assert 18 <= sum(same) <= 42


@pytest.fixture(scope="module")
def trained(study: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny runs."""
    results = tmp_path_factory.mktemp("runs")

    def few(name):
        return 1.0 if name == "released" else 0.1

    names = ("vit_baseline", "test", "train_loss", "released")
    return {
        name: run.train_run(
            load_config(study, "phantoms", name, few(name)), results, progress=False
        )
        for name in names
    }


def history(folder: Path) -> list[list[str]]:
    """Rows of a run's history."""
    return [line.split(",") for line in (folder / "history.csv").read_text().splitlines()[1:]]


def test_what_chooses_the_epoch_changes_nothing_of_the_training(trained: dict[str, Path]) -> None:
    clean, test, loss = (history(trained[name]) for name in ("vit_baseline", "test", "train_loss"))
    assert [row[:3] for row in clean] == [row[:3] for row in test] and clean == loss
    assert [row[4] for row in clean] != [row[4] for row in test]
    best = min(range(len(loss)), key=lambda epoch: float(loss[epoch][2]))
    assert run_folder.read_status(trained["train_loss"])["best_epoch"] == best
    assert run_folder.read_status(trained["test"])["best_dice"] == max(
        float(row[4]) for row in test
    )


def test_the_dice_that_chose_on_test_is_that_of_the_cases_scored(trained: dict[str, Path]) -> None:
    from mvl.core.columns import CASE_COLUMNS
    from mvl.study.tables import read_rows

    rows = read_rows(trained["test"] / "cases.csv", CASE_COLUMNS)
    assert sum(float(row["dice_resized"]) for row in rows) / len(rows) == pytest.approx(
        run_folder.read_status(trained["test"])["best_dice"], abs=1e-6
    )


def test_all_faults_together_train_and_are_scored_on_the_same_test_cases(
    trained: dict[str, Path],
) -> None:
    lines = {
        name: (trained[name] / "cases.csv").read_text().splitlines()
        for name in ("vit_baseline", "released")
    }
    cases = {name: [line.split(",")[6] for line in text] for name, text in lines.items()}
    assert cases["vit_baseline"] == cases["released"]
    status = run_folder.read_status(trained["released"])
    assert status["n"] == {"train": 172, "val": 44, "test": 8}


def test_the_study_audit_is_the_study_hippocampus_but_for_its_faults() -> None:
    """Each arm differs from the hippocampus' ViT-Baseline in the fault it names; with copies in it
    takes as many steps, within a tenth."""
    name, changed = "Task04_Hippocampus", {}
    clean = to_dict(load_config("hippocampus", name, "vit_baseline"))
    for arm in load_study("audit").grid[0]["systems"] + [
        "audit_control",
        "audit_test",
        "audit_train_loss",
    ]:
        found = run_folder.differences(clean, to_dict(load_config("audit", name, arm)))
        changed[arm] = {line.split(":")[0] for line in found} - {"study", "system"}
    copies = {"data.split", "data.augmentation", "train.train_epochs"}
    assert changed == {
        "audit_loss": {"train.loss"},
        "audit_leak": copies,
        "audit_planes": {"data.augmentation"},
        "audit_released": {*copies, "train.loss", "train.select"},
        "audit_control": {"data.augmentation"},
        "audit_test": {"train.select"},
        "audit_train_loss": {"train.select"},
    }
    # read as it lies: the scans need not be there
    file = json.loads((ROOT / "data" / "splits" / f"{name}.json").read_text())
    split = file["folds"][0]
    val = [case for block in split["val"] for case in file["blocks"][block]]
    batch, whole = clean["train"]["batch_size"], clean["train"]["train_epochs"]
    copied = steps_per_epoch(len(deal_versions((*split["train"], *val), "")[0]), batch)
    epochs = load_config("audit", name, "audit_leak").train.train_epochs
    assert 0.9 < copied * epochs / (steps_per_epoch(len(split["train"]), batch) * whole) < 1.1
