"""The answer on the landing page and in README: a sentence, a table with a row for each study, and
what must be known to read it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.markdown import markdown_table
from mvl.evidence import second_study
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, PICTURES, UNDECIDED, decided
from mvl.evidence.learning_rates import apart_at_equal_rates
from mvl.evidence.second_study import HYBRID, SHUFFLED, Question
from mvl.evidence.topics import CNN, LLM4SEG
from mvl.publish.second_study_answer import (
    complete_regimes,
    in_points,
    of_mappers,
    plain_answer,
)
from mvl.publish.second_study_table import OPEN, complete_places, mean_score, place_in_words, seen
from mvl.study.grid import load_study

Tables = dict[Question, pd.DataFrame]
"The differences of each question that is recorded."
UNET = "unet"
"The peer beside the networks alone, where a study has it."
NO_BREAK = "\N{NO-BREAK SPACE}"


def in_brief(tables: Tables, results: Path, page: str) -> str:
    """Return the answer in plain words with a link to the page, what the protocol said beforehand
    that it means, and a table as Markdown; empty before a regime is complete."""
    regimes = complete_regimes(results)
    if not regimes:
        return ""
    meant = " ".join(
        f"{words}: *{one.protocol.removesuffix('.')}*{of_mappers(one)}."
        for words, one in regimes.items()
        if one.protocol
    )
    protocol = f" The protocol had fixed the words for such outcomes. {meant}" if meant else ""
    answers = " ".join(
        filter(None, (plain_answer(list(regimes.values())), answer_of_pictures(tables)))
    )
    plain = f"**{answers}** ([Second study]({page}).){protocol}"
    legend = (
        "Intervals are of 95 %. *Would be seen* is the true difference from the network alone that"
        " the corrected t-test finds with a power of 80 %, at Holm's hardest step of its family;"
        " one within the margin may still be called equivalent."
    )
    rates = unequal_rates(tables, results)
    return f"{plain}\n\n{answer_table(tables, results)}\n\n{legend}" + (
        f" {rates}" if rates else ""
    )


def answer_of_pictures(tables: Tables) -> str:
    """Return what a frozen layer does for LLM4Seg's CNN on each set of pictures that is complete,
    in one sentence; empty before one is."""
    found: dict[str, list[str]] = {}
    for question, table in tables.items():
        row = table.iloc[0].to_dict()
        if row["complete"] and (row["system"], row["reference"]) == (LLM4SEG, CNN):
            name = load_study(question.study).title.rpartition(", ")[0]
            found.setdefault(decided(row).word, []).append(f"{name[:1].lower()}{name[1:]}")
    where = {word: " and ".join(names) for word, names in found.items()}
    same = f"changes IoU by less than the margin of {100 * PICTURES.value:g} points"
    does = {HIGHER: "raises IoU", LOWER: "lowers IoU", EQUIVALENT: same}
    decides = " and ".join(f"{does[word]} on {where[word]}" for word in does if word in where)
    start, layer = "In LLM4Seg's CNN", "a frozen layer of the same language model"
    if UNDECIDED not in where:
        return f"{start}, {layer} {decides}." if decides else ""
    if not decides:
        return f"{start} it is not decided whether {layer} changes IoU on {where[UNDECIDED]}."
    return f"{start}, {layer} {decides}; on {where[UNDECIDED]} it is not decided."


def answer_table(tables: Tables, results: Path) -> str:
    """Return each paper's network as Markdown, a row for each study and share of the data at which
    it and the same network without a layer are complete: both differences that the question asks
    for, what silencing the layer costs, what the design sees, and how good its networks are."""
    rows = []
    for network, alone in second_study.ALONE.items():
        for (study, fraction), found in complete_places(network, tables).items():
            gain, shuffled = found.get(alone), found.get(f"{network}_shuffled")
            if gain is None or shuffled is None or not gain["complete"]:
                continue
            metric = gain["metric"]
            score = mean_score(study, fraction, alone, metric, results)
            peer = mean_score(study, fraction, UNET, metric, results)
            beside = "" if math.isnan(peer) else f" (a U-Net {peer:.2f})"
            rows.append(
                [
                    place_in_words(study, fraction),
                    _difference(gain, results),
                    _difference(shuffled, results) if shuffled["complete"] else OPEN,
                    _silenced(second_study.use_beside(study, network, alone, results, fraction)),
                    seen(gain, results).removesuffix(" points"),
                    f"{score:.2f}{beside}",
                ]
            )
    return markdown_table(
        [
            "points of Dice (LLM4Seg: of IoU)",
            "with the layer, minus the network alone",
            "minus itself with the weights shuffled",
            "layer silenced: Dice points (runs that lose one)",
            "would be seen",
            "score alone",
        ],
        "llllrl",
        rows,
    )


def _difference(row: dict[Any, Any], results: Path) -> str:
    """Return a difference in bold, its interval, which no line breaks, and the rule's word."""
    middle, _, interval = in_points(row).partition(" ")
    return f"**{middle}** {interval.replace(' ', NO_BREAK)} {second_study.outcome(row, results)}"


def _silenced(use: pd.DataFrame) -> str:
    """Return what silencing the layer changes in the mean, and in how many runs it costs so much
    that the network uses its layer."""
    changes = use["zero"]
    lose = int((-changes >= second_study.USES_POINTS).sum())
    return f"{changes.mean():+z.2f} ({lose} of {len(changes)})"


def unequal_rates(tables: Tables, results: Path) -> str:
    """Return a sentence for each study that finds the pretrained layer's network other than the
    shuffled one's and trained the two at different rates: how far their trials at equal rates lie
    apart."""
    said = []
    for question, table in tables.items():
        for row in table.to_dict("records"):
            pair = (row["system"], row["reference"])
            asked = pair == (HYBRID, SHUFFLED) and row["complete"]
            if not asked or decided(row).word not in (HIGHER, LOWER):
                continue
            found = apart_at_equal_rates(question.study, *pair, results)
            if found is None:
                continue
            ours, theirs, low, high = found
            use = second_study.use_of_block(question.study, results, question.fraction)
            used = any(second_study.uses(use[use["system"] == HYBRID]))
            read = (
                "So the difference between them is not read as one of pretraining."
                if low <= 0 <= high
                else "A part of the difference between them may be the rate's."
            )
            unused = "" if used else "the hybrid does not use its layer, and "
            said.append(
                f"{load_study(question.study).title}: {unused}it was trained at a rate of {ours:g}"
                f" where its shuffled control had {theirs:g}; at equal rates the two differ by"
                f" {low:+.2f} to {high:+.2f} points of validation Dice. {read}"
            )
    return " ".join(said)
