"""The claims ledger: `data/claims.toml` judged by its rules on the studies' records, for the book
and the terminal."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.config import ROOT, load_config
from mvl.datasets.task import MADE
from mvl.evidence.chapter import _foreground, read_tables
from mvl.evidence.claims_evidence import UNITS, Claim, ClaimError, Evidence, Found
from mvl.evidence.claims_rules import RULES
from mvl.evidence.claims_verdicts import (
    CONTRADICTED,
    MOOT,
    NOT_REPRODUCED,
    UNTESTABLE,
    WORDS,
    Verdict,
)
from mvl.study.grid import load_study

LEDGER = ROOT / "data" / "claims.toml"
PAPERS = {"P1": "MedVisionLlama, version 3", "P1-v1": "MedVisionLlama, version 1", "P2": "LLM4Seg"}
IMPLIED = "Implied, tested by us"
"Heading of the claims that no paper states in that form."
MODELS = {"P1": "Llama-3.1-8B", "P1-v1": "Llama-3.1-8B", "P2": "Llama-3.2-1B"}
"The language model whose layer each paper uses."
NO_VERDICT = "generated data: no verdict"
FURTHER = ("activations", "masks")
"Tables that a command measures from recorded weights, where somebody has run it."


@dataclass(frozen=True)
class Entry:
    """One line of the ledger; no verdict where the study has generated data alone."""

    claim: Claim
    study: str
    verdict: Verdict | None

    @property
    def word(self) -> str:
        """The verdict's word, or that there is none."""
        return self.verdict.word if self.verdict else NO_VERDICT


def load_claims(path: Path = LEDGER) -> list[Claim]:
    """The claims in the order of the file, reported numbers looked up in `data/paper_reported.csv`.

    Raises:
        ClaimError: an id stands twice, a key, rule or paper is unknown, or a reported row is not
            there exactly once.
    """
    claims = [_claim(entry) for entry in tomllib.loads(path.read_text())["claim"]]
    ids = [claim.id for claim in claims]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ClaimError(f"{path.name}: {', '.join(sorted(twice))} stands twice")
    return claims


def _claim(entry: dict[str, Any]) -> Claim:
    # these two are computed below
    known = {field.name for field in fields(Claim)} - {"reported_gain", "reported_share"}
    if unknown := sorted(set(entry) - known):
        raise ClaimError(f"claim {entry.get('id')}: unknown key {unknown[0]!r}")
    settings: dict[str, Any] = {key: _frozen(value) for key, value in entry.items()}
    try:
        claim = Claim(**settings)
    except TypeError as error:
        raise ClaimError(f"claim {entry.get('id')}: {error}") from error
    if claim.rule not in RULES or claim.paper not in PAPERS:
        raise ClaimError(
            f"claim {claim.id}: rule is one of {', '.join(RULES)}, paper one of {', '.join(PAPERS)}"
        )
    numbers = reported_numbers(claim)
    gain = math.nan
    if claim.size:
        ours, theirs = numbers[:2]
        gain = (
            (ours - theirs) / (1 - theirs) if claim.size == "error" else abs(ours - theirs) / theirs
        )
    return replace(
        claim,
        reported_gain=gain,
        reported_share=numbers[1] / numbers[0] if claim.rule == "every_metric" else math.nan,
    )


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def reported_numbers(claim: Claim) -> list[float]:
    """The numbers that the paper reports for the claim, in its order.

    Raises:
        ClaimError: `data/paper_reported.csv` has not exactly one such row.
    """
    from mvl.evidence.reported import paper_value

    try:
        return [
            paper_value(table, system, metric, claim.paper)
            for table, system, metric in claim.reported
        ]
    except KeyError as error:
        raise ClaimError(f"claim {claim.id}: {error.args[0]}") from error


def planned_runs(study: str) -> pd.DataFrame:
    """task, system, fraction, fold, seed of every run of the study's grid."""
    plan = load_study(study)
    rows = [
        (task, str(system), float(fraction), fold, seed)
        for block in plan.grid
        for task in block.get("tasks", plan.tasks)
        for system in block["systems"]
        for fraction in block.get("fractions", [1.0])
        for fold in block.get("folds", [0])
        for seed in block.get("seeds", [0])
    ]
    return pd.DataFrame(
        rows, columns=["task", "system", "fraction", "fold", "seed"]
    ).drop_duplicates(ignore_index=True)


