"""What a rule of the claims ledger sees: a claim, a study's tables, and differences with their
tests, each with the runs that it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

import numpy as np

from mvl.core.columns import KEYS_IN_STUDY
from mvl.evidence import run_pairs, stats
from mvl.evidence.chapter import units_of
from mvl.evidence.claims_evidence import (
    Claim,
    Difference,
    Evidence,
    Found,
    name,
    planned_units,
    tasks,
)
from mvl.evidence.decision import MARGINS
from mvl.evidence.second_study import of_protocol, together
from mvl.evidence.topics import TOPICS
from mvl.study.grid import load_study


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
            pairs = run_pairs.pair(scores, system, reference, task, fraction, metric, planned)
        except run_pairs.NoPairs:
            pass
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
    margin: float | None = None,
    family: Sequence[Difference] = (),
) -> list[Found]:
    """Interval and tests of each difference, at its metric's margin if no other is given; the test
    of a difference is Holm-adjusted over them and the rest of the family."""

    def equivalent(difference: Difference) -> float:
        own = MARGINS[difference.metric].value if margin is None else margin
        return p_value(evidence, difference, lambda pairs: stats.tost(pairs, own))

    adjusted = stats.holm(
        [
            p_value(evidence, d, stats.corrected_t)
            for d in (*differences, *(d for d in family if d.planned))
        ]
    )
    return [_found(evidence, d, p, equivalent(d)) for d, p in zip(differences, adjusted)]


def p_value(
    evidence: Evidence, difference: Difference, test: Callable[[run_pairs.Pairs], float]
) -> float:
    """A test's p; NaN where there is none, or where a planned run is missing: an interim value
    decides nothing."""
    if difference.pairs is None or missing(evidence, difference):
        return math.nan
    return test(difference.pairs)


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
        tuple(key): str(run) for *key, run in rows[[*KEYS_IN_STUDY, "run"]].itertuples(index=False)
    }


def _found(evidence: Evidence, difference: Difference, p: float, p_equivalence: float) -> Found:
    pairs, done = difference.pairs, _done(evidence)
    found = Found(
        difference.words,
        difference.metric,
        len(difference.planned),
        missing(evidence, difference),
        systems=difference.systems,
        study=evidence.study,
    )
    if pairs is None:
        return found
    if id(pairs) not in evidence.memo:
        evidence.memo[id(pairs)] = pairs, stats.bootstrap(pairs)
    interval = evidence.memo[id(pairs)][1]
    keys = [
        (difference.task, system, difference.fraction, *unit)
        for system in difference.systems
        for unit in pairs.units
    ]
    low, high = stats.shown_interval(pairs, interval)
    return replace(
        found,
        runs=tuple(dict.fromkeys(done[key] for key in keys if key in done)),
        n_runs=len(pairs.units),
        n_folds=len(pairs.folds),
        n_cases=len(pairs.cases),
        n_distinct=pairs.n_distinct,
        difference=interval.difference,
        low=low,
        high=high,
        boot_low=interval.low,
        boot_high=interval.high,
        p=p,
        p_equivalence=p_equivalence,
        base=difference.base,
    )


def family(claim: Claim, evidence: Evidence, metric: str) -> list[Difference]:
    """The other planned contrasts of the metric, which the claim's own are corrected together
    with: those of its question in the second protocol, of its chapter elsewhere."""
    own = {(frozenset(pair), f) for pair in claim.contrasts for f in claim.fractions}
    topic = TOPICS.get(claim.topic or claim.chapter[3:])
    units: Set[tuple[str, int, int]] = set()
    if of_protocol(evidence.study):
        planned = together(evidence.study, own)
    elif topic:
        planned = [(pair, f) for pair in topic.contrasts for f in topic.fractions]
        units = units_of(load_study(evidence.study), topic)
    else:
        planned = []
    found = [
        of_cases(evidence, *pair, task, f, metric, units)
        for pair, f in planned
        if (frozenset(pair), f) not in own
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
