"""What a rule of the claims ledger sees: a claim, a study's tables, and the differences found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas as pd

from mvl.core.errors import MvlError
from mvl.evidence import run_pairs
from mvl.evidence.arms import title
from mvl.evidence.decision import MARGINS, Decision, Margin, Numbers, decide
from mvl.evidence.decision import within as in_words

OVERLAP = {
    "dice": "Dice",
    "jaccard": "IoU",
    "nsd": "NSD",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "activation_iou": "activation IoU",
}
UNITS = {
    **{metric: (100.0, f"{word} points", 2) for metric, word in OVERLAP.items()},
    "hd95_mm": (1.0, "mm of HD95", 3),
    "epochs": (1.0, "epochs", 1),
    "effective_rank": (1.0, "of effective rank", 2),
    "roughness": (1.0, "of roughness", 3),
}
"By metric: what a value is multiplied with, the unit then, and digits shown."


class ClaimError(MvlError, ValueError):
    """A claim names what there is not; the message says which claim and what."""


@dataclass(frozen=True)
class Claim:
    """One claim of `data/claims.toml`; the keys are explained there."""

    id: str
    paper: str
    place: str
    confidence: str
    short: str
    claim: str
    reported: tuple[tuple[str, ...], ...]
    chapter: str
    studies: tuple[str, ...]
    "Studies that can decide it, the nearest to the paper first."
    rule: str
    contrasts: tuple[tuple[str, str], ...]
    support: str
    takes: str
    main: bool = False
    metric: str = "dice"
    metrics: tuple[str, ...] = ()
    lower: bool = False
    fractions: tuple[float, ...] = (1.0,)
    size: str = ""
    shares: tuple[float, ...] = ()
    stages: tuple[str, ...] = ()
    noises: tuple[str, ...] = ()
    cheaper_than: str = ""
    why: str = ""
    "Why no record decides it, or what a conjunction's members that were not run are."
    explains: str = ""
    "Id of the claim whose gain this one explains; moot where that gain is not there."
    controls: tuple[str, ...] = ()
    "Systems without the language model that a gain has to exceed, to be the language model's."
    weak: str = ""
    "Why the measure cannot carry a contradiction: then the word is *not reproduced* at most."
    topic: str = ""
    "Key of `mvl.evidence.topics.TOPICS` whose contrasts are the family; empty: the chapter's."
    reported_gain: float = math.nan
    """From the reported rows where `size` is given: share of what the baseline leaves, or of its
    own value."""
    reported_share: float = math.nan
    "Second reported row over the first (the rule `every_metric`)."
    fixed: Margin | None = None
    "The margin that the protocol of the judging study fixed, in place of the metric's."

    @property
    def implied(self) -> bool:
        """True where no paper states the claim in this form: it is implied, and tested by us."""
        return self.confidence == "none"

    @property
    def measured_in(self) -> str:
        """The metric whose margin it has."""
        return "epochs" if self.rule == "faster" else self.metric

    @property
    def bound(self) -> Margin:
        """Its margin with the reason: the judging study's own, or else the metric's
        (`mvl.evidence.decision.MARGINS`)."""
        return self.fixed or MARGINS[self.measured_in]

    @property
    def margin(self) -> float:
        """The value of its margin."""
        return self.bound.value


@dataclass(frozen=True, eq=False)
class Evidence:
    """A study's plan and tables, as far as they are recorded."""

    study: str
    plan: pd.DataFrame
    "task, system, fraction, fold, seed of every planned run."
    runs: pd.DataFrame
    cases: pd.DataFrame
    "One row per done run and case, whole foreground."
    history: pd.DataFrame
    further: dict[str, pd.DataFrame] = field(default_factory=dict)
    """What was measured from weights, where it is recorded: activations (by case and stage) and
    masks (by case)."""
    limit: str = ""
    "What the study's language model stands in for."
    memo: dict[Any, Any] = field(default_factory=dict)
    """What was computed from it once: differences by what they compare, intervals by their pairs
    (kept, so that no other has their id)."""


@dataclass(frozen=True)
class Found:
    """One difference that a rule looked at; numbers are NaN where no pair of runs is done."""

    words: str
    metric: str
    n_planned: int
    missing: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    n_runs: int = 0
    n_folds: int = 0
    n_cases: int = 0
    n_distinct: int = 0
    "Cases, each counted once whatever the number of seeds."
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    boot_low: float = math.nan
    """Ends of the bootstrap interval, which the rule asks too; low and high are the corrected
    t-interval's over folds."""
    boot_high: float = math.nan
    p: float = math.nan
    "Corrected t-test over folds, after Holm within the family."
    p_equivalence: float = math.nan
    "Two one-sided tests over folds."
    base: float = math.nan
    "Mean of the reference over the same runs."
    systems: tuple[str, ...] = ()
    "What is compared."
    study: str = ""

    @property
    def in_unit(self) -> tuple[str, str, str, str]:
        """Difference and ends of the interval in the metric's unit, and that unit."""
        scale, unit, digits = UNITS[self.metric]
        values = (self.difference, self.low, self.high)
        mid, low, high = (f"{scale * value:+z.{digits}f}" for value in values)
        return mid, low, high, unit

    @property
    def cases(self) -> str:
        """How many cases it is over, in words; folds of one seed may share them."""
        times = "folds" if self.n_runs == self.n_folds else "seeds"
        return run_pairs.cases_and_seeds(self.n_distinct, self.n_cases, times)

    def decision(self, margin: float | None = None) -> Decision:
        """The word for it by the one rule, at the metric's margin if no other is given."""
        numbers = Numbers(
            self.boot_low,
            self.boot_high,
            self.p,
            self.p_equivalence,
            self.n_planned,
            self.n_runs,
            self.n_folds,
            len(self.missing),
        )
        return decide(
            numbers,
            MARGINS[self.metric].value if margin is None else margin,
            self.systems,
            self.study,
        )


@dataclass(frozen=True)
class Difference:
    """What is to be compared, before any test: the pairs of runs if there are any."""

    words: str
    pairs: run_pairs.Pairs | None
    systems: tuple[str, ...]
    task: str
    fraction: float
    metric: str
    planned: tuple[tuple[int, int], ...]
    base: float = math.nan


def planned_units(
    evidence: Evidence, systems: Sequence[str], task: str, fraction: float
) -> tuple[tuple[int, int], ...]:
    """(fold, seed) at which the study plans every one of the systems."""
    plan = evidence.plan[(evidence.plan["task"] == task) & (evidence.plan["fraction"] == fraction)]
    units = [
        set(zip(rows["fold"].tolist(), rows["seed"].tolist()))
        for rows in (plan[plan["system"] == s] for s in systems)
    ]
    return tuple(sorted(set.intersection(*units)))


def tasks(evidence: Evidence, systems: Sequence[str]) -> list[str]:
    """Tasks for which the study plans the first of the systems; all of them where it plans it
    nowhere."""
    found = evidence.plan.loc[evidence.plan["system"] == systems[0], "task"]
    return list(dict.fromkeys(found)) or list(dict.fromkeys(evidence.plan["task"]))


def within(margin: float, metric: str) -> str:
    """The margin in the metric's unit: `within 1 Dice point`."""
    scale, unit, _ = UNITS[metric]
    return in_words(margin, scale, unit)


@cache
def name(system: str) -> str:
    """The system's title, read once."""
    return title(system)
