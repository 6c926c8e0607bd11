"""Words of a verdict: what one difference says of a claim, and what several say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mvl.evidence.claims_evidence import Claim, Evidence, Found, within
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED, WITHDRAWN

REPRODUCED, NOT_REPRODUCED, CONTRADICTED = "reproduced", "not reproduced", "contradicted"
SHARED, MOOT, UNTESTABLE = "shared by controls", "moot", "not testable here"
WORDS = (REPRODUCED, SHARED, NOT_REPRODUCED, CONTRADICTED, MOOT, UNDECIDED, WITHDRAWN, UNTESTABLE)
"Every word that a claim can have; the last two words of a difference stand for a claim too."
Said = tuple[str, str]
"A word, and why."


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
    mid, low, high, unit = found.in_unit
    p = ""
    if not math.isnan(found.p):
        p = f", p = {found.p:.2g} after Holm, {found.p_equivalence:.2g} for equivalence"
    folds = "1 fold" if found.n_folds == 1 else f"{found.n_folds} folds"
    n = f"{found.n_runs} of {found.n_planned} pairs of runs in {folds}"
    if found.metric != "epochs":
        n += f", {found.cases}"
    return f"{found.words}: {mid} {unit} (95 % interval {low} to {high}{p}; {n})"


def unrecorded(what: str, evidence: Evidence) -> Verdict:
    """The verdict where a table that is measured from weights is not there."""
    return Verdict(
        UNDECIDED, f"{what} are not recorded. Study `{evidence.study}`; {evidence.limit}."
    )
