"""How figures look: one colour and marker for each arm everywhere, light cards, and what is written inside so that copying cannot lose it."""

from __future__ import annotations

import colorsys
import hashlib
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from mvl.config import ConfigError, named
from mvl.datasets.tasks import MADE

COLOURS = {
    "vit_baseline": "#0072B2", "medvisionllama_v3": "#D55E00", "medvisionllama_v3_random": "#009E73",
    "medvisionllama_v3_mlp": "#CC79A7", "medvisionllama_v3_identity": "#56B4E9", "medvisionllama_v3_linear": "#E69F00",
    "medvisionllama_v3_r2": "#F2A27A", "medvisionllama_v3_r8": "#9A4400", "medvisionllama_v3_r16": "#5C2900",
    "medvisionllama_v1": "#7B3294", "medvisionllama_v1_plain": "#6E7781", "medvisionllama_v1_hybrid": "#1B9AAA",
    "medvisionllama_v1_fusion": "#B8860B", "medvisionllama_v1_noblock": "#C2185B",
    "medvisionllama_v3_noresidual": "#808000", "medvisionllama_v3_shuffled": "#332288", "medvisionllama_v3_random_matched": "#8BC34A",
    "medvisionllama_v3_after_embedding": "#661100", "medvisionllama_v3_trained": "#AA33CC", "medvisionllama_v3_random_trained": "#D4B106",
    "vit_depth": "#3D4651", "vit_mlp": "#F0027F",
    "medvisionllama_v3_lora_block": "#7A4988", "medvisionllama_v3_mask_rotary": "#B0306A", "medvisionllama_v3_minilm": "#2AA198",
    "medvisionllama_v3_layer0": "#B58900", "medvisionllama_v3_layer14": "#8C564B", "medvisionllama_v3_text": "#6A51A3",
    "unet": "#117733", "dynunet": "#44AA99", "unetr": "#AA4499", "swinunetr": "#999933", "unetpp": "#882255",
    "cmunext": "#2F6DB5", "llm4seg": "#C8501E", "llm4seg_random": "#1E8F6B", "llm4seg_t": "#8A6FBF",
    "cmunext_boundary20": "#6F9BD1", "llm4seg_boundary20": "#E9805A", "llm4seg_random_boundary20": "#5FB894",
    "cmunext_boundary50": "#173E6E", "llm4seg_boundary50": "#7A2B0B", "llm4seg_random_boundary50": "#0C4A35",
}
"Okabe and Ito's colour-blind-safe palette first, Tol's for the peers; the LoRA ranks are shades of the hybrid's vermilion; LLM4Seg's arms have the \
hues of their roles, lighter with the boundaries of 20 % of the labels damaged, darker with those of 50 %."
FRACTION_COLOURS = {0.1: "#3B5BDB", 0.3: "#5C940D", 1.0: "#495057"}
"Blue 10 %, green 30 %, as in MedVisionLlama's figure; for the one figure where colour tells the share and the dash tells the arm."
DASHES = ("-", "--", ":", "-.")
MARKERS = {"vit_baseline": "o", "medvisionllama_v3": "s", "medvisionllama_v3_random": "^", "medvisionllama_v3_mlp": "D",
           "medvisionllama_v3_identity": "v", "medvisionllama_v3_linear": "P", "cmunext": "o", "llm4seg": "s", "llm4seg_random": "^",
           "medvisionllama_v1": "*", "medvisionllama_v1_plain": "h", "medvisionllama_v1_hybrid": "<", "medvisionllama_v1_fusion": ">",
           "medvisionllama_v1_noblock": "d", "vit_depth": "p", "vit_mlp": "H", "unet": "P", "dynunet": "X", "unetr": "^", "swinunetr": "v",
           "unetpp": "D", "medvisionllama_v3_r2": "<", "medvisionllama_v3_r8": ">", "medvisionllama_v3_r16": "^",
           "medvisionllama_v3_lora_block": "d", "medvisionllama_v3_shuffled": "^", "medvisionllama_v3_noresidual": "v",
           "medvisionllama_v3_mask_rotary": "<", "medvisionllama_v3_after_embedding": ">", "medvisionllama_v3_minilm": "D",
           "medvisionllama_v3_layer0": "d", "medvisionllama_v3_layer14": "P", "medvisionllama_v3_text": "*", "llm4seg_t": "D"}
