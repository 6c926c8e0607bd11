"""The second study (book/protocol_2.md): its planned contrasts by question, and how far each
trained network uses its block."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mvl.core.run_folder import records_dir
from mvl.evidence import run_pairs, stats
from mvl.study.grid import load_study, study_runs
from mvl.study.tables import read_cases, read_runs
from mvl.training.usage import FILE, read_usage

VIT, HYBRID = "vit_baseline", "medvisionllama_v3"
SHUFFLED, MATCHED, NORM, IDENTITY, ATTENTION, NOISE = (
    f"{HYBRID}_{name}"
    for name in ("shuffled", "random_matched", "norm", "identity", "attention", "noise")
)
USES_POINTS = 1.0
"A network uses its block when an intervention costs it so many Dice points (book/protocol_2.md)."


@dataclass(frozen=True)
class Question:
    """A question of the protocol: one family of contrasts within one study."""

    study: str
    words: str
    contrasts: tuple[tuple[str, str], ...]
    "Pairs of system and reference; together they are the family of Holm's correction."


def _of_both_regimes(study: str) -> tuple[Question, ...]:
    return (
        Question(study, "Does the frozen layer help?", ((HYBRID, VIT),)),
        Question(study, "Is it the pretraining?", ((HYBRID, SHUFFLED), (HYBRID, MATCHED))),
        Question(
            study,
            "Is it more than its mappers, a norm, or a small trained layer?",
            ((HYBRID, IDENTITY), (HYBRID, NORM), (HYBRID, ATTENTION)),
        ),
    )


QUESTIONS = (
    *_of_both_regimes("hippocampus2_published"),
    Question(
        "hippocampus2_unmixed",
        "Can the design see a layer that matters?",
        ((ATTENTION, IDENTITY),),
    ),
    Question(
        "hippocampus2_unmixed",
        "Where the layer alone mixes the patches: is it the pretraining?",
        ((HYBRID, IDENTITY), (HYBRID, SHUFFLED), (HYBRID, MATCHED)),
    ),
    *_of_both_regimes("hippocampus2_tuned"),
)
"The questions of rows 1 and 2, in the protocol's order."
DESCRIBED = (
    Question(
        "hippocampus2_unmixed",
        "Described, without a verdict",
        ((NORM, IDENTITY), (NORM, HYBRID), (NOISE, IDENTITY)),
    ),
)
"Contrasts that the protocol describes and gives no verdict of their own."


def recorded_studies(results: Path | None = None) -> list[str]:
    """Return the studies of these questions whose tables are recorded, each once."""
    folder = Path(results or records_dir())
    names = dict.fromkeys(question.study for question in QUESTIONS)
    return [name for name in names if (folder / name / "runs.csv").is_file()]


def planned_pairs(study: str, system: str, reference: str) -> tuple[tuple[int, int], ...]:
    """Return the (fold, seed) at which the study's grid has both systems on all training cases."""
    have: dict[str, set[tuple[int, int]]] = {system: set(), reference: set()}
    for config in study_runs(study):
        if config.system in have and config.fraction == 1.0:
            have[config.system].add((config.fold, config.seed))
    return tuple(sorted(have[system] & have[reference]))


def differences(question: Question, results: Path) -> pd.DataFrame:
    """Return one row a contrast (`stats.table`), with Holm's correction over the question's family.

    A contrast that lacks runs keeps its row with what there is; one without any pair has no
    numbers, and why stands in `hole` (empty elsewhere).
    """
    cases = read_cases(question.study, results)
    task = load_study(question.study).tasks[0]
    rows = []
    for system, reference in question.contrasts:
        planned = planned_pairs(question.study, system, reference)
        try:
            found = stats.compare(cases, system, reference, task, planned=planned)
        except run_pairs.StatsError as error:
            empty = {"task": task, "system": system, "reference": reference, "metric": "dice"}
            counts = dict.fromkeys(("n_cases", "n_distinct", "n_runs", "n_folds", "unpaired"), 0)
            row = {**empty, **counts, "planned": len(planned), "complete": False}
            rows.append(row | {"hole": str(error)})
        else:
            rows.append(stats.table([found]).iloc[0].to_dict() | {"hole": ""})
    columns = [*stats.table([]).columns, "hole"]
    return stats.adjust(pd.DataFrame(rows, columns=columns))


def use_of_block(study: str, results: Path) -> pd.DataFrame:
    """Return one row a finished hybrid run: its interventions' change of Dice, in points, and the
    size of the block's output beside its input.

    Columns: system, fold, seed, one for each intervention, `relative_size` (|h| / |x|), and
    `over_vit`, the run's mean Dice minus that of the ViT of its fold and seed (NaN without one).
    """
    runs = read_runs(study, results)
    done = runs[(runs["state"] == "done") & (runs["fraction"] == 1.0)]
    alone = done[done["system"] == VIT].set_index(["fold", "seed"])["dice"]
    rows = []
    for run in done.itertuples():
        folder = Path(results) / run.run
        if not (folder / FILE).is_file():
            continue
        usage = {row["intervention"]: row for row in read_usage(folder)}
        trained = usage["as_trained"]
        row = {"system": run.system, "fold": run.fold, "seed": run.seed}
        row["relative_size"] = trained["branch_norm"] / trained["input_norm"]
        row["over_vit"] = 100 * (run.dice - alone.get((run.fold, run.seed), float("nan")))
        for name, found in usage.items():
            row[name] = 100 * found["dice_difference"]
        rows.append(row)
    return pd.DataFrame(rows)


def uses(rows: pd.DataFrame) -> tuple[bool, bool]:
    """Say whether networks use their block, and whether they use what it computes: True when the
    mean loss of Dice reaches `USES_POINTS`."""
    of_block = -rows["zero"].mean() >= USES_POINTS
    computed = [-rows[name].mean() for name in ("shuffled_tokens", "shuffled_weights")]
    return bool(of_block), bool(max(computed) >= USES_POINTS)


def progress(results: Path) -> list[tuple[str, int, int]]:
    """Return (study, finished runs, planned runs) for each study of the questions."""
    found = []
    for name, _ in itertools.groupby(question.study for question in QUESTIONS):
        planned = study_runs(name)
        done = 0
        if (Path(results) / name / "runs.csv").is_file():
            done = int((read_runs(name, results)["state"] == "done").sum())
        found.append((name, done, len(planned)))
    return found
