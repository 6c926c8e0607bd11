"""The second study (book/protocol_2.md): its planned contrasts by question, and how far each
trained network uses its block."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.run_folder import records_dir
from mvl.evidence import run_pairs, stats
from mvl.evidence.decision import EQUIVALENT, LOWER, MARGIN, PICTURES, decided
from mvl.evidence.topics import CNN, HYBRID, LLM4SEG, PEERS, V1, VIT
from mvl.study.grid import load_study, run_keys
from mvl.study.tables import read_cases, read_runs
from mvl.training.usage_records import FILE, read_usage

SHUFFLED, MATCHED, NORM, IDENTITY, ATTENTION, NOISE, LINEAR, RANK_16, MINILM, MINILM_ROUNDED = (
    f"{HYBRID}_{name}"
    for name in (
        "shuffled",
        "random_matched",
        "norm",
        "identity",
        "attention",
        "noise",
        "linear",
        "r16",
        "minilm",
        "minilm_rounded",
    )
)
V1_HYBRID, V1_FUSION, V1_NOBLOCK = (f"{V1}_{part}" for part in ("hybrid", "fusion", "noblock"))
FIRST = "hippocampus"
"The first study, at whose rate a network may ignore its layer, and which recorded no use of it."
PUBLISHED, TUNED, UNMIXED = (f"hippocampus2_{name}" for name in ("published", "tuned", "unmixed"))
AT_PAPERS_RATE = (PUBLISHED, "heart_published")
"Studies of the ViT with its blocks at the papers' own rate, which is constant."
GRADIENTS = "hippocampus2_gradients"
"The study that trains four arms of the study as published again and measures their gradients."
OF_PICTURES = ("isic", "kvasir")
"Studies of LLM4Seg, each with the same three questions."
ALONE = {HYBRID: VIT, LLM4SEG: CNN}
"Each paper's network with a layer, and the same network without one."
USES_POINTS = 1.0
"A network uses its block when an intervention costs it so many Dice points (book/protocol_2.md)."
USE_COLUMNS = (
    *("system", "fold", "seed", "relative_size", "over_alone"),
    *("zero", "mean", "shuffled_tokens", "shuffled_weights"),
)
"Columns of `use_of_block` that are there without a run, too."
UNUSED = "unused"
"The protocol's word for a layer that training switched off: for an equivalence, beside a loss."

Pair = tuple[str, str]
"System and reference."


@dataclass(frozen=True)
class Question:
    """A question of the protocol: one family of contrasts within one study."""

    study: str
    words: str
    contrasts: tuple[Pair, ...]
    "Pairs of system and reference; together they are the family of Holm's correction."
    fraction: float = 1.0
    "Share of the training cases."
    metric: str = "dice"
    "Column of cases.csv."
    margin: float = MARGIN
    "Within it arms are called equivalent."


def _of_both_regimes(study: str) -> tuple[Question, ...]:
    return (
        Question(study, "Does the frozen layer help?", ((HYBRID, VIT),)),
        Question(study, "Is it the pretraining?", ((HYBRID, SHUFFLED), (HYBRID, MATCHED))),
        Question(
            study,
            "Is it more than its mappers, a norm, or a small trained layer?",
            ((HYBRID, IDENTITY), (HYBRID, NORM), (HYBRID, ATTENTION)),
        ),
    )


def _of_few_cases(study: str) -> tuple[Question, ...]:
    return (
        Question(study, "Does it help with a tenth of the data?", ((HYBRID, VIT),), 0.1),
        Question(study, "Is it the pretraining, with a tenth?", ((HYBRID, SHUFFLED),), 0.1),
    )


def _of_other_anatomy(study: str) -> Question:
    contrasts = tuple((HYBRID, reference) for reference in (VIT, SHUFFLED, IDENTITY))
    return Question(study, "Does it hold on another organ?", contrasts)


def _of_pictures(study: str) -> tuple[Question, ...]:
    families = (
        ("Does the layer help a CNN?", ((LLM4SEG, CNN),)),
        ("Is it the pretraining, in a CNN?", ((LLM4SEG, f"{LLM4SEG}_shuffled"),)),
        (
            "Is it more than its adapters, or a trained layer?",
            ((LLM4SEG, f"{LLM4SEG}_identity"), (LLM4SEG, f"{LLM4SEG}_transformer")),
        ),
    )
    return tuple(
        Question(study, words, pairs, 1.0, "jaccard", PICTURES.value) for words, pairs in families
    )


QUESTIONS = (
    *_of_both_regimes(PUBLISHED),
    Question(UNMIXED, "Can the design see a layer that matters?", ((ATTENTION, IDENTITY),)),
    Question(
        UNMIXED,
        "Where the layer alone mixes the patches: is it the pretraining?",
        ((HYBRID, IDENTITY), (HYBRID, SHUFFLED), (HYBRID, MATCHED)),
    ),
    *_of_both_regimes(TUNED),
    *_of_few_cases(PUBLISHED),
    *_of_few_cases(TUNED),
    Question(TUNED, "Do the mappers matter?", ((LINEAR, HYBRID), (RANK_16, HYBRID))),
    Question(TUNED, "Does version 1 help, and its layer?", ((V1, VIT), (V1, V1_NOBLOCK))),
    Question(TUNED, "Do version 1's parts help?", ((V1_HYBRID, LINEAR), (V1_FUSION, LINEAR))),
    *(_of_other_anatomy(study) for study in ("left_atrium", "heart_tuned", "heart_published")),
    *(question for study in OF_PICTURES for question in _of_pictures(study)),
)
"The protocol's questions that get a verdict."
DESCRIBED = (
    Question(
        UNMIXED,
        "Described, without a verdict",
        ((NORM, IDENTITY), (NORM, HYBRID), (NOISE, IDENTITY)),
    ),
    Question(PUBLISHED, "Does the file's 4-bit rounding matter?", ((MINILM_ROUNDED, MINILM),)),
    *(
        Question(study, "Described, without a verdict", ((system, VIT),))
        for study, system in (
            ("left_atrium", "unet"),
            ("heart_tuned", "unet"),
            (TUNED, "unetpp"),
            (TUNED, "swinunetr"),
            (PUBLISHED, f"{HYBRID}_auxiliary"),
        )
    ),
)
"Contrasts that the protocol describes and gives no verdict of their own."
AFTERWARDS = (
    Question(UNMIXED, "Asked after the runs", ((HYBRID, VIT),)),
    Question(PUBLISHED, "Asked after the runs", ((IDENTITY, VIT),)),
    Question(TUNED, "Asked after the runs", ((IDENTITY, VIT),)),
)
"Contrasts that a reader asks for and the protocol does not plan: shown with the described ones."
FAMILIES = (*QUESTIONS, *DESCRIBED)
ASKED = tuple(dict.fromkeys(question.study for question in QUESTIONS))
"Studies of the questions, each once."
STUDIES = tuple(dict.fromkeys(family.study for family in FAMILIES))
"The protocol's studies, each once."
SOURCES = (PUBLISHED, FIRST)
"Studies whose records are asked for a contrast that a 3-D study has no runs of itself, in order."


def families_of(study: str) -> tuple[Question, ...]:
    """Return the study's families; none for a study that is not the protocol's."""
    return tuple(family for family in FAMILIES if family.study == study)


def stand_ins(question: Question) -> tuple[tuple[str, Pair], ...]:
    """Return the studies and contrasts whose variances are taken before a contrast of the question
    has records, the nearest first: the question's own first contrast, one on the same data, one of
    the first study or of the second as published."""
    own = (question.study, question.contrasts[0])
    if question.metric == "jaccard":
        return own, ("busi", (LLM4SEG, CNN))
    if question.fraction < 1:
        return own, (FIRST, (HYBRID, VIT))
    if question.contrasts[0][0] in PEERS:
        return own, (FIRST, ("unet", VIT))
    data = load_study(question.study).tasks[0]
    same = (study for study in AT_PAPERS_RATE if load_study(study).tasks[0] == data)
    return own, *((study, (HYBRID, VIT)) for study in same), (PUBLISHED, (HYBRID, VIT))


def sources_of(study: str) -> list[str]:
    """Return the study itself, then those whose records stand in."""
    if study not in STUDIES:
        return [study]
    found = dict.fromkeys(name for family in families_of(study) for name, _ in stand_ins(family))
    if "busi" in found:
        return [study, "busi"]
    return list(dict.fromkeys([study, *SOURCES, *found]))


def recorded_studies(results: Path | None = None) -> list[str]:
    """Return the studies of these questions whose tables are recorded, each once."""
    folder = Path(results or records_dir())
    return [name for name in ASKED if (folder / name / "runs.csv").is_file()]


def of_protocol(study: str) -> bool:
    """Return whether the second protocol plans the study."""
    return study in ASKED


def together(
    study: str, contrasts: Set[tuple[frozenset[str], float]]
) -> list[tuple[tuple[str, str], float]]:
    """Return the contrasts, with their shares of the data, of every question of the study that asks
    one of these."""
    return [
        (pair, question.fraction)
        for question in QUESTIONS
        if question.study == study
        and any((frozenset(pair), question.fraction) in contrasts for pair in question.contrasts)
        for pair in question.contrasts
    ]


def planned_pairs(
    study: str, system: str, reference: str, fraction: float = 1.0
) -> tuple[tuple[int, int], ...]:
    """Return the (fold, seed) at which the study's grid has both systems at a share of the data."""
    have = {(arm, fold, seed) for _, arm, share, fold, seed in run_keys(study) if share == fraction}
    ours, theirs = (
        {(fold, seed) for own, fold, seed in have if own == arm} for arm in (system, reference)
    )
    return tuple(sorted(ours & theirs))


