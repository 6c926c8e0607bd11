"""The claims ledger: `data/claims.toml` judged by its rules on the studies' records, for the book
and the terminal."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.columns import KEYS_IN_STUDY
from mvl.core.config import ROOT, load_config
from mvl.evidence.arms import caveat
from mvl.evidence.chapter import _foreground, read_tables
from mvl.evidence.claims_evidence import Claim, ClaimError, Evidence
from mvl.evidence.claims_power import what_would_decide
from mvl.evidence.claims_rules import RULES
from mvl.evidence.claims_verdicts import CONTRADICTED, MOOT, NOT_REPRODUCED, Verdict
from mvl.evidence.decision import PICTURES, UNDECIDED, WITHDRAWN
from mvl.evidence.reported import paper_value
from mvl.evidence.second_study import of_protocol
from mvl.study.grid import run_keys
from mvl.study.tables import read_external

LEDGER = ROOT / "data" / "claims.toml"
PAPERS = {"P1": "MedVisionLlama, version 3", "P1-v1": "MedVisionLlama, version 1", "P2": "LLM4Seg"}
IMPLIED = "Implied, tested by us"
"Heading of the claims that no paper states in that form."
MODELS = {"P1": "Llama-3.1-8B", "P1-v1": "Llama-3.1-8B", "P2": "Llama-3.2-1B"}
"The language model whose layer each paper uses."
NO_VERDICT = "not evidence: no verdict"
FURTHER = ("activations", "masks")
"Tables that a command measures from recorded weights, where somebody has run it."


@dataclass(frozen=True)
class Entry:
    """One line of the ledger; no verdict where the study's tasks are no evidence."""

    claim: Claim
    study: str
    verdict: Verdict | None
    elsewhere: tuple[tuple[str, Verdict], ...] = ()
    "What the claim's other studies say, where they plan its runs."
    needs: str = ""
    "What would decide it, where it is open."

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
    # these three are computed, not given
    known = {field.name for field in fields(Claim)} - {"reported_gain", "reported_share", "fixed"}
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
    try:
        return [
            paper_value(table, system, metric, claim.paper)
            for table, system, metric in claim.reported
        ]
    except KeyError as error:
        raise ClaimError(f"claim {claim.id}: {error.args[0]}") from error


def planned_runs(study: str) -> pd.DataFrame:
    """task, system, fraction, fold, seed of every run of the study's grid."""
    return pd.DataFrame(run_keys(study), columns=KEYS_IN_STUDY)


def read_evidence(study: str, results_dir: Path) -> Evidence:
    """The study's plan and tables, empty where nothing is recorded; trains and writes nothing."""
    plan = planned_runs(study)
    runs, cases, history = read_tables(study, Path(results_dir))

    further = {}
    for name in FURTHER:
        path = Path(results_dir) / Path(study).stem / f"{name}.csv"
        if path.is_file():
            further[name] = pd.read_csv(path, dtype={"case": str})

    external = read_external(study, Path(results_dir))
    if len(external):
        further["external"] = _foreground(external)

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


def ledger(results_dir: Path, studies: Sequence[str] = ()) -> list[Entry]:
    """Every claim that the studies speak of, each judged on those of its own studies that are
    among them, or on the first that plans its systems.

    studies: the studies to judge by; none given, all that the claims name.
    """
    claims = load_claims()
    named = studies or tuple(dict.fromkeys(study for claim in claims for study in claim.studies))
    evidence = {study: read_evidence(study, results_dir) for study in named}
    entries = []
    for claim in claims:
        own = [study for study in claim.studies if study in evidence]
        others = (study for study in named if planned(claim, evidence[study]))
        if candidates := own or list(itertools.islice(others, 1)):
            entries.append(entry_of(claim, {study: evidence[study] for study in candidates}))
    by_id = {entry.claim.id: entry for entry in entries}
    return [explained(entry, by_id.get(entry.claim.explains)) for entry in entries]


def entry_of(claim: Claim, evidence: dict[str, Evidence]) -> Entry:
    """The claim judged on the first of its studies in which all of its planned runs are done, or
    else on the first; the others stand beside.

    Whether runs are there decides, never what they say; of a conjunction, whose members the studies
    are, the first done one in which it fails.
    """
    claims = {study: at_margin_of(study, claim) for study in evidence}
    verdicts = {study: judge(claims[study], records) for study, records in evidence.items()}
    first = next(iter(verdicts))
    done = [s for s, v in verdicts.items() if v and v.numbers and not v.missing]
    study = next(iter(done), first)
    if claim.rule == "conjunction":
        failed = (CONTRADICTED, NOT_REPRODUCED)
        study = next((s for s in done if (v := verdicts[s]) and v.word in failed), study)
    beside = tuple((s, v) for s, v in verdicts.items() if v and v.numbers and s != study)
    verdict = verdicts[study]
    needs = ""
    if verdict and verdict.word in (UNDECIDED, WITHDRAWN):
        needs = what_would_decide(claims[study], evidence[study], verdict.numbers)
    return Entry(claims[study], study, verdict, beside, needs)


def at_margin_of(study: str, claim: Claim) -> Claim:
    """The claim with the margin that the second protocol fixed for its metric in a study of
    pictures; elsewhere the claim itself."""
    of_pictures = of_protocol(study) and claim.measured_in == "jaccard"
    return replace(claim, fixed=PICTURES) if of_pictures else claim


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
    """The verdict by the claim's rule; None where the study's tasks are no evidence."""
    if caveat(list(evidence.plan["task"].unique())):
        return None
    verdict = RULES[claim.rule](claim, evidence)
    if claim.weak and verdict.word == CONTRADICTED:
        verdict = replace(verdict, word=NOT_REPRODUCED)
    return (
        replace(verdict, sentence=f"{verdict.sentence} {claim.weak[:1].upper()}{claim.weak[1:]}.")
        if claim.weak
        else verdict
    )
