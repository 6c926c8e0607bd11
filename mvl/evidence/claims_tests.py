"""What a rule of the claims ledger sees: a claim, a study's tables, and differences with their
tests, each with the runs that it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from mvl.core.errors import MvlError
from mvl.evidence import stats
from mvl.evidence.arms import title
from mvl.evidence.chapter import units_of
from mvl.evidence.decision import MARGINS, Decision, Numbers, decide
from mvl.evidence.decision import within as in_words
from mvl.evidence.topics import TOPICS
from mvl.study.grid import load_study

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
    study: str
    rule: str
    contrasts: tuple[tuple[str, str], ...]
    support: str
    takes: str
    main: bool = False
    block: str = ""
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

    @property
    def implied(self) -> bool:
        """True where no paper states the claim in this form: it is implied, and tested by us."""
        return self.confidence == "none"

    @property
    def measured_in(self) -> str:
        """The metric whose margin it has."""
        return "epochs" if self.rule == "faster" else self.metric

    @property
    def margin(self) -> float:
        """The metric's margin (`mvl.evidence.decision.MARGINS`)."""
        return MARGINS[self.measured_in].value


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
            numbers, MARGINS[self.metric].value if margin is None else margin, self.systems
        )


@dataclass(frozen=True)
class Difference:
    """What is to be compared, before any test: the pairs of runs if there are any."""

    words: str
    pairs: stats.Pairs | None
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


def of_cases(
    evidence: Evidence,
    system: str,
    reference: str,
    task: str,
    fraction: float,
    metric: str,
    only: Set[tuple[str, int, int]] = frozenset(),
) -> Difference:
    """The difference of two systems' test scores over the planned (fold, seed), or those (task,
    fold, seed) of them that `only` has."""
    planned = tuple(
        u
        for u in planned_units(evidence, (system, reference), task, fraction)
        if not only or (task, *u) in only
    )
    key = (system, reference, task, fraction, metric, planned)
    if key not in evidence.memo:
        evidence.memo[key] = _of_cases(evidence, system, reference, task, fraction, metric, planned)
    return evidence.memo[key]


def _of_cases(
    evidence: Evidence,
    system: str,
    reference: str,
    task: str,
    fraction: float,
    metric: str,
    planned: tuple[tuple[int, int], ...],
) -> Difference:
    pairs, base = None, math.nan
    scores = evidence.cases[
        (evidence.cases["task"] == task) & (evidence.cases["fraction"] == fraction)
    ]
    if planned:
        try:
            pairs = stats.pair(scores, system, reference, task, fraction, metric, planned)
        except stats.StatsError as error:
            if "share no finished" not in str(error):
                raise
        else:
            used = np.array(
                [unit in pairs.units for unit in zip(scores["fold"], scores["seed"])], dtype=bool
            )
            base = float(
                scores[used & (scores["system"] == reference)]
                .groupby(["fold", "seed"])[metric]
                .mean()
                .mean()
            )
    share = "" if fraction == 1.0 else f" at {fraction:.0%} of the data"
    where = "" if len(tasks(evidence, (system,))) == 1 else f", {task}"
    return Difference(
        f"{name(system)} minus {name(reference)}{share}{where}",
        pairs,
        (system, reference),
        task,
        fraction,
        metric,
        planned,
        base,
    )


def with_tests(
    evidence: Evidence,
    differences: Sequence[Difference],
    margin: float,
    family: Sequence[Difference] = (),
) -> list[Found]:
    """Interval and tests of each difference; the test of a difference is Holm-adjusted over them
    and the rest of the family."""

    def equivalent(pairs: stats.Pairs) -> stats.Test:
        return stats.tost(pairs, margin)

    adjusted = holm(
        tuple(
            p_value(evidence, d, stats.corrected_t)
            for d in (*differences, *(d for d in family if d.planned))
        )
    )
    return [
        _found(evidence, d, p, p_value(evidence, d, equivalent))
        for d, p in zip(differences, adjusted)
    ]


@cache
def holm(values: tuple[float, ...]) -> list[float]:
    """`mvl.evidence.stats.holm`, once for each family: statsmodels collects garbage at every call,
    which takes a third of a second beside torch."""
    return [math.nan] * len(values) if all(map(math.isnan, values)) else stats.holm(values)


def p_value(
    evidence: Evidence, difference: Difference, test: Callable[[stats.Pairs], stats.Test]
) -> float:
    """A test's p; NaN where there is none, or where a planned run is missing: an interim value
    decides nothing."""
    if difference.pairs is None or missing(evidence, difference):
        return math.nan
    found = test(difference.pairs).p
    return math.nan if found is None else found


def missing(evidence: Evidence, difference: Difference) -> tuple[str, ...]:
    """Planned runs of a difference that are not done."""
    done = _done(evidence)
    wanted = [
        (difference.task, system, difference.fraction, *unit)
        for system in difference.systems
        for unit in difference.planned
    ]
    return tuple(
        dict.fromkeys(
            f"{t}/{s}/fraction-{f!r}_fold-{k}_seed-{n}"
            for t, s, f, k, n in wanted
            if (t, s, f, k, n) not in done
        )
    )


def _done(evidence: Evidence) -> dict[tuple[str, str, float, int, int], str]:
    rows = evidence.runs[evidence.runs["state"] == "done"]
    return {
        tuple(key): str(run)
        for *key, run in rows[["task", "system", "fraction", "fold", "seed", "run"]].itertuples(
            index=False
        )
    }


def _found(evidence: Evidence, difference: Difference, p: float, p_equivalence: float) -> Found:
    holes, pairs, done = missing(evidence, difference), difference.pairs, _done(evidence)
    if pairs is None:
        return Found(
            difference.words,
            difference.metric,
            len(difference.planned),
            holes,
            systems=difference.systems,
        )
    if id(pairs) not in evidence.memo:
        evidence.memo[id(pairs)] = pairs, stats.bootstrap(pairs)
    interval = evidence.memo[id(pairs)][1]
    keys = [
        (difference.task, system, difference.fraction, *unit)
        for system in difference.systems
        for unit in pairs.units
    ]
    used = tuple(dict.fromkeys(done[key] for key in keys if key in done))
    return Found(
        difference.words,
        difference.metric,
        len(difference.planned),
        holes,
        used,
        interval.n_units,
        len(pairs.folds),
        interval.n_cases,
        pairs.n_distinct,
        interval.difference,
        *stats.shown_interval(pairs, interval),
        interval.low,
        interval.high,
        float(p),
        float(p_equivalence),
        difference.base,
        difference.systems,
    )


def family(claim: Claim, evidence: Evidence, metric: str) -> list[Difference]:
    """The chapter's other planned contrasts of the metric, which the claim's own are corrected
    together with."""
    topic, own = (
        TOPICS.get(claim.topic or claim.chapter[3:]),
        {(frozenset(pair), f) for pair in claim.contrasts for f in claim.fractions},
    )
    rest = [
        (pair, f)
        for pair in (topic.contrasts if topic else ())
        for f in (topic.fractions if topic else ())
        if (frozenset(pair), f) not in own
    ]
    units = units_of(load_study(evidence.study), topic) if topic else set()
    found = [
        of_cases(evidence, *pair, task, f, metric, units)
        for pair, f in rest
        for task in tasks(evidence, pair)
    ]
    return [d for d in found if d.planned]


def own(claim: Claim, evidence: Evidence, metric: str) -> list[Difference]:
    """The claim's contrasts at each of its fractions on each task."""
    return [
        of_cases(evidence, *pair, task, f, metric)
        for f in claim.fractions
        for pair in claim.contrasts
        for task in tasks(evidence, pair)
    ]
