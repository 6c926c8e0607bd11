"""What an open claim still needs: how many folds would decide it at the spread that was measured,
and what their runs would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mvl.evidence.claims_evidence import UNITS, Claim, Evidence, Found, within
from mvl.evidence.decision import error_factor, t_reach
from mvl.evidence.power import POWER, detectable, largest_sd

MOST_FOLDS = 10
"A study's splits have ten blocks, so there are at most ten folds."


def fold_sd(found: Found) -> float:
    """Return the standard deviation of the fold means behind a printed interval, in the metric's
    own unit; NaN with fewer than two folds."""
    if found.n_folds < 2:
        return math.nan
    return (found.high - found.low) / 2 / t_reach(error_factor(found.n_folds), found.n_folds)


def folds_needed(sd: float, difference: float) -> int | None:
    """Return the fewest folds, three to ten, that find a true difference with 80 % power; None
    where ten do not."""
    enough = (n for n in range(3, MOST_FOLDS + 1) if (detectable(sd, n) or math.inf) <= difference)
    return next(enough, None)


def folds_for_equivalence(sd: float, margin: float) -> int | None:
    """Return the fewest folds that call two equal arms equivalent with 80 % power; None where ten
    do not."""
    enough = (n for n in range(3, MOST_FOLDS + 1) if sd <= (largest_sd(n, margin) or 0.0))
    return next(enough, None)


def what_would_decide(claim: Claim, evidence: Evidence, numbers: Sequence[Found]) -> str:
    """Return in a sentence what would decide an open claim: of its differences, the one with the
    largest spread. Empty where no spread is measured and nothing is missing."""
    waiting = sum(len(found.missing) for found in numbers)
    verb = "run of it is" if waiting == 1 else "runs of it are"
    missing = f" {waiting} planned {verb} missing." if waiting else ""
    spread = [(fold_sd(found), found) for found in numbers if found.n_folds > 1]
    if not spread:
        alone = any(found.n_folds == 1 for found in numbers)
        one = "One fold measures no spread, so its power is unknown; three folds are the least."
        return ((one if alone else "") + missing).strip()
    sd, widest = max(spread, key=lambda pair: pair[0])
    scale, unit, digits = UNITS[widest.metric]
    margin = claim.margin
    sees = detectable(sd, widest.n_folds)
    text = (
        f"Fold differences have a standard deviation of {scale * sd:.{digits}f} {unit}"
        f" ({widest.words}): {widest.n_folds} folds see {scale * (sees or math.nan):.{digits}f}"
        f" with {100 * POWER:.0f} % power."
    )
    more, same = folds_needed(sd, margin), folds_for_equivalence(sd, margin)
    size = within(margin, widest.metric).removeprefix("within ")
    return f"{text} {_folds(more, same, size)}{cost(evidence, widest)}{missing}"


def _folds(more: int | None, same: int | None, size: str) -> str:
    if more is None and same is None:
        return f"Not even ten folds of one seed would see {size}, or call equal arms equivalent."
    first = f"{more} folds would see {size}" if more else f"not even ten folds would see {size}"
    second = f"{same} would call equal arms equivalent" if same else "none call equivalence"
    return f"{first[:1].upper()}{first[1:]}; {second}."


def cost(evidence: Evidence, found: Found) -> str:
    """Return what one fold more of the compared arms took here, in core-minutes."""
    done = evidence.runs[
        evidence.runs["system"].isin(found.systems) & (evidence.runs["state"] == "done")
    ]
    if done.empty:
        return ""
    minutes = done.groupby("system")["cpu_s"].mean().sum() / 60
    return f" A fold of one seed took {minutes:.0f} core-minutes."
