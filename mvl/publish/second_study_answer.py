"""The second study's answer in words, for the pages that begin with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.evidence import second_study
from mvl.evidence.arms import title
from mvl.evidence.claims_evidence import UNITS
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, MARGIN, decided, within
from mvl.evidence.differences import minus
from mvl.evidence.second_study import QUESTIONS, Question
from mvl.evidence.topics import PEERS
from mvl.publish.second_study_table import place_in_words
from mvl.study.grid import load_study
from mvl.study.tables import read_runs

REGIMES = {
    "Trained as published": second_study.PUBLISHED,
    "Trained at rates tuned for each arm": second_study.TUNED,
}
"What the pages call the regimes."
MAPPERS = "What helps or harms is the mappers."
"The protocol's sentence where a hybrid differs from the ViT and its mappers alone do as well."
OTHER_ORGANS = "other organs"
"The subject of the studies beside the hippocampus and the pictures."


@dataclass(frozen=True)
class Regime:
    """What a regime that is complete says of the hybrid."""

    gain: dict[Any, Any]
    "Its difference over the ViT alone, a row of `second_study.differences`."
    shuffled: dict[Any, Any]
    "Its difference over itself with the layer's weights shuffled."
    mappers: dict[Any, Any] | None
    "Its difference over its mappers alone, where the protocol asks for it."
    word: str
    "The word for the first: `unused` in place of an equivalence where the layer is."
    use: str
    "How far the hybrid uses its layer, in words."
    protocol: str
    "What the protocol said beforehand that this means; empty where it has no sentence."


def sentence(results: Path, page: str) -> str:
    """Return the answer in plain words, then in a sentence for each regime that is complete, with a
    link to the page; empty before one is."""
    regimes = complete_regimes(results)
    if not regimes:
        return ""
    said = [f"**{plain_answer(list(regimes.values()))}**"]
    for words, one in regimes.items():
        protocol = one.protocol.removesuffix(".")
        rest = f" (in the protocol's words: *{protocol}*)" if protocol else ""
        rest += of_mappers(one)
        said.append(
            f"{words}, the hybrid differs from the ViT alone by **{in_points(one.gain)} Dice"
            f" points** ({one.word}), and from itself trained with the weights shuffled by"
            f" **{in_points(one.shuffled)}** ({decided(one.shuffled)}); it {one.use}{rest}."
        )
    return f"{' '.join(said)} ([Second study]({page}).)"


def complete_regimes(results: Path) -> dict[str, Regime]:
    """Return what each regime that is complete says, by its name, with all of the data and with a
    tenth of it."""
    places = {
        f"{words}{share}": (study, fraction)
        for fraction, share in ((1.0, ""), (0.1, ", with a tenth of the data"))
        for words, study in REGIMES.items()
    }
    return {words: found for words, place in places.items() if (found := _found(*place, results))}


def plain_answer(found: Sequence[Regime]) -> str:
    """Return what the regimes say together of the hybrid, in one sentence without numbers: whether
    it raises Dice, and whether it matters that the layer is pretrained."""
    words = {decided(one.gain).word for one in found}
    where = ""
    if HIGHER in words:
        does, where = "raises", "" if words == {HIGHER} else ", but not in every regime"
    else:
        does = "does not raise" if words <= {LOWER, EQUIVALENT} else "is not shown to raise"
    pretraining = ""
    if all(decided(one.shuffled).word == EQUIVALENT for one in found):
        pretraining = (
            ", and shuffling its weights before training changes Dice by less than the margin of"
            f" {100 * MARGIN:g} point"
        )
    return (
        f"On hippocampus scans split by person, one frozen layer of SmolLM2-135M {does} the Dice of"
        f" MedVisionLlama's ViT{where}{pretraining}."
    )


def _found(study: str, fraction: float, results: Path) -> Regime | None:
    """Return what a regime says at a share of the data; None before its runs are complete."""
    if study not in second_study.recorded_studies(results):
        return None
    place = (study, fraction)
    help_, pretraining, *parts = [q for q in QUESTIONS if (q.study, q.fraction) == place]
    gain = second_study.differences(help_, results).iloc[0].to_dict()
    mappers = second_study.differences(parts[0], results).iloc[0].to_dict() if parts else None
    controls = second_study.differences(pretraining, results).to_dict("records")
    if not all(row["complete"] for row in (gain, *controls)):
        return None
    used = second_study.use_of_block(study, results, fraction)
    hybrid = used[used["system"] == gain["system"]]
    verdicts = [decided(row).word for row in controls]
    protocol = meaning(
        decided(gain).word,
        verdicts,
        *second_study.uses(hybrid),
        decided(mappers).word if mappers else "",
    )
    word = second_study.outcome(gain, results)
    return Regime(gain, controls[0], mappers, word, use_in_words(hybrid), protocol)


def of_mappers(one: Regime) -> str:
    """Return what stands behind the protocol's sentence on the mappers, where it is said: the
    hybrid beside its mappers alone, and whether the layer's part is told from the whole."""
    if one.mappers is None or MAPPERS not in one.protocol:
        return ""
    whole = one.gain["difference"]
    apart = not one.mappers["low"] <= whole <= one.mappers["high"]
    told = "" if apart else ", an interval that holds the whole difference, too"
    return f" (the hybrid minus its mappers alone: {in_points(one.mappers)}{told})"