LABEL = "#F0E442"
"Ink of the label's outline."
CARD, INK, GRID, MUTED, WARN = "#FCFCFA", "#1F2328", "#D9DCE0", "#57606A", "#9A3412"
"Figures are light cards with dark ink, so they read the same on a light and on a dark page."
TRAINED, FROZEN, MIXED, NEUTRAL = ("#B4470A", "#FDEBDD"), ("#1D5F96", "#E1EEF8"), ("#57606A", "#F0EDE6"), ("#6E7781", "#F6F6F3")
"Edge and fill of a drawing's boxes: every parameter trained, every one frozen, some of each, none at all."
VERDICTS = {"reproduced": ("#0072B2", "o"), "shared by controls": ("#3D6B35", "P"), "not reproduced": ("#8A5A00", "s"),
            "contradicted": ("#A4133C", "X"), "moot": ("#57606A", "v"), "not decided": ("#57606A", "D"), "withdrawn": ("#57606A", "x"),
            "not testable here": ("#57606A", "_")}
"Ink and marker of a verdict's word; those that decide nothing are drawn hollow, so that neither colour nor marker is the only cue."
SEQUENTIAL = "cividis"
"Colour map of pictures: even in lightness and safe for colour-blind readers."
STYLE: dict[str, Any] = {
    "figure.facecolor": CARD, "axes.facecolor": CARD, "savefig.facecolor": CARD, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#6E7781",
    "xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 11, "axes.titlesize": 11, "axes.titlelocation": "left", "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8, "svg.hashsalt": "mvl", "svg.fonttype": "path", "figure.dpi": 110, "font.family": "DejaVu Sans",
}


def colour(system: str) -> str:
    """The arm's colour, a function of its name alone; arms without one of their own get a dark or middling one from the name's hash."""
    if system in COLOURS:
        return COLOURS[system]
    draw = hashlib.sha256(system.encode()).digest()
    shade = colorsys.hls_to_rgb(int.from_bytes(draw[:2], "big") / 65536, 0.3 + 0.2 * draw[2] / 255, 0.35 + 0.5 * draw[3] / 255)
    return "#" + "".join(f"{round(255 * part):02X}" for part in shade)


def marker(system: str) -> str:
    """The arm's marker, so that colour is never the only cue."""
    return MARKERS.get(system, "X")


def title(system: str) -> str:
    """The arm's name in words, from its YAML; the bare name where it has none."""
    try:
        return str(named("systems", system).get("title", system))
    except ConfigError:
        return system


def ordered(systems: Sequence[str]) -> list[str]:
    """Distinct systems: those with a colour of their own first, in the palette's order, then the rest by name."""
    known = list(COLOURS)
    return sorted(set(systems), key=lambda s: (known.index(s) if s in known else len(known), s))


def generated(tasks: Sequence[str]) -> str:
    """The word for the generated data among the tasks, phantom or shape; empty where there are only scans and pictures."""
    return next((task.rstrip("s") for task in MADE if task in set(tasks)), "")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw under the project's style, whatever the session's matplotlib settings are."""
    @wraps(draw)
    def inside(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context({**mpl.rcParamsDefault, "backend": mpl.rcParams["backend"], **STYLE}):  # type: ignore[dict-item]
            return draw(*args, **kwargs)
    return inside


def finish(figure: Figure, tasks: Sequence[str], holes: Sequence[str] = (), caveats: Sequence[str] = (), key: str = "") -> Figure:
    """Write the word phantom or shape, the caveats and the holes into the figure, so that none is lost when it is copied out of its page.

    key: what lines and marks mean; alone, it is no warning and is written in grey.
    """
    notes = [f"{generated(tasks)} data: a smoke study, not evidence about scans"] if generated(tasks) else []
    notes += caveats
    notes += textwrap.wrap("not yet recorded: " + "; ".join(holes), 84, break_on_hyphens=False) if holes else []
    if notes or key:
        look = {"color": WARN, "style": "italic"} if notes else {"color": MUTED}
        figure.supxlabel("\n".join([*textwrap.wrap(key, 84), *notes]), x=0.01, ha="left", fontsize=9.5, **look)
    return figure


@styled
def hole(message: str, tasks: Sequence[str] = ()) -> Figure:
    """A card that says what is missing and how to get it, where a figure would stand."""
    figure = Figure(figsize=(6.4, 1.5), layout="constrained")
    lines = [line for paragraph in message.split("\n") for line in textwrap.wrap(paragraph, 72)]
    figure.text(0.5, 0.5, "\n".join(["not yet recorded", *lines]), ha="center", va="center", color="#9A3412")
    return finish(figure, tasks)
