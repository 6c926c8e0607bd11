"""Rules that turn a study's tables into a verdict on one claim; a changed record changes the
verdict, a missing run withholds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mvl.evidence import stats
from mvl.evidence.claims_tests import (
    UNITS,
    Claim,
    Difference,
    Evidence,
    Found,
    family,
    name,
    of_cases,
    own,
    planned_units,
    tasks,
    with_tests,
    within,
)
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED, WITHDRAWN

REPRODUCED, NOT_REPRODUCED, CONTRADICTED = "reproduced", "not reproduced", "contradicted"
SHARED, MOOT, UNTESTABLE = "shared by controls", "moot", "not testable here"
WORDS = (REPRODUCED, SHARED, NOT_REPRODUCED, CONTRADICTED, MOOT, UNDECIDED, WITHDRAWN, UNTESTABLE)
"Every word that a claim can have; the last two words of a difference stand for a claim too."
Said = tuple[str, str]
"A word, and why."
EMPTY = pd.DataFrame()


@dataclass(frozen=True)
class Verdict:
    """A word, the sentence behind it, and what it was computed from."""

    word: str
    sentence: str
    "All of it in words: every difference, n, the study, and what limits it."
    numbers: tuple[Found, ...] = ()
    n: int = 0
    "Pairs of runs of the difference that has fewest."
    runs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    "The sentence's differences one by one."


def withheld(found: Found) -> Said | None:
    """Why a difference has no verdict whatever its numbers say; None where they can be asked."""
    decision = found.decision()
    return (decision.word, decision.why) if decision.why else None


def left_open(found: Found) -> str:
    """Why a difference is not called, in the decision's word."""
    if found.low <= 0 <= found.high:
        return f"{UNDECIDED}, the interval holds 0"
    return f"{UNDECIDED}, the test over folds leaves it open"


def as_gain(found: Found, claim: Claim) -> Said:
    """A claimed gain: higher (or lower where that is better) than the reference by more than the
    margin."""
    if (early := withheld(found)) is not None:
        return early
    way, better = found.decision(claim.margin).word, LOWER if claim.lower else HIGHER
    if way == EQUIVALENT:
        return NOT_REPRODUCED, f"{way} {within(claim.margin, found.metric)}"
    smaller = excludes(found, claim)
    if way == better:
        return REPRODUCED, f"{way}{', by less than reported' if smaller else ''}"
    if way != UNDECIDED:
        return CONTRADICTED, way
    if smaller:
        return NOT_REPRODUCED, f"{way}, and a gain of the reported size is excluded"
    return UNDECIDED, left_open(found)


def excludes(found: Found, claim: Claim) -> bool:
    """True when both intervals end below the reported gain, weighed as the claim's `size` says."""
    if not claim.size or math.isnan(claim.reported_gain):
        return False
    whole = (1 - found.base) if claim.size == "error" else found.base
    best = max(-found.low, -found.boot_low) if claim.lower else max(found.high, found.boot_high)
    return best < claim.reported_gain * whole


def as_same(found: Found, claim: Claim) -> Said:
    """A claimed equivalence within the margin."""
    if (early := withheld(found)) is not None:
        return early
    way = found.decision(claim.margin).word
    if way == EQUIVALENT:
        return REPRODUCED, f"{way} {within(claim.margin, found.metric)}"
    if way == UNDECIDED:
        return way, left_open(found)
    if min(abs(found.low), abs(found.high)) > claim.margin:
        return CONTRADICTED, f"{way} beyond the margin"
    return NOT_REPRODUCED, f"{way}, not shown to be {within(claim.margin, found.metric)}"


def combined(
    claim: Claim,
    evidence: Evidence,
    found: Sequence[Found],
    decisions: Sequence[Said],
    also: str = "",
) -> Verdict:
    """The verdict where every one of the differences has to hold; one that is incomplete or
    withdrawn withholds it."""
    words = [word for word, _ in decisions]
    held = [early[0] for f in found if (early := withheld(f)) is not None]
    if WITHDRAWN in held:
        word = WITHDRAWN
    elif held or not words:
        word = UNDECIDED
    else:
        order = (CONTRADICTED, NOT_REPRODUCED, UNDECIDED, REPRODUCED)
        word = next(w for w in order if w in words)

    parts = [f"{number(f)}: {why}" for f, (_, why) in zip(found, decisions)]

    def gather(key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item for f in found for item in getattr(f, key)))

    sentence = f"{'; '.join(parts)}{also}. Study `{evidence.study}`; {evidence.limit}."
    return Verdict(
        word,
        sentence,
        tuple(found),
        min((f.n_runs for f in found), default=0),
        gather("runs"),
        gather("missing"),
        tuple(parts),
    )