def meaning(
    gain: str, controls: Sequence[str], of_block: bool, computed: bool, identity: str = ""
) -> str:
    """Return what the protocol said beforehand that such an outcome means.

    gain, controls: the words for v3 minus the ViT, and for v3 minus each control of its scale.
    of_block, computed: whether the hybrid uses its layer, and what it computes (`uses`). The
    protocol has no sentence for a network that uses the second and not the first: none is said.
    identity: the word for v3 minus its mappers alone; what it means is said where v3 differs from
    the ViT, since elsewhere nothing helps or harms.
    """
    said = []
    if gain == HIGHER:
        said.append("The hybrid helps in this regime.")
    elif gain in (EQUIVALENT, LOWER) and of_block:
        said.append("The layer takes part and does not help.")
    elif gain in (EQUIVALENT, LOWER) and not computed:
        said.append("Training switched the layer off in this regime.")
    if computed and all(word == EQUIVALENT for word in controls):
        said.append("Pretraining does not matter at this size of layer.")
    elif all(word == HIGHER for word in controls):
        said.append("Pretraining helps at this size of layer.")
    if identity == EQUIVALENT and gain in (HIGHER, LOWER):
        said.append(MAPPERS)
    return " ".join(said)


def of_pictures(results: Path) -> list[str]:
    """Return what each study of pictures says of LLM4Seg in a sentence, once the runs of its first
    question are complete; the shuffled layer and the mappers alone join when theirs are."""
    network, said = second_study.LLM4SEG, []
    recorded = second_study.recorded_studies(results)
    for study in second_study.OF_PICTURES:
        if study not in recorded:
            continue
        gain, shuffled, mappers, *_ = (
            row
            for question in QUESTIONS
            if question.study == study
            for row in second_study.differences(question, results).to_dict("records")
        )
        if not gain["complete"]:
            continue
        own = second_study.use_beside(study, network, gain["reference"], results)
        worst, best = own["zero"].min(), own["zero"].max()
        lose = int((-own["zero"] >= second_study.USES_POINTS).sum())
        where = load_study(study).title.rpartition(", ")[0]
        beside = f"from its CNN alone by **{in_units(gain)}** ({_judged(gain)})"
        if shuffled["complete"]:
            words = "itself trained with the layer's weights shuffled"
            beside += f", and from {words} by **{in_points(shuffled)}** ({_judged(shuffled)})"
        line = (
            f"On {where[:1].lower()}{where[1:]}, LLM4Seg differs {beside}. In"
            f" the mean of its runs it {use_in_words(own)}; but that depends on the run: setting"
            f" the layer's output to zero changes Dice by {worst:+z.1f} to {best:+z.1f} points, and"
            f" {lose} of {len(own)} runs lose a point or more."
        )
        if mappers["complete"]:
            its = second_study.use_beside(study, network, mappers["reference"], results)
            line += (
                f" From its mappers alone it differs by **{in_points(mappers)}**"
                f" ({_judged(mappers)}); in the {len(its)} runs of that comparison it"
                f" {use_in_words(its)} ({its['zero'].min():+z.1f} to {its['zero'].max():+z.1f}"
                " points)."
            )
        said.append(line)
    return said


