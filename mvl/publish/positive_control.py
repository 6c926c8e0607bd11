"""What the second study's positive control says: whether the design sees a layer that matters, and
what the frozen layer does in the network that depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mvl.evidence import second_study
from mvl.evidence.decision import HIGHER, decided
from mvl.evidence.second_study import HYBRID, Question
from mvl.publish.second_study_answer import REGIMES, in_points


def control(tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return what the positive control says; empty before it is complete."""
    for question, table in tables.items():
        row = table.iloc[0].to_dict()
        if question.contrasts != ((second_study.ATTENTION, second_study.IDENTITY),):
            continue
        if row["hole"] or not row["complete"]:
            return ""
        if decided(row).word == HIGHER:
            return (
                "**The design sees a layer that matters.** Without ViT blocks, a trained attention"
                f" layer in the layer's place raises Dice by {in_points(row)} points over the"
                f" mappers alone.{_by_a_norm(row, results)}{_of_the_layer(tables, results)}"
            )
        return (
            "**The design has not been shown to see a layer that matters**: the positive control"
            f" is {in_points(row)} Dice points, {decided(row)}. No equivalence here says anything"
            " about the layer."
        )
    return ""


def with_blocks(results: Path) -> str:
    """Return how far the control's layer is from the ViT alone in the ViT itself; empty before it
    is recorded."""
    said = []
    for words, study in REGIMES.items():
        if study not in second_study.recorded_studies(results):
            continue
        rows = second_study.use_of_block(study, results)
        if not (own := rows[rows["system"] == second_study.ATTENTION]).empty:
            said.append(f"{own['over_alone'].mean():+.2f} points ({words[:1].lower()}{words[1:]})")
    if not said:
        return ""
    differs = "With them, a trained attention layer differs from the ViT alone by"
    return f"{differs} {' and '.join(said)}."


def _by_a_norm(attention: dict[Any, Any], results: Path) -> str:
    """Return what follows where a norm, which mixes no patches, does as much as the control."""
    question = next(q for q in second_study.DESCRIBED if q.study == second_study.UNMIXED)
    norm = second_study.differences(question, results).iloc[0].to_dict()
    if not norm["complete"] or norm["difference"] < attention["difference"]:
        return ""
    return (
        " A GELU and a norm without weights, which mix no patches, raise Dice there by"
        f" {in_points(norm)} points: the control shows that a difference is seen, and says nothing"
        " about mixing."
    )


def _of_the_layer(tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return what the frozen layer does in the network that depends on it, and what its pretraining
    does there."""
    used = second_study.use_of_block(second_study.UNMIXED, results)
    hybrid = used[used["system"] == HYBRID]
    own = [table for question, table in tables.items() if question.study == second_study.UNMIXED]
    rows = {
        row["reference"]: row
        for row in pd.concat(own).to_dict("records")
        if row["system"] == HYBRID and row["complete"]
    }
    mappers, shuffled = (rows.get(arm) for arm in (second_study.IDENTITY, second_study.SHUFFLED))
    if mappers is None or shuffled is None:
        return ""
    return (
        f" The hybrid without ViT blocks loses {-hybrid['zero'].mean():.1f} points when its frozen"
        f" layer is silenced; it differs from its mappers alone by {in_points(mappers)} points"
        f" ({decided(mappers)}), and from itself trained with the layer's weights shuffled by"
        f" {in_points(shuffled)} ({decided(shuffled)})."
    )