def differences(question: Question, results: Path) -> pd.DataFrame:
    """Return one row a contrast (`stats.table`), with Holm's correction over the question's family.

    A contrast that lacks runs keeps its row with what there is.
    """
    cases = read_cases(question.study, results)
    task = load_study(question.study).tasks[0]
    rows = []
    for pair in question.contrasts:
        contrast = (*pair, task, question.fraction, question.metric)
        planned = planned_pairs(question.study, *pair, question.fraction)
        try:
            found = stats.compare(cases, *contrast, question.margin, planned)
        except run_pairs.StatsError as error:
            rows.append(stats.hole(*contrast, len(planned), str(error)))
        else:
            rows.append(stats.row(found))
    return stats.table(rows).assign(study=question.study, margin=question.margin)


def recorded_differences(results: Path) -> dict[Question, pd.DataFrame]:
    """Return the differences of each question whose study is recorded, in the protocol's order."""
    recorded = recorded_studies(results)
    return {
        question: differences(question, results)
        for question in QUESTIONS
        if question.study in recorded
    }


def outcome(row: dict[Any, Any], results: Path) -> str:
    """Return what is said of a difference: the rule's word, or the protocol's word for a hybrid
    that is not better than the ViT alone and does not use its layer."""
    word = decided(row)
    of_hybrid = (row["system"], row["reference"]) == (HYBRID, VIT)
    if of_hybrid and word.word in (EQUIVALENT, LOWER):
        rows = use_of_block(row["study"], results, row["fraction"])
        own = rows[rows["system"] == HYBRID]
        if len(own) and not any(uses(own)) and not is_harmed(own):
            return UNUSED if word.word == EQUIVALENT else f"{LOWER}; {UNUSED}"
    return str(word)


