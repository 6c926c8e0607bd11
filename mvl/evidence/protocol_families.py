"""The families of contrasts that the second protocol plans (book/protocol_2.md), for the power of
each design: what is tested, together with what, by which measure and margin."""

from __future__ import annotations

from dataclasses import dataclass

from mvl.evidence import second_study
from mvl.evidence.decision import MARGIN, PICTURES
from mvl.evidence.second_study import HYBRID, IDENTITY, SHUFFLED, VIT
from mvl.evidence.topics import CNN, LLM4SEG, V1

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


def _pictures(study: str) -> tuple[Family, ...]:
    """Question 6: does the layer help, is it the pretraining, is it more than its parts?"""
    questions = (
        ((LLM4SEG, CNN),),
        ((LLM4SEG, f"{LLM4SEG}_shuffled"),),
        ((LLM4SEG, f"{LLM4SEG}_identity"), (LLM4SEG, f"{LLM4SEG}_transformer")),
    )
    return tuple(
        Family(study, pairs, 1.0, "jaccard", PICTURES.value, ("busi", (LLM4SEG, CNN)))
        for pairs in questions
    )


def _few_shot(study: str) -> tuple[Family, ...]:
    """Question 8, with a tenth of the training cases."""
    return tuple(
        Family(study, (pair,), 0.1, stand_in=("hippocampus", (HYBRID, VIT)))
        for pair in ((HYBRID, VIT), (HYBRID, SHUFFLED))
    )


def _anatomy(study: str, *peers: Pair) -> tuple[Family, ...]:
    """Question 7, and the peers that are described beside it."""
    return (
        Family(study, ((HYBRID, VIT), (HYBRID, SHUFFLED), (HYBRID, IDENTITY))),
        *(Family(study, (pair,), stand_in=("hippocampus", pair)) for pair in peers),
    )


TUNED, LINEAR = "hippocampus2_tuned", f"{HYBRID}_linear"
FAMILIES = (
    *(
        Family(question.study, question.contrasts)
        for question in (*second_study.QUESTIONS, *second_study.DESCRIBED)
    ),
    *_pictures("isic"),
    *_pictures("kvasir"),
    *_anatomy("left_atrium", ("unet", VIT)),
    *_anatomy("heart_tuned", ("unet", VIT)),
    *_anatomy("heart_published"),
    *_few_shot("hippocampus2_published"),
    *_few_shot(TUNED),
    Family(TUNED, ((LINEAR, HYBRID), (f"{HYBRID}_r16", HYBRID))),
    Family(TUNED, ((V1, VIT), (V1, f"{V1}_noblock"))),
    Family(TUNED, ((f"{V1}_hybrid", LINEAR), (f"{V1}_fusion", LINEAR))),
    Family(TUNED, (("unetpp", VIT),), stand_in=("hippocampus", ("unet", VIT))),
    Family(TUNED, (("swinunetr", VIT),), stand_in=("hippocampus", ("unet", VIT))),
    Family("hippocampus2_published", ((f"{HYBRID}_auxiliary", VIT),)),
)
"In the order of rows 1 and 2, then 3 to 8; families of one that get no verdict are described."
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
