"""The families of contrasts that the second protocol plans (book/protocol_2.md), for the power of
each design: what is tested, together with what, by which measure and margin."""

from __future__ import annotations

from dataclasses import dataclass

from mvl.evidence.decision import MARGIN
from mvl.evidence.second_study import DESCRIBED, HYBRID, QUESTIONS, VIT, Question
from mvl.evidence.topics import CNN, LLM4SEG, PEERS

Pair = tuple[str, str]
"System and reference."


@dataclass(frozen=True)
class Family:
    """Contrasts of one study that share Holm's correction, and whose records tell their variances
    before the study has its own."""

    study: str
    contrasts: tuple[Pair, ...]
    fraction: float = 1.0
    metric: str = "dice"
    margin: float = MARGIN
    stand_in: tuple[str, Pair] = ("hippocampus2_published", (HYBRID, VIT))
    "Study and contrast whose variances stand in where no records have the contrast itself."


def _family(question: Question) -> Family:
    """Return a question's family; what stands in for its variances is the nearest that the first
    study, or the second as published, has measured."""
    stand_in = ("hippocampus2_published", (HYBRID, VIT))
    if question.metric == "jaccard":
        stand_in = ("busi", (LLM4SEG, CNN))
    elif question.fraction < 1:
        stand_in = ("hippocampus", (HYBRID, VIT))
    elif question.contrasts[0][0] in PEERS:
        stand_in = ("hippocampus", ("unet", VIT))
    asked = (question.fraction, question.metric, question.margin)
    return Family(question.study, question.contrasts, *asked, stand_in)


FAMILIES = tuple(_family(question) for question in (*QUESTIONS, *DESCRIBED))
"Families of the questions, then of what is described."
STUDIES = tuple(dict.fromkeys(family.study for family in FAMILIES))
"The protocol's studies, each once."
SOURCES = ("hippocampus2_published", "hippocampus")
"Studies whose records are asked for a contrast that a 3-D study has no runs of itself, in order."


def families_of(study: str) -> tuple[Family, ...]:
    """The study's families; none for a study that is not the protocol's."""
    return tuple(family for family in FAMILIES if family.study == study)


def sources_of(study: str) -> list[str]:
    """The study itself, then those whose records stand in."""
    if study not in STUDIES:
        return [study]
    stand_ins = dict.fromkeys(family.stand_in[0] for family in families_of(study))
    if "busi" in stand_ins:
        return [study, "busi"]
    return list(dict.fromkeys([study, *SOURCES, *stand_ins]))
