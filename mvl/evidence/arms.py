"""The arms of the studies as tables and figures show them: title, order, colour, marker."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence

from mvl.core.config import ConfigError, named
from mvl.datasets.registry import load_tasks
from mvl.datasets.task import MADE, SLICES

COLOURS = {
    "vit_baseline": "#0072B2",
    "medvisionllama_v3": "#D55E00",
    "medvisionllama_v3_random": "#009E73",
    "medvisionllama_v3_mlp": "#CC79A7",
    "medvisionllama_v3_identity": "#56B4E9",
    "medvisionllama_v3_linear": "#E69F00",
    "medvisionllama_v3_r2": "#F2A27A",
    "medvisionllama_v3_r8": "#9A4400",
    "medvisionllama_v3_r16": "#5C2900",
    "medvisionllama_v1": "#7B3294",
    "medvisionllama_v1_plain": "#6E7781",
    "medvisionllama_v1_hybrid": "#1B9AAA",
    "medvisionllama_v1_fusion": "#B8860B",
    "medvisionllama_v1_noblock": "#C2185B",
    "medvisionllama_v3_noresidual": "#808000",
    "medvisionllama_v3_shuffled": "#332288",
    "medvisionllama_v3_random_matched": "#8BC34A",
    "medvisionllama_v3_norm": "#B03060",
    "medvisionllama_v3_attention": "#0B7285",
    "medvisionllama_v3_noise": "#868E96",
    "medvisionllama_v3_after_embedding": "#661100",
    "medvisionllama_v3_trained": "#AA33CC",
    "medvisionllama_v3_random_trained": "#D4B106",
    "vit_depth": "#3D4651",
    "vit_mlp": "#F0027F",
    "medvisionllama_v3_lora_block": "#7A4988",
    "medvisionllama_v3_mask_rotary": "#B0306A",
    "medvisionllama_v3_minilm": "#2AA198",
    "medvisionllama_v3_minilm_rounded": "#1F6F6A",
    "medvisionllama_v3_layer0": "#B58900",
    "medvisionllama_v3_layer14": "#8C564B",
    "medvisionllama_v3_text": "#6A51A3",
    "unet": "#117733",
    "dynunet": "#44AA99",
    "unetr": "#AA4499",
    "swinunetr": "#999933",
    "unetpp": "#882255",
    "cmunext": "#2F6DB5",
    "llm4seg": "#C8501E",
    "llm4seg_random": "#1E8F6B",
    "llm4seg_t": "#8A6FBF",
    "cmunext_boundary20": "#6F9BD1",
    "llm4seg_boundary20": "#E9805A",
    "llm4seg_random_boundary20": "#5FB894",
    "cmunext_boundary50": "#173E6E",
    "llm4seg_boundary50": "#7A2B0B",
    "llm4seg_random_boundary50": "#0C4A35",
}
"""Okabe and Ito's colour-blind-safe palette first, Tol's for the peers; the LoRA ranks are shades
of the hybrid's vermilion; LLM4Seg's arms have the hues of their roles, lighter with the boundaries
of 20 % of the labels damaged, darker with those of 50 %."""
MARKERS = {
    "vit_baseline": "o",
    "medvisionllama_v3": "s",
    "medvisionllama_v3_random": "^",
    "medvisionllama_v3_mlp": "D",
    "medvisionllama_v3_identity": "v",
    "medvisionllama_v3_linear": "P",
    "cmunext": "o",
    "llm4seg": "s",
    "llm4seg_random": "^",
    "medvisionllama_v1": "*",
    "medvisionllama_v1_plain": "h",
    "medvisionllama_v1_hybrid": "<",
    "medvisionllama_v1_fusion": ">",
    "medvisionllama_v1_noblock": "d",
    "vit_depth": "p",
    "vit_mlp": "H",
    "unet": "P",
    "dynunet": "X",
    "unetr": "^",
    "swinunetr": "v",
    "unetpp": "D",
    "medvisionllama_v3_r2": "<",
    "medvisionllama_v3_r8": ">",
    "medvisionllama_v3_r16": "^",
    "medvisionllama_v3_lora_block": "d",
    "medvisionllama_v3_shuffled": "^",
    "medvisionllama_v3_random_matched": "p",
    "medvisionllama_v3_norm": "P",
    "medvisionllama_v3_attention": "*",
    "medvisionllama_v3_noise": "x",
    "medvisionllama_v3_noresidual": "v",
    "medvisionllama_v3_mask_rotary": "<",
    "medvisionllama_v3_after_embedding": ">",
    "medvisionllama_v3_minilm": "D",
    "medvisionllama_v3_minilm_rounded": "8",
    "medvisionllama_v3_layer0": "d",
    "medvisionllama_v3_layer14": "P",
    "medvisionllama_v3_text": "*",
    "llm4seg_t": "D",
}
TUNED = "_tuned"
"End of the name of an arm of a study that trains a system once more at a rate tuned for it."
LABEL = "#F0E442"
"Ink of the label's outline."


def colour(system: str) -> str:
    """The arm's colour, a function of its name alone; arms without one of their own get a dark or
    middling one from the name's hash."""
    if system in COLOURS:
        return COLOURS[system]
    draw = hashlib.sha256(system.encode()).digest()
    shade = colorsys.hls_to_rgb(
        int.from_bytes(draw[:2], "big") / 65536,
        0.3 + 0.2 * draw[2] / 255,
        0.35 + 0.5 * draw[3] / 255,
    )
    return "#" + "".join(f"{round(255 * part):02X}" for part in shade)


def marker(system: str) -> str:
    """The arm's marker, so that colour is never the only cue."""
    return MARKERS.get(system, "X")


def title(system: str) -> str:
    """The arm's name in words, from its YAML; the bare name where it has none."""
    name = system.removesuffix(TUNED)
    try:
        words = str(named("systems", name).get("title", name))
    except ConfigError:
        return system
    return words if name == system else f"{words}, tuned"


def ordered(systems: Sequence[str]) -> list[str]:
    """Distinct systems: those with a colour of their own first, in the palette's order, then the
    rest by name."""
    known = list(COLOURS)
    return sorted(set(systems), key=lambda s: (known.index(s) if s in known else len(known), s))


def generated(tasks: Sequence[str]) -> str:
    """The word for the generated data among the tasks, phantom or shape; empty where there are only
    scans and pictures."""
    return next((task.rstrip("s") for task in MADE if task in set(tasks)), "")


def caveat(tasks: Sequence[str]) -> str:
    """What must stand beside every number of these tasks, as they only show that the pipeline
    works; empty for evidence.

    That holds for generated data, and for the few scans that are committed.
    """
    if made := generated(tasks):
        return f"{made} data: a smoke study, not evidence about scans"
    few = (load_tasks().get(name.removesuffix(SLICES)) for name in tasks)
    if scans := next((task for task in few if task and task.home), None):
        return (
            f"{scans.num_cases} scans, small network: shows that the pipeline works; not evidence"
        )
    return ""
