"""The topics of the chapters: which arms each compares, on which studies, by which measures."""

from __future__ import annotations

from dataclasses import dataclass

VIT, HYBRID, RANDOM = "vit_baseline", "medvisionllama_v3", "medvisionllama_v3_random"
MLP = "medvisionllama_v3_mlp"
CNN, LLM4SEG, LLM4SEG_RANDOM, LLM4SEG_TRAINED = "cmunext", "llm4seg", "llm4seg_random", "llm4seg_t"
V1 = "medvisionllama_v1"
CONTROLS = (
    "shuffled",
    "noresidual",
    "mask_rotary",
    "after_embedding",
    "minilm",
    "layer0",
    "layer14",
    "text",
)
"""What the hybrid's block is replaced by, where it sits and how it is wired, each against the
hybrid."""
MAPPERS = ("r2", "r8", "r16", "linear", "lora_block")
"""Ranks of the mappers' adapters other than 4, mappers trained in full, and adapters inside the
block."""
PEERS = ("unet", "dynunet", "unetr", "swinunetr", "unetpp")
NOISES = ("boundary20", "boundary50")


@dataclass(frozen=True)
class Topic:
    """Which blocks of a study's grid a chapter reads, and which arms it compares."""

    blocks: tuple[str, ...]
    "Blocks whose systems the chapter is about; the first must be there."
    fractions: tuple[float, ...] = (1.0,)
    "Shares of the training cases that it shows."
    extra: tuple[str, ...] = ()
    "Systems that stand beside, over the folds and seeds of the topic's own blocks."
    beside: tuple[str, ...] = ("main",)
    "Blocks that hold them."
    only: tuple[str, ...] = ()
    "Systems that it is restricted to; empty: all of the blocks."
    contrasts: tuple[tuple[str, str], ...] = ()
    "(system, reference) pairs whose difference is taken, where the study plans both."
    metrics: tuple[str, ...] = ("dice",)
    "Columns of cases.csv whose differences are taken."
    compared: tuple[float, ...] = ()
    "Shares at which they are; empty: all that it shows."
    question: str = ""
    "Its contrasts' question in a few words."


TOPICS = {
    "baseline": Topic(("main",), only=(VIT,)),
    "llm_hybrid": Topic(
        ("main",),
        contrasts=((HYBRID, VIT), (RANDOM, VIT), (MLP, VIT), (HYBRID, RANDOM), (HYBRID, MLP)),
        question="The frozen block",
    ),
    "qualitative": Topic(("main",)),
    "few_shot": Topic(
        ("few_shot",),
        fractions=(0.1, 0.3, 1.0),
        extra=(HYBRID, VIT),
        contrasts=((HYBRID, VIT), (RANDOM, VIT), (HYBRID, RANDOM)),
        compared=(0.1, 0.3),
        question="Few training cases",
    ),
    "lora_ablation": Topic(
        ("lora",),
        extra=(HYBRID, VIT),
        question="The mappers",
        contrasts=tuple((f"{HYBRID}_{mapper}", HYBRID) for mapper in MAPPERS),
    ),
    "version_1": Topic(
        ("v1",),
        extra=(HYBRID, VIT),
        question="Version 1",
        contrasts=(
            (V1, VIT),
            (V1, HYBRID),
            (V1, f"{V1}_plain"),
            (f"{V1}_hybrid", f"{V1}_plain"),
            (f"{V1}_fusion", f"{V1}_plain"),
        ),
    ),
    "controls": Topic(
        ("controls",),
        extra=(HYBRID, VIT),
        question="What of the block matters",
        contrasts=(
            *((f"{HYBRID}_{control}", HYBRID) for control in CONTROLS),
            ("vit_depth", HYBRID),
            ("vit_depth", VIT),
        ),
    ),
    "comparators": Topic(
        ("peers", "peers_large"),
        extra=(HYBRID, VIT),
        question="Other networks",
        contrasts=(*((peer, VIT) for peer in PEERS), *((peer, HYBRID) for peer in PEERS)),
    ),
    "llm4seg": Topic(
        ("llm4seg",),
        metrics=("jaccard", "dice"),
        question="LLM4Seg",
        contrasts=(
            (LLM4SEG, CNN),
            (LLM4SEG_RANDOM, CNN),
            (LLM4SEG_TRAINED, CNN),
            (LLM4SEG, LLM4SEG_RANDOM),
            (LLM4SEG, LLM4SEG_TRAINED),
        ),
    ),
    "label_noise": Topic(
        ("label_noise",),
        metrics=("jaccard", "dice"),
        extra=(CNN, LLM4SEG, LLM4SEG_RANDOM),
        beside=("llm4seg",),
        question="Damaged labels",
        contrasts=tuple(
            (f"{system}_{noise}", f"{CNN}_{noise}")
            for noise in NOISES
            for system in (LLM4SEG, LLM4SEG_RANDOM)
        ),
    ),
}
