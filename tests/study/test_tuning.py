"""Trials: equal numbers, validation only, resumable, and the study's rates are those that they
chose."""

from dataclasses import replace

import pandas as pd
import pytest
import yaml

from mvl.core import files, run_folder
from mvl.core.config import CONFIG_DIR, ConfigError, load_config, named
from mvl.datasets.task_data import open_task
from mvl.study import tuning

STUDIES = sorted(p.stem for p in (CONFIG_DIR / "studies").glob("*.yaml"))


@pytest.fixture
def study(tmp_path):
    plan = {
        "tasks": ["phantoms"],
        "grid": [{"name": "main", "systems": ["vit_baseline", "medvisionllama_v3_mlp"]}],
        "data": {"img_size": [16, 16, 16]},
        "train": {"batch_size": 8},
        "model": {
            "patch_size": [8, 8, 8],
            "hidden_size": 16,
            "mlp_dim": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
        },
        "tuning": {
            "fold": 0,
            "seed": 100,
            "trials": [{"systems": ["vit_baseline"], "lr": [0.001, 0.01], "train_epochs": 1}],
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path, plan


def test_trials_differ_in_the_rate_alone(study):
    path, _ = study
    a, b = (trial.config for trial in tuning.trials(str(path)))
    assert (a.train.lr, b.train.lr, a.seed, a.train.train_epochs) == (0.001, 0.01, 100, 1)
    assert a.model == b.model and a.data == b.data


def test_an_arm_with_fewer_trials_is_refused(study):
    path, plan = study
    plan["tuning"]["trials"].append(
        {"systems": ["medvisionllama_v3_mlp"], "lr": [0.001], "train_epochs": 1}
    )
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(ConfigError, match="same number of trials"):
        tuning.trials(str(path))
    del plan["tuning"]["trials"]
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(ConfigError, match="tuning lacks trials"):
        tuning.trials(str(path))


def test_a_study_without_tuning_says_so():
    with pytest.raises(ConfigError, match="no tuning"):
        tuning.trials("quick")


def test_test_cases_are_never_opened(study, tmp_path, monkeypatch):
    from mvl.datasets import loaders, splits

    opened: set[str] = set()
    real = loaders.CaseStore.__init__

    def spy(self, task, case_ids, *rest, **more):
        opened.update(case_ids)
        real(self, task, case_ids, *rest, **more)

    monkeypatch.setattr(loaders.CaseStore, "__init__", spy)
    table = pd.read_csv(tuning.tune(str(study[0]), tmp_path / "runs"))
    split = splits.load_split(open_task("phantoms"), 0, 1.0)
    assert opened == {*split.train, *split.val}
    assert list(table["lr"]) == [0.001, 0.01] and table["best_val_dice"].between(0, 1).all()


def test_a_finished_trial_is_not_run_again(study, tmp_path):
    trial = tuning.trials(str(study[0]))[0]
    row = dict.fromkeys(tuning.COLUMNS, 0) | {"best_val_dice": 0.5}
    files.write_json(trial.folder(tmp_path) / "trial.json", row)
    assert tuning.run_trial(trial, tmp_path) == row
    shorter = replace(trial.config.train, train_epochs=3)
    run_folder.write_config(trial.folder(tmp_path), replace(trial.config, train=shorter))
    with pytest.raises(files.RunError, match="tried with other settings.*train_epochs: 3 -> "):
        tuning.run_trial(trial, tmp_path)


def test_the_higher_dice_wins_and_a_tie_takes_the_lower_rate():
    table = pd.DataFrame(
        {
            "system": ["a", "a", "b", "b"],
            "lr": [0.1, 0.2, 0.4, 0.2],
            "best_val_dice": [0.5, 0.6, 0.7, 0.7],
        }
    )
    assert tuning.best_rates(table) == {"a": 0.2, "b": 0.2}


def test_a_rate_whose_loss_jumped_is_not_chosen_and_makes_the_next_lower_one_interior():
    table = pd.DataFrame(
        {
            "system": ["a"] * 3 + ["b"] * 3,
            "lr": [0.1, 0.2, 0.4] * 2,
            "best_val_dice": [0.5, 0.6, 0.7, 0.5, 0.6, 0.7],
            "largest_loss_rise": [0.0, 0.01, 0.06, 0.0, 0.01, 0.05],
        }
    )
    assert tuning.best_rates(table) == {"a": 0.2, "b": 0.4}
    assert tuning.at_the_edge(table) == ["b"]
    assert tuning.at_the_edge(table.assign(largest_loss_rise=1.0)) == ["a", "b"]


@pytest.mark.parametrize(
    "name", [name for name in STUDIES if (run_folder.records_dir() / name / "tuning.csv").is_file()]
)
def test_the_study_uses_the_rates_that_its_trials_chose(name):
    task = named("studies", name)["tasks"][0]
    table, planned = (
        pd.read_csv(run_folder.records_dir() / name / "tuning.csv"),
        pd.Series([trial.config.system for trial in tuning.trials(name)]),
    )
    whole = [
        system
        for system, count in planned.value_counts().items()
        if (table["system"] == system).sum() == count
    ]
    chosen = tuning.best_rates(table[table["system"].isin(whole)])
    assert {system: load_config(name, task, system).train.lr for system in chosen} == chosen