def _judged(row: dict[Any, Any]) -> str:
    """Return the rule's word for a difference, an equivalence with its margin."""
    scale, unit, _ = UNITS[row["metric"]]
    word = decided(row)
    return f"{word} {within(row['margin'], scale, unit)}" if word.word == EQUIVALENT else str(word)


def on_subject(subject: str, results: Path) -> str:
    """Return the differences of the complete questions on a subject as Markdown, one line each;
    empty before one is complete. What the protocol only describes has no verdict."""
    lines = []
    for question, rows in _recorded_on(subject, results):
        for row in rows:
            if row["complete"]:
                name = " ".join(minus(row["system"], row["reference"]).split())
                where = place_in_words(question.study, question.fraction)
                judged = question not in second_study.DESCRIBED
                word = f" ({second_study.outcome(row, results)})" if judged else ""
                lines.append(f"- {where}: {name} **{in_units(row)}**{word}")
    return "\n".join(lines)


def _recorded_on(subject: str, results: Path) -> Iterator[tuple[Question, list[dict[Any, Any]]]]:
    """Yield each family on a subject whose study is recorded, with its differences."""
    recorded = second_study.recorded_studies(results)
    for question in second_study.FAMILIES:
        if question.study in recorded and subject_of(question).startswith(subject):
            yield question, second_study.differences(question, results).to_dict("records")


def what_is_open(results: Path) -> str:
    """Return the protocol's studies whose planned runs are not all recorded, each with how many are
    not and, where some are, the arms that have none."""
    left = []
    for study, done, planned in second_study.progress(results):
        if done == planned:
            continue
        without = ""
        if done:
            runs = read_runs(study, results)
            begun = (runs["state"] == "done").groupby(runs["system"], sort=False).any()
            without = ", ".join(f"*{title(system)}*" for system in begun.index[~begun])
        arms = f"; none of {without}" if without else ""
        left.append(f"{load_study(study).title} ({planned - done} of {planned}{arms})")
    return "; ".join(left) or "nothing"


def subject_of(question: Question) -> str:
    """Return what a question of the protocol is about."""
    if question.contrasts[0][0] in PEERS:
        return "peers"
    if question.study not in (*REGIMES.values(), second_study.UNMIXED):
        return "pictures" if question.metric == "jaccard" else OTHER_ORGANS
    if question.fraction < 1:
        tuned = question.study == second_study.TUNED
        return f"few-shot training {'at tuned rates' if tuned else 'as published'}"
    if any("medvisionllama_v1" in pair[0] for pair in question.contrasts):
        return "version 1"
    is_mappers = any(second_study.LINEAR in pair for pair in question.contrasts)
    return "the mappers" if is_mappers else "the hybrid itself"


def use_in_words(rows: pd.DataFrame, in_table: bool = False) -> str:
    """Return what the protocol calls this use of the block: its two thresholds can disagree; in a
    table the points stand beside and are not said again."""
    of_block, computed = second_study.uses(rows)
    if of_block and computed:
        # Neither h's mean nor tokens out of order cost anything: h says nothing of places.
        spread = rows[["mean", "shuffled_tokens"]].mean().min()
        alike = ", one vector for all tokens" if -spread < second_study.USES_POINTS else ""
        return f"uses the layer and what it computes{alike}"
    if of_block:
        return "uses the layer, not what it computes"
    if computed and in_table:
        return "uses what it computes; silencing costs less than the threshold"
    if computed:
        worst = rows[["shuffled_tokens", "shuffled_weights"]].mean().min()
        return (
            f"loses {-rows['zero'].mean():.2f} points when the layer is silenced, below the"
            f" threshold of use ({second_study.USES_POINTS:g}), and {-worst:.2f} when what it"
            " computes is disturbed, above it"
        )
    if second_study.is_harmed(rows):
        return "depends on the layer to its cost: Dice rises when it is silenced or disturbed"
    return "does not use the layer"


def in_units(row: dict[Any, Any]) -> str:
    """Return a difference and its interval with their unit."""
    return f"{in_points(row)} {UNITS[row['metric']][1]}"


def in_points(row: dict[Any, Any]) -> str:
    """Return a difference of scores and its interval in hundredths; one fold has no interval over
    folds."""
    values = (100 * row[key] for key in ("difference", "low", "high"))
    mid, low, high = (f"{value:+z.2f}" for value in values)
    return f"{mid} [{low}, {high}]" if row["n_folds"] > 1 else mid
