"""Learning rates chosen on validation cases alone: as many trials for every arm, each one logged;
test cases are never opened."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvl.core import files, run_folder
from mvl.core.command_lines import command_line
from mvl.core.config import Config, ConfigError, check, load_config, named
from mvl.study.grid import load_study, study_file

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "study",
    "task",
    "system",
    "lr",
    "train_epochs",
    "fold",
    "seed",
    "best_val_dice",
    "last_val_dice",
    "best_epoch",
    "largest_loss_rise",
    "cpu_s",
]
STABLE_LOSS_RISE = 0.05
"""The largest rise of the mean training loss from one epoch to the next that a chosen rate may
show.

Stable arms of the first study rose by at most 0.033; the runs that spiked rose by 0.1 to 4.
"""
KEYS = {"systems", "lr", "train_epochs"}


@dataclass(frozen=True)
class Trial:
    """One short training of one arm at one learning rate, with a schedule of its own length."""

    config: Config
    "Config of the trial: the study's, with `lr`, `train_epochs`, fold and seed of the trial."
    study: str = ""
    "The study as it was given."

    def folder(self, results_dir: Path) -> Path:
        """Where the trial keeps its checkpoint while it runs and its row, `trial.json`, when it is
        done."""
        return (
            Path(results_dir)
            / self.config.study
            / "tuning"
            / self.config.system
            / f"lr-{self.config.train.lr:g}"
        )


def trials(study: str) -> list[Trial]:
    """The trials that a study's `tuning` lists: fold, seed, and groups of systems with their rates.

    Raises:
        ConfigError: the study has no `tuning`, a group has other keys, or the arms differ in the
            number of rates.
    """
    load_study(study)
    plan = named("studies", study)
    tuning = plan.get("tuning")
    if not tuning:
        raise ConfigError(f"{study_file(study)}: it has no tuning; nothing to try")
    if absent := sorted({"fold", "seed", "trials"} - set(tuning)):
        raise ConfigError(f"{study_file(study)}: tuning lacks {', '.join(absent)}")
    for group in tuning["trials"]:
        if set(group) != KEYS:
            raise ConfigError(
                f"{study_file(study)}: a group of trials takes {', '.join(sorted(KEYS))}; got"
                f" {group}"
            )
    if len({len(set(group["lr"])) for group in tuning["trials"]}) > 1:
        raise ConfigError(
            f"{study_file(study)}: every arm gets the same number of trials; these differ in the"
            " number of rates"
        )
    return [
        _trial(study, plan["tasks"][0], tuning, group, system, rate)
        for group in tuning["trials"]
        for system, rate in itertools.product(group["systems"], group["lr"])
    ]


def _trial(
    study: str, task: str, tuning: dict[str, Any], group: dict[str, Any], system: str, rate: float
) -> Trial:
    config = load_config(study, task, system, 1.0, tuning["fold"], tuning["seed"])
    train = replace(config.train, lr=float(rate), train_epochs=group["train_epochs"])
    return Trial(check(replace(config, train=train)), study)


def run_trial(
    trial: Trial, results_dir: Path, data_dir: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train and validate one trial, or read it when it is done; an interrupted one goes on where it
    was. A diverged one scores 0."""
    from mvl.core.progress import largest_loss_rise
    from mvl.datasets.case_store import CaseStore
    from mvl.datasets.splits import run_split
    from mvl.datasets.task_data import open_task
    from mvl.training import checkpoints
    from mvl.training.failures import Diverged
    from mvl.training.loop import Trainer, fit

    folder, config = trial.folder(results_dir), trial.config
    done = folder / "trial.json"
    if done.is_file():
        if changed := run_folder.changed_settings(folder, config):
            raise files.RunError(
                f"{folder}: was tried with other settings ({'; '.join(changed[:3])}); delete it to"
                " try anew"
            )
        row: dict[str, Any] = json.loads(done.read_text())
        return row
    with files.locked(folder):
        run_folder.write_config(folder, config)
        data = open_task(config.task, data_dir)
        split = run_split(config, data)
        seen, watched = (CaseStore(data, cases, config.data) for cases in (split.train, split.val))
        trainer = Trainer(
            config,
            seen,
            watched,
            folder,
            command_line(
                *("study", "tune", trial.study or config.study, "--systems", config.system),
                results_dir=results_dir,
                data_dir=data_dir,
            ),
        )
        try:
            fit(trainer, progress)
            p = trainer.progress
            score = {
                "best_val_dice": p.best_dice,
                "last_val_dice": p.history[-1]["val_dice"],
                "best_epoch": p.best_epoch,
            }
        except Diverged:
            score = {"best_val_dice": 0.0, "last_val_dice": 0.0, "best_epoch": -1}
        score["largest_loss_rise"] = largest_loss_rise(trainer.progress.history)[0]
        who = {key: getattr(config, key) for key in ("study", "task", "system", "fold", "seed")}
        row = {
            **who,
            "lr": config.train.lr,
            "train_epochs": config.train.train_epochs,
            **score,
            "cpu_s": round(trainer.progress.cpu_s, 1),
        }
        files.write_json(done, row)
        checkpoints.remove(folder)
    return row


def tune(
    study: str, results_dir: Path, data_dir: Path | None = None, systems: list[str] | None = None
) -> Path:
    """Run the trials that are not done (of some systems, or all), then write `tuning.csv` of all
    that are; returns its path."""
    planned = trials(study)
    for trial in planned:
        if not systems or trial.config.system in systems:
            run_trial(trial, results_dir, data_dir)
    rows = [
        json.loads(path.read_text())
        for path in (trial.folder(results_dir) / "trial.json" for trial in planned)
        if path.is_file()
    ]
    out = Path(results_dir) / Path(study).stem / "tuning.csv"
    files.write_csv(out, rows, COLUMNS)
    return out


def stable(table: pd.DataFrame) -> pd.DataFrame:
    """The trials of `tuning.csv` whose training loss never jumped, or all of them where no rise was
    recorded."""
    if "largest_loss_rise" not in table:
        return table
    return table[table["largest_loss_rise"] <= STABLE_LOSS_RISE]


def best_rates(table: pd.DataFrame) -> dict[str, float]:
    """The stable rate of the highest validation Dice of each system in `tuning.csv`; the lower rate
    where two are equal."""
    ordered = stable(table).sort_values(["best_val_dice", "lr"], ascending=[False, True])
    return {
        str(row.system): float(row.lr) for row in ordered.drop_duplicates("system").itertuples()
    }


def at_the_edge(table: pd.DataFrame) -> list[str]:
    """The systems whose grid must be widened: the best rate is the lowest or the highest tried, or
    no rate is stable.

    A highest rate that is best while the next higher one is unstable is interior: the grid holds
    both.
    """
    chosen = best_rates(table)
    edge = []
    for system, trials_of in table.groupby("system"):
        rates = trials_of["lr"]
        if chosen.get(str(system)) in (None, rates.min(), rates.max()):
            edge.append(str(system))
    return edge
