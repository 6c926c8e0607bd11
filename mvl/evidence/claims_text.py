"""The claims ledger in words and plain values: groups, totals, lines for a terminal, JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvl.evidence import second_study
from mvl.evidence.claims_evidence import Found
from mvl.evidence.claims_ledger import IMPLIED, NO_VERDICT, PAPERS, Entry, reported_numbers
from mvl.evidence.claims_verdicts import CONTRADICTED, REPRODUCED, UNTESTABLE, WORDS


def groups(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries by heading: the papers' own claims by paper, then what is implied; a heading
    without any is left out."""
    found = {
        name: [e for e in entries if e.claim.paper == paper and not e.claim.implied]
        for paper, name in PAPERS.items()
    }
    found[IMPLIED] = [e for e in entries if e.claim.implied]
    return {name: rows for name, rows in found.items() if rows}


def totals(entries: Sequence[Entry]) -> str:
    """How many claims of the papers and how many implied ones there are, and of which word, in a
    sentence each."""
    own, implied = ([e for e in entries if e.claim.implied == kind] for kind in (False, True))

    first, second = (
        ", ".join(f"{n} {word}" for word, n in counts(rows).items()) for rows in (own, implied)
    )
    # what none has is left out, but for the word that a reader looks for first
    if own and not {REPRODUCED, NO_VERDICT} & counts(own).keys():
        first = f"none {REPRODUCED}, {first}"
    said = f"{len(own)} claims of the papers: {first or 'none'}."
    return f"{said} {len(implied)} implied and tested by us: {second}." if implied else said


def one_finding(entries: Sequence[Entry]) -> str:
    """On how many sets of runs the contradicted claims rest, in a sentence; empty where each has
    its own."""
    against = [entry.verdict for entry in entries if entry.verdict and entry.word == CONTRADICTED]
    of_runs = Counter(tuple(sorted(verdict.numbers[0].runs)) for verdict in against)
    if len(of_runs) == len(against):
        return ""
    return (
        f"The {len(against)} contradicted rest on {len(of_runs)} different sets of runs, so that"
        " they are not all independent findings."
    )


def use(entry: Entry, results: Path) -> str:
    """What silencing and disturbing the layer costs the claim's first system, with the claim's
    share of the training cases, in Dice points; empty where no run recorded it."""
    claim = entry.claim
    if not claim.contrasts or not (entry.verdict and entry.verdict.runs):
        return ""
    system, _ = claim.contrasts[0]
    return second_study.use_in_numbers(entry.study, system, results, claim.fractions[0])


def counts(entries: Sequence[Entry]) -> dict[str, int]:
    """How many claims have each verdict, in the words' order; words that none has are left out."""
    found = {word: sum(e.word == word for e in entries) for word in (*WORDS, NO_VERDICT)}
    return {word: n for word, n in found.items() if n}


def brief(entry: Entry) -> str:
    """The first difference behind a verdict in a few words: value, interval and pairs of runs; why,
    where there is none."""
    if entry.verdict is None or not entry.verdict.numbers:
        return (
            ""
            if entry.verdict is None or entry.word == UNTESTABLE
            else entry.verdict.sentence.split(". ")[0]
        )
    parts = [short(found) for found in entry.verdict.numbers]
    more = len(parts) - 1
    return parts[0] + (f"; and {more} more" if more else "")


def short(found: Found) -> str:
    """A difference in a few words: value, interval and pairs of runs."""
    if not found.n_runs:
        return (
            f"0 of {found.n_planned} pair{'s' * (found.n_planned != 1)}"
            if found.n_planned
            else "not planned"
        )
    mid, low, high, unit = found.in_unit
    return (
        f"{mid} [{low}, {high}] {unit}, {found.n_runs} of {found.n_planned}"
        f" pair{'s' * (found.n_planned != 1)}"
    )


def claims_as_text(entries: Sequence[Entry]) -> str:
    """The ledger for a terminal: a line per claim by paper, then what the words mean for it and
    their counts."""
    lines: list[str] = []
    for name, rows in groups(entries).items():
        lines += [
            name,
            *(f"  {e.word:<18} {e.claim.short:<42} {brief(e)}".rstrip() for e in rows),
            "",
        ]
    return "\n".join([*lines, totals(entries), *LIMITS])


LIMITS = (
    (
        "A verdict is about this test, with a small language model in the papers' place, never"
        " about a paper's own run."
    ),
    "Sentences, rules, runs and what is missing: mvl claims --json, and the book's page on claims.",
)


def as_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The ledger as plain values; a number that there is not is null."""
    return {
        "claims": [_plain(entry) for entry in entries],
        "counts": counts(entries),
        "limits": list(LIMITS),
    }


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _plain(entry: Entry) -> dict[str, Any]:
    verdict = asdict(entry.verdict) if entry.verdict else None
    claim = entry.claim
    kept = {
        key: getattr(claim, key)
        for key in (
            "id",
            "paper",
            "place",
            "confidence",
            "claim",
            "chapter",
            "rule",
            "contrasts",
            "support",
            "takes",
        )
    }
    kept |= {"implied": claim.implied, "margin": claim.margin}
    return _finite(
        {
            **kept,
            "reported": reported_numbers(claim),
            "study": entry.study,
            "word": entry.word,
            "verdict": verdict,
            "elsewhere": {study: asdict(found) for study, found in entry.elsewhere},
            "needs": entry.needs,
        }
    )