def read_evidence(study: str, results_dir: Path) -> Evidence:
    """The study's plan and tables, empty where nothing is recorded; trains and writes nothing."""
    plan = planned_runs(study)
    runs, cases, history = read_tables(study, Path(results_dir))

    further = {}
    for name in FURTHER:
        path = Path(results_dir) / Path(study).stem / f"{name}.csv"
        if path.is_file():
            further[name] = pd.read_csv(path, dtype={"case": str})

    limit = stand_in(study, plan)
    return Evidence(study, plan, runs, _foreground(cases), history, further, limit)


def stand_in(study: str, plan: pd.DataFrame) -> str:
    """What the study's language model stands in for."""
    name = next((s for s in ("medvisionllama_v3", "llm4seg") if s in set(plan["system"])), None)
    if name is None:
        return "no language model of a paper is in it"
    source = load_config(study, plan["task"].iloc[0], name).model.token_block.source
    paper = MODELS["P1" if name == "medvisionllama_v3" else "P2"]
    ours = {"smollm2-135m": "SmolLM2-135M"}.get(source, source)
    return (
        f"the block is {ours}'s, as in the paper"
        if ours.lower() == paper.lower()
        else f"{ours} stands in for {paper}"
    )


def ledger(studies: Sequence[str], results_dir: Path, path: Path = LEDGER) -> list[Entry]:
    """Every claim that the studies speak of, each judged on its own study, or on the one study
    given where that plans its systems."""
    evidence = {study: read_evidence(study, results_dir) for study in studies}
    entries = []
    for claim in load_claims(path):
        study = (
            claim.study
            if claim.study in evidence
            else next((s for s in studies if planned(claim, evidence[s])), None)
        )
        if study is not None:
            entries.append(Entry(claim, study, judge(claim, evidence[study])))
    by_id = {entry.claim.id: entry for entry in entries}
    return [explained(entry, by_id.get(entry.claim.explains)) for entry in entries]


def explained(entry: Entry, gain: Entry | None) -> Entry:
    """The entry, moot where it explains a gain that is not there."""
    if gain is None or entry.verdict is None or gain.word not in (NOT_REPRODUCED, CONTRADICTED):
        return entry
    why = f'There is no gain to explain: "{gain.claim.short}" is {gain.word}. '
    return replace(
        entry, verdict=replace(entry.verdict, word=MOOT, sentence=why + entry.verdict.sentence)
    )


def planned(claim: Claim, evidence: Evidence) -> bool:
    """True when the study plans every system that the claim compares."""
    systems = {system for pair in claim.contrasts for system in pair}
    return bool(systems) and systems <= set(evidence.plan["system"])


def judge(claim: Claim, evidence: Evidence) -> Verdict | None:
    """The verdict by the claim's rule; None where the study has generated data alone."""
    if set(evidence.plan["task"]) <= set(MADE):
        return None
    verdict = RULES[claim.rule](claim, evidence)
    if claim.weak and verdict.word == CONTRADICTED:
        verdict = replace(verdict, word=NOT_REPRODUCED)
    return (
        replace(verdict, sentence=f"{verdict.sentence} {claim.weak[:1].upper()}{claim.weak[1:]}.")
        if claim.weak
        else verdict
    )


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
    said = f"{len(own)} claims of the papers: {first or 'none'}."
    return f"{said} {len(implied)} implied and tested by us: {second}." if implied else said


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
    scale, unit, digits = UNITS[found.metric]
    mid, low, high = (
        f"{scale * v:+z.{digits}f}" for v in (found.difference, found.low, found.high)
    )
    return (
        f"{mid} [{low}, {high}] {unit}, {found.n_runs} of {found.n_planned}"
        f" pair{'s' * (found.n_planned != 1)}"
    )


def show(entries: Sequence[Entry]) -> str:
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
        }
    )