def number(found: Found) -> str:
    """A difference with its interval, p and n."""
    if not found.n_runs:
        return f"{found.words}: no pair of runs of {found.n_planned} planned"
    scale, unit, digits = UNITS[found.metric]
    mid, low, high = (
        f"{scale * v:+z.{digits}f}" for v in (found.difference, found.low, found.high)
    )
    p = ""
    if not math.isnan(found.p):
        p = f", p = {found.p:.2g} after Holm, {found.p_equivalence:.2g} for equivalence"
    folds = "1 fold" if found.n_folds == 1 else f"{found.n_folds} folds"
    n = f"{found.n_runs} of {found.n_planned} pairs of runs in {folds}"
    if found.metric != "epochs":
        n += f", {stats.cases_and_seeds(found.n_distinct, found.n_cases)}"
    return f"{found.words}: {mid} {unit} (95 % interval {low} to {high}{p}; {n})"


def gain(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast is a gain.

    Where `cheaper_than` names a system, fewer trained parameters than it has are part of the claim.
    """
    found = with_tests(
        evidence,
        own(claim, evidence, claim.metric),
        claim.margin,
        family(claim, evidence, claim.metric),
    )
    decisions, also = [as_gain(f, claim) for f in found], ""
    if claim.cheaper_than:
        ours, theirs = (trained(evidence, s) for s in (claim.contrasts[0][0], claim.cheaper_than))
        if math.isnan(ours + theirs):
            found.append(
                Found(
                    f"trained parameters of {name(claim.cheaper_than)}",
                    claim.metric,
                    1,
                    (claim.cheaper_than,),
                )
            )
            decisions.append((UNDECIDED, "not recorded"))
        else:
            also = (
                f"; trained parameters {ours:,.0f} against {theirs:,.0f} of"
                f" {name(claim.cheaper_than)}"
            )
            decisions = decisions if ours < theirs else [*decisions, (CONTRADICTED, "")]
    return combined(claim, evidence, found, decisions, also)


def trained(evidence: Evidence, system: str) -> float:
    """Trained parameters of a system's done runs; NaN where there is none."""
    counts = evidence.runs.loc[
        (evidence.runs["system"] == system) & (evidence.runs["state"] == "done"), "trainable"
    ]
    return float(counts.iloc[0]) if len(counts) else math.nan


def same(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast is equivalent within the margin."""
    found = with_tests(
        evidence,
        own(claim, evidence, claim.metric),
        claim.margin,
        family(claim, evidence, claim.metric),
    )
    return combined(claim, evidence, found, [as_same(f, claim) for f in found])


def untestable(claim: Claim, evidence: Evidence) -> Verdict:
    """What no record of the study can decide."""
    return Verdict(
        UNTESTABLE,
        f"{claim.why[:1].upper()}{claim.why[1:]}. Study `{evidence.study}`; {evidence.limit}.",
    )


def conjunction(claim: Claim, evidence: Evidence) -> Verdict:
    """A claim of many members: one that fails decides it; while those that were run hold, the
    others leave it open."""
    verdict = gain(claim, evidence)
    word = UNDECIDED if verdict.word == REPRODUCED else verdict.word
    failed = (
        " One member that fails decides a conjunction."
        if word in (NOT_REPRODUCED, CONTRADICTED)
        else ""
    )
    return replace(verdict, word=word, sentence=f"{verdict.sentence} Not run: {claim.why}.{failed}")


def every_metric(claim: Claim, evidence: Evidence) -> Verdict:
    """The contrast is better in every metric, and significantly in at least the reported share of
    them."""
    differences = [d for metric in claim.metrics for d in own(claim, evidence, metric)]
    found = with_tests(evidence, differences, claim.margin)
    early = [withheld(f) for f in found]
    if any(early):
        return combined(claim, evidence, found, [e or (UNDECIDED, "") for e in early])
    signs = [(-1 if f.metric == "hd95_mm" else 1) * f.difference for f in found]
    clear = [sign for f, sign in zip(found, signs) if f.decision(1e-9).word in (HIGHER, LOWER)]
    better = sum(s > 0 for s in clear)
    worse = sum(s < 0 for s in clear)
    needed = math.ceil(claim.reported_share * len(found))

    if worse:
        word = CONTRADICTED
    elif min(signs) <= 0:
        word = NOT_REPRODUCED
    else:
        word = REPRODUCED if better >= needed else UNDECIDED
    words = [(word, "better" if sign > 0 else "not better") for sign in signs]
    return combined(
        claim,
        evidence,
        found,
        words,
        f"; better in {sum(s > 0 for s in signs)} of {len(found)}, significantly in {better} "
        f"({needed} needed), significantly worse in {worse}",
    )


def trade_off(claim: Claim, evidence: Evidence) -> Verdict:
    """No reference is higher, and at least one is lower."""
    found = with_tests(
        evidence,
        own(claim, evidence, claim.metric),
        claim.margin,
        family(claim, evidence, claim.metric),
    )
    early = [withheld(f) for f in found]
    ways = [f.decision(claim.margin).word for f in found]
    if LOWER in ways:
        word = CONTRADICTED
    elif HIGHER in ways:
        word = REPRODUCED
    else:
        word = NOT_REPRODUCED if set(ways) == {EQUIVALENT} else UNDECIDED

    alike = f"{EQUIVALENT} {within(claim.margin, claim.metric)}"
    says = [
        {EQUIVALENT: alike, UNDECIDED: left_open(f)}.get(way, way) for f, way in zip(found, ways)
    ]
    return combined(claim, evidence, found, [e or (word, why) for e, why in zip(early, says)])


def faster(claim: Claim, evidence: Evidence) -> Verdict:
    """Fewer epochs to each share of the reference's last validation Dice of the same fold and seed,
    at each fraction."""
    differences = [
        to_share(evidence, *pair, task, f, share)
        for f in claim.fractions
        for share in claim.shares
        for pair in claim.contrasts
        for task in tasks(evidence, pair)
    ]
    found = with_tests(evidence, differences, claim.margin)
    towards = replace(claim, lower=True, size="")
    verdict = combined(
        claim,
        evidence,
        found,
        [as_gain(f, towards) for f in found],
        "; a run that never gets there counts as one epoch more than it was trained",
    )
    steps = {
        f: step for f in claim.fractions if (step := validated_every(evidence, f)) >= claim.margin
    }
    if not steps:
        return verdict
    coarse = ", ".join(f"every {step} epochs at {f:.0%} of the data" for f, step in steps.items())
    why = (
        f"Unresolvable by construction: validated {coarse}, where the margin is {claim.margin:g}"
        " epochs. "
    )
    return replace(verdict, word=UNTESTABLE, sentence=why + verdict.sentence)


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
    values: dict[tuple[int, int], np.ndarray],
    systems: tuple[str, ...],
    task: str,
    fraction: float,
    metric: str,
    planned: tuple[tuple[int, int], ...],
    base: float = math.nan,
) -> Difference:
    """A difference from values that are already one array per (fold, seed)."""
    units = tuple(sorted(values))
    pairs = (
        stats.Pairs(
            systems[0],
            systems[-1],
            task,
            fraction,
            metric,
            units,
            tuple(values[u] for u in units),
            (),
            planned,
        )
        if units
        else None
    )
    return Difference(words, pairs, systems, task, fraction, metric, planned, base)


def smaller_loss(claim: Claim, evidence: Evidence) -> Verdict:
    """From clean to damaged labels the system loses less than the reference, for every kind of
    damage."""
    differences = [
        change_of(evidence, *pair, noise, task, claim.metric)
        for noise in claim.noises
        for pair in claim.contrasts
        for task in tasks(evidence, pair)
    ]
    found = with_tests(evidence, differences, claim.margin)
    return combined(claim, evidence, found, [as_gain(f, claim) for f in found])


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
            if u in clean.units and u in planned
        }
    )
    words = f"change by damage ({noise}) of {name(system)} minus that of {name(reference)}"
    return by_hand(words, values, systems, task, 1.0, metric, planned)


def activation(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast of the activations' quantity is a gain: between two stages, between two
    systems, or between two systems' changes."""
    if evidence.further.get("activations", EMPTY).empty:
        return unrecorded("Activations", evidence)

    def take(pairs: Sequence[tuple[str, str]]) -> list[Found]:
        return with_tests(
            evidence,
            [
                at_stages(evidence, ours, theirs, claim.stages, claim.metric)
                for ours, theirs in pairs
            ],
            claim.margin,
        )

    found = take(claim.contrasts)
    verdict = combined(claim, evidence, found, [as_gain(f, claim) for f in found])
    (system, reference), beside = claim.contrasts[0], claim.controls
    without, against = (
        (take([(c, reference) for c in beside]), take([(system, c) for c in beside]))
        if beside
        else ([], [])
    )
    return beside_controls(claim, verdict, without, against)


def beside_controls(
    claim: Claim, verdict: Verdict, without: Sequence[Found], against: Sequence[Found]
) -> Verdict:
    """The verdict with its controls: a gain that a control has as well, and that the system does
    not exceed, is not the language model's.

    without: each control minus the reference; against: the system minus each control.
    """
    if not without:
        return verdict
    too = [as_gain(f, claim) for f in (*without, *against)]
    parts = [f"{number(f)}: {why}" for f, (_, why) in zip((*without, *against), too)]
    count = len(without)
    shared = any(a == REPRODUCED != b for (a, _), (b, _) in zip(too[:count], too[count:]))
    word = SHARED if verdict.word == REPRODUCED and shared else verdict.word
    what = (
        "A property of the mappers and the norm, not of the language model: its controls have it"
        " too. "
        if word == SHARED
        else ""
    )
    return replace(
        verdict,
        word=word,
        sentence=f"{what}{verdict.sentence} Controls: {'; '.join(parts)}.",
        numbers=(*verdict.numbers, *without, *against),
        parts=(*verdict.parts, *parts),
    )


def first_seed(
    evidence: Evidence, systems: Sequence[str], task: str
) -> tuple[tuple[int, int], ...]:
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

    def take(arm: str, stage: str) -> dict[tuple[int, int], pd.Series]:
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
    planned = first_seed(evidence, (system, reference), tasks(evidence, (system,))[0])
    arrays = {u: v.to_numpy(dtype=np.float64) for u, v in values.items() if u in planned}
    return by_hand(
        words,
        arrays,
        tuple(dict.fromkeys((system, reference))),
        tasks(evidence, (system,))[0],
        1.0,
        metric,
        planned,
    )


def stage_values(
    evidence: Evidence, system: str, stage: str, metric: str
) -> dict[tuple[int, int], pd.Series]:
    """Per (fold, seed), the quantity of each case at one stage; of `a/b` the first that the system
    has."""
    rows = evidence.further["activations"]
    rows = rows[(rows["system"] == system) & (rows["fraction"] == 1.0)]
    return per_case(
        next((found for s in stage.split("/") if len(found := rows[rows["stage"] == s])), rows[:0]),
        metric,
    )


def per_case(rows: pd.DataFrame, metric: str) -> dict[tuple[int, int], pd.Series]:
    """Per (fold, seed), a quantity of each case."""
    rows = rows.dropna(subset=[metric])
    return {
        (int(f), int(s)): run.groupby("case")[metric].mean().sort_index()
        for (f, s), run in rows.groupby(["fold", "seed"])
    }


def minus(
    ours: dict[tuple[int, int], pd.Series], theirs: dict[tuple[int, int], pd.Series]
) -> dict[tuple[int, int], pd.Series]:
    """Case by case over the (fold, seed) that both have with the same cases."""
    return {
        u: ours[u] - theirs[u]
        for u in ours
        if u in theirs and ours[u].index.equals(theirs[u].index)
    }


def masks(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast of a quantity of the predicted masks is a gain, over the (fold, seed) that are
    planned."""
    rows = evidence.further.get("masks", EMPTY)
    if rows.empty:
        return unrecorded("Measures of the masks", evidence)
    rows = rows[rows["fraction"] == 1.0]
    differences = []
    for system, reference in claim.contrasts:
        task = tasks(evidence, (system,))[0]
        units = planned_units(evidence, (system, reference), task, 1.0)
        ours, theirs = (
            per_case(rows[rows["system"] == arm], claim.metric) for arm in (system, reference)
        )
        values = {
            u: v.to_numpy(dtype=np.float64) for u, v in minus(ours, theirs).items() if u in units
        }
        differences.append(
            by_hand(
                f"{name(system)} minus {name(reference)}",
                values,
                (system, reference),
                task,
                1.0,
                claim.metric,
                units,
            )
        )
    found = with_tests(evidence, differences, claim.margin)
    return combined(claim, evidence, found, [as_gain(f, claim) for f in found])


def unrecorded(what: str, evidence: Evidence) -> Verdict:
    """The verdict where a table that is measured from weights is not there."""
    return Verdict(
        UNDECIDED, f"{what} are not recorded. Study `{evidence.study}`; {evidence.limit}."
    )


RULES: dict[str, Callable[[Claim, Evidence], Verdict]] = {
    "gain": gain,
    "same": same,
    "every_metric": every_metric,
    "trade_off": trade_off,
    "faster": faster,
    "smaller_loss": smaller_loss,
    "activation": activation,
    "masks": masks,
    "conjunction": conjunction,
    "untestable": untestable,
}
"The rules by name: what `data/claims.toml` can ask for."
