"""What stands in for the variances of the second protocol's contrasts before their study has
records of its own."""

from __future__ import annotations

from mvl.evidence.second_study import DESCRIBED, HYBRID, QUESTIONS, VIT, Question
from mvl.evidence.topics import CNN, LLM4SEG, PEERS

Pair = tuple[str, str]
"System and reference."
FAMILIES = (*QUESTIONS, *DESCRIBED)
"Questions, whose contrasts share Holm's correction, then what is described."
STUDIES = tuple(dict.fromkeys(family.study for family in FAMILIES))
"The protocol's studies, each once."
SOURCES = ("hippocampus2_published", "hippocampus")
"Studies whose records are asked for a contrast that a 3-D study has no runs of itself, in order."


def families_of(study: str) -> tuple[Question, ...]:
    """Return the study's families; none for a study that is not the protocol's."""
    return tuple(family for family in FAMILIES if family.study == study)


def stand_in(question: Question) -> tuple[str, Pair]:
    """Return the study and contrast whose variances are taken: the nearest that the first study, or
    the second as published, has measured."""
    if question.metric == "jaccard":
        return "busi", (LLM4SEG, CNN)
    if question.fraction < 1:
        return "hippocampus", (HYBRID, VIT)
    if question.contrasts[0][0] in PEERS:
        return "hippocampus", ("unet", VIT)
    return "hippocampus2_published", (HYBRID, VIT)


def sources_of(study: str) -> list[str]:
    """Return the study itself, then those whose records stand in."""
    if study not in STUDIES:
        return [study]
    stand_ins = dict.fromkeys(stand_in(family)[0] for family in families_of(study))
    if "busi" in stand_ins:
        return [study, "busi"]
    return list(dict.fromkeys([study, *SOURCES, *stand_ins]))
