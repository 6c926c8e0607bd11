"""Differences that are no plain pair of test scores: epochs, damage, activations and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mvl.evidence import run_pairs
from mvl.evidence.claims_evidence import Difference, Evidence, name, planned_units, tasks
from mvl.evidence.claims_tests import of_cases

Unit = tuple[int, int]
"(fold, seed)."


def validated_every(evidence: Evidence, fraction: float) -> int:
    """Epochs from one validation to the next at a share of the data, the largest of any run; 0
    where that is not recorded."""
    rows = evidence.history[evidence.history["fraction"] == fraction].dropna(subset=["val_dice"])
    steps = [
        run["epoch"].sort_values().diff().max()
        for _, run in rows.groupby(["system", "fold", "seed"])
    ]
    return int(np.nanmax(steps)) if len(steps) and not np.isnan(steps).all() else 0


def to_share(
    evidence: Evidence, system: str, reference: str, task: str, fraction: float, share: float
) -> Difference:
    """Difference in epochs to `share` of the reference's last validation Dice, one value per (fold,
    seed)."""
    planned = planned_units(evidence, (system, reference), task, fraction)
    rows = evidence.history[
        (evidence.history["task"] == task) & (evidence.history["fraction"] == fraction)
    ]
    ours, theirs = (
        {
            (int(f), int(s)): run.sort_values("epoch")
            for (f, s), run in rows[rows["system"] == arm].groupby(["fold", "seed"])
        }
        for arm in (system, reference)
    )
    goals = {
        u: share * float(theirs[u]["val_dice"].dropna().iloc[-1])
        for u in planned
        if u in ours and u in theirs
    }
    values = {
        u: np.array([float(epochs_to(ours[u], goal) - epochs_to(theirs[u], goal))])
        for u, goal in goals.items()
    }
    words = (
        f"{name(system)} minus {name(reference)}, epochs to {share:.0%} of the latter's last"
        f" validation Dice, at {fraction:.0%} of the data"
    )
    return by_hand(words, values, (system, reference), task, fraction, "epochs", planned)


def epochs_to(run: pd.DataFrame, goal: float) -> int:
    """First validated epoch at which a run's validation Dice reaches the goal; one more than its
    last if it never does."""
    reached = run.loc[run["val_dice"] >= goal, "epoch"]
    return int(reached.min()) if len(reached) else int(run["epoch"].max()) + 1


def by_hand(
    words: str,
    values: Mapping[Unit, pd.Series | np.ndarray],
    systems: tuple[str, ...],
    task: str,
    fraction: float,
    metric: str,
    planned: tuple[Unit, ...],
    shared: bool = False,
) -> Difference:
    """A difference from values that are already there for each (fold, seed), the planned ones
    alone; `shared`: every fold is asked about the same cases."""
    units = tuple(sorted(set(values) & set(planned)))
    arrays = tuple(np.asarray(values[u], dtype=np.float64) for u in units)
    pairs = None
    if units:
        pairs = run_pairs.Pairs(
            systems[0], systems[-1], task, fraction, metric, units, arrays, (), planned, shared
        )
    return Difference(words, pairs, systems, task, fraction, metric, planned)


def change_of(
    evidence: Evidence, system: str, reference: str, noise: str, task: str, metric: str
) -> Difference:
    """(system with damage - clean) - (reference with damage - clean), case by case."""
    systems = (f"{system}_{noise}", f"{reference}_{noise}", system, reference)
    planned = planned_units(evidence, systems, task, 1.0)
    damaged, clean = (
        of_cases(evidence, *pair, task, 1.0, metric).pairs for pair in (systems[:2], systems[2:])
    )
    values = (
        {}
        if damaged is None or clean is None
        else {
            u: d - dict(zip(clean.units, clean.differences))[u]
            for u, d in zip(damaged.units, damaged.differences)
            if u in clean.units
        }
    )
    words = f"change by damage ({noise}) of {name(system)} minus that of {name(reference)}"
    return by_hand(words, values, systems, task, 1.0, metric, planned)


def first_seed(evidence: Evidence, systems: Sequence[str], task: str) -> tuple[Unit, ...]:
    """(fold, seed) at which activations are planned: those of the systems on all the data, at the
    first seed."""
    planned = planned_units(evidence, systems, task, 1.0)
    return tuple(unit for unit in planned if unit[1] == min(seed for _, seed in planned))


def at_stages(
    evidence: Evidence, system: str, reference: str, stages: Sequence[str], metric: str
) -> Difference:
    """The difference of a contrast of activations, over the (fold, seed) that are planned.

    One system twice: last stage to first; the same stage twice: system minus reference; else the
    system's change minus the reference's.
    """
    late, early = stages

    def take(arm: str, stage: str) -> dict[Unit, pd.Series]:
        return stage_values(evidence, arm, stage, metric)

    if system == reference:
        words = f"{name(system)}, {late} minus {early}"
        values = minus(take(system, late), take(system, early))
    elif late == early:
        words = f"{name(system)} minus {name(reference)}, {late}"
        values = minus(take(system, late), take(reference, late))
    else:
        words = f"change from {early} to {late} in {name(system)} minus that in {name(reference)}"
        values = minus(
            minus(take(system, late), take(system, early)),
            minus(take(reference, late), take(reference, early)),
        )
    task = tasks(evidence, (system,))[0]
    systems = tuple(dict.fromkeys((system, reference)))
    planned = first_seed(evidence, systems, task)
    return by_hand(words, values, systems, task, 1.0, metric, planned)


def stage_values(evidence: Evidence, system: str, stage: str, metric: str) -> dict[Unit, pd.Series]:
    """Per (fold, seed), the quantity of each case at one stage; of `a/b` the first that the system
    has."""
    rows = evidence.further["activations"]
    rows = rows[(rows["system"] == system) & (rows["fraction"] == 1.0)]
    return per_case(
        next((found for s in stage.split("/") if len(found := rows[rows["stage"] == s])), rows[:0]),
        metric,
    )


def per_case(rows: pd.DataFrame, metric: str) -> dict[Unit, pd.Series]:
    """Per (fold, seed), a quantity of each case."""
    rows = rows.dropna(subset=[metric])
    return {
        (int(f), int(s)): run.groupby("case")[metric].mean().sort_index()
        for (f, s), run in rows.groupby(["fold", "seed"])
    }


def minus(ours: dict[Unit, pd.Series], theirs: dict[Unit, pd.Series]) -> dict[Unit, pd.Series]:
    """Case by case over the (fold, seed) that both have with the same cases."""
    return {
        u: ours[u] - theirs[u]
        for u in ours
        if u in theirs and ours[u].index.equals(theirs[u].index)
    }