def use_of_block(study: str, results: Path, fraction: float = 1.0) -> pd.DataFrame:
    """Return one row a finished hybrid run with a share of the training cases: its interventions'
    change of Dice, in points, and the size of the block's output beside its input.

    Columns: system, fold, seed, one for each intervention, `relative_size` (|h| / |x|), and
    `over_alone`, the run's mean Dice minus that of the network without a layer of its fold and
    seed (NaN without one).
    """
    runs = read_runs(study, results)
    done = runs[(runs["state"] == "done") & (runs["fraction"] == fraction)]
    alone = done[done["system"].isin(ALONE.values())].set_index(["fold", "seed"])["dice"]
    rows: list[dict[str, Any]] = []
    for run in done.itertuples():
        folder = Path(results) / run.run
        if not (folder / FILE).is_file():
            continue
        usage = {row["intervention"]: row for row in read_usage(folder)}
        trained = usage["as_trained"]
        row = {"system": run.system, "fold": run.fold, "seed": run.seed}
        row["relative_size"] = trained["branch_norm"] / trained["input_norm"]
        row["over_alone"] = 100 * (run.dice - alone.get((run.fold, run.seed), float("nan")))
        for name, found in usage.items():
            row[name] = 100 * found["dice_difference"]
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=USE_COLUMNS)


def use_beside(
    study: str, system: str, reference: str, results: Path, fraction: float = 1.0
) -> pd.DataFrame:
    """Return `use_of_block` of a system's runs beside which the study plans a run of the reference,
    of the same fold and seed: the runs that their difference is taken over."""
    rows = use_of_block(study, results, fraction)
    planned = planned_pairs(study, system, reference, fraction)
    places = pd.MultiIndex.from_arrays([rows["fold"], rows["seed"]])
    return rows[(rows["system"] == system) & places.isin(planned)]


def use_in_numbers(study: str, system: str, results: Path, fraction: float = 1.0) -> str:
    """Return what silencing a system's layer, and shuffling its tokens, changes in a study at a
    share of the training cases, in Dice points over the runs that are compared with the network
    without a layer; empty where no run recorded it."""
    if not (Path(results) / Path(study).stem / "runs.csv").is_file():
        return ""
    own = use_beside(study, system, ALONE.get(system, system), results, fraction)
    if own.empty:
        return ""
    silenced, shuffled = (f"{own[name].mean():+.2f}" for name in ("zero", "shuffled_tokens"))
    return f"h = 0: {silenced}; tokens shuffled: {shuffled}"


def uses(rows: pd.DataFrame) -> tuple[bool, bool]:
    """Say whether networks use their block, and whether they use what it computes: True when the
    mean loss of Dice reaches `USES_POINTS`."""
    of_block = -rows["zero"].mean() >= USES_POINTS
    computed = [-rows[name].mean() for name in ("shuffled_tokens", "shuffled_weights")]
    return bool(of_block), bool(max(computed) >= USES_POINTS)


def is_harmed(rows: pd.DataFrame) -> bool:
    """Say whether networks that do not use their block do better by `USES_POINTS` in the mean when
    it is silenced or disturbed: they depend on it, to their cost."""
    changes = rows[["zero", "shuffled_tokens", "shuffled_weights"]].mean()
    return not any(uses(rows)) and bool(changes.max() >= USES_POINTS)


def progress(results: Path) -> list[tuple[str, int, int]]:
    """Return (study, finished runs, planned runs) for each study of the questions."""
    done = {
        name: int((read_runs(name, results)["state"] == "done").sum())
        for name in recorded_studies(results)
    }
    return [(name, done.get(name, 0), len(run_keys(name))) for name in ASKED]
