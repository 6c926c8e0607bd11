"""Rules that turn a study's tables into a verdict on one claim; a changed record changes the
verdict, a missing run withholds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from mvl.evidence.claims_differences import (
    at_stages,
    by_hand,
    change_of,
    minus,
    per_case,
    to_share,
    validated_every,
)
from mvl.evidence.claims_evidence import (
    Claim,
    Difference,
    Evidence,
    Found,
    name,
    planned_units,
    tasks,
    within,
)
from mvl.evidence.claims_tests import family, own, with_tests
from mvl.evidence.claims_verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    SHARED,
    UNTESTABLE,
    Verdict,
    as_gain,
    as_same,
    combined,
    left_open,
    number,
    unrecorded,
    withheld,
)
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, UNDECIDED

EMPTY = pd.DataFrame()


def own_with_tests(claim: Claim, evidence: Evidence) -> list[Found]:
    """The claim's own contrasts with their tests, corrected together with their family."""
    differences = own(claim, evidence, claim.metric)
    return with_tests(evidence, differences, claim.margin, family(claim, evidence, claim.metric))


def all_gains(claim: Claim, evidence: Evidence, differences: Sequence[Difference]) -> Verdict:
    """Every one of the differences is a gain."""
    found = with_tests(evidence, differences, claim.margin)
    return combined(claim, evidence, found, [as_gain(f, claim) for f in found])


def gain(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast is a gain.

    Where `cheaper_than` names a system, fewer trained parameters than it has are part of the claim.
    """
    found = own_with_tests(claim, evidence)
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
    found = own_with_tests(claim, evidence)
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
    found = with_tests(evidence, differences)
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
    found = own_with_tests(claim, evidence)
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


def smaller_loss(claim: Claim, evidence: Evidence) -> Verdict:
    """From clean to damaged labels the system loses less than the reference, for every kind of
    damage."""
    differences = [
        change_of(evidence, *pair, noise, task, claim.metric)
        for noise in claim.noises
        for pair in claim.contrasts
        for task in tasks(evidence, pair)
    ]
    return all_gains(claim, evidence, differences)


def activation(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast of the activations' quantity is a gain: between two stages, between two
    systems, or between two systems' changes."""
    if evidence.further.get("activations", EMPTY).empty:
        return unrecorded("Activations", evidence)

    def changes(pairs: Sequence[tuple[str, str]]) -> list[Difference]:
        return [at_stages(evidence, *pair, claim.stages, claim.metric) for pair in pairs]

    verdict = all_gains(claim, evidence, changes(claim.contrasts))
    system, reference = claim.contrasts[0]
    without, against = (
        with_tests(evidence, changes(pairs), claim.margin)
        for pairs in (
            [(control, reference) for control in claim.controls],
            [(system, control) for control in claim.controls],
        )
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


def masks(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast of a quantity of the predicted masks is a gain."""
    return of_table(claim, evidence, "masks", "Measures of the masks")


def external(claim: Claim, evidence: Evidence) -> Verdict:
    """Every contrast is a gain on the cases of another source, which no run was trained on."""
    verdict = of_table(claim, evidence, "external", "External tests")
    if not verdict.n:
        return verdict
    told = "Every fold is asked about the same cases: the interval is over trainings alone."
    return replace(verdict, sentence=f"{verdict.sentence} {told}")


def of_table(claim: Claim, evidence: Evidence, table: str, title: str) -> Verdict:
    """Every contrast of one of the further tables is a gain, over the (fold, seed) that are
    planned."""
    rows = evidence.further.get(table, EMPTY)
    if rows.empty:
        return unrecorded(title, evidence)
    rows = rows[rows["fraction"] == 1.0]
    differences = []
    for system, reference in claim.contrasts:
        task = tasks(evidence, (system,))[0]
        ours, theirs = (
            per_case(rows[rows["system"] == arm], claim.metric) for arm in (system, reference)
        )
        differences.append(
            by_hand(
                f"{name(system)} minus {name(reference)}",
                minus(ours, theirs),
                (system, reference),
                task,
                1.0,
                claim.metric,
                planned_units(evidence, (system, reference), task, 1.0),
                table == "external",
            )
        )
    return all_gains(claim, evidence, differences)


RULES: dict[str, Callable[[Claim, Evidence], Verdict]] = {
    "gain": gain,
    "same": same,
    "every_metric": every_metric,
    "trade_off": trade_off,
    "faster": faster,
    "smaller_loss": smaller_loss,
    "activation": activation,
    "masks": masks,
    "external": external,
    "conjunction": conjunction,
    "untestable": untestable,
}
"The rules by name: what `data/claims.toml` can ask for."
