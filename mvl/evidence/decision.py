"""The decision rule: one function says what a difference is called, and one table holds the
margins.

Chapters, claims ledger and calibration all ask here, so that the same numbers have the same word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

LEVEL = 0.05
"The level of every test."
MIN_FOLDS = 3
"Fewer folds decide nothing: too little is known of what varies between training sets."
TEST_OVER_TRAIN = 1 / 7
"""The test over the training cases of a fold (10 % and 70 %), for every share of the data: with
fewer training cases two folds have less in common, not more."""

HIGHER, LOWER, EQUIVALENT = "higher", "lower", "equivalent"
UNDECIDED, WITHDRAWN = "not decided", "withdrawn"
WORDS = (HIGHER, LOWER, EQUIVALENT, UNDECIDED, WITHDRAWN)
"Every word that a difference can have."


@dataclass(frozen=True)
class Margin:
    """How far apart two arms may be and still be called equivalent, in the unit of the metric."""

    value: float
    reason: str
    protocol: bool = False
    "True when the first protocol fixed it before the runs."


LATE = "set with the ledger, after the first runs; it is in no protocol"
FIXED_LATER = (
    "set with the ledger, after the first study's runs; the second protocol fixed it before its own"
)
MARGINS = {
    "dice": Margin(0.01, "fixed in the protocol before the runs", protocol=True),
    "jaccard": Margin(
        0.01,
        "the protocol's point of Dice, carried over to IoU; the protocol does not say so of IoU",
    ),
    "nsd": Margin(0.01, f"one point, as for Dice; {FIXED_LATER}"),
    "sensitivity": Margin(0.01, f"one point, as for Dice; {LATE}"),
    "specificity": Margin(0.01, f"one point, as for Dice; {LATE}"),
    "hd95_mm": Margin(0.25, f"a quarter of a voxel of the hippocampus; {FIXED_LATER}"),
    "activation_iou": Margin(0.01, f"one point; {LATE}"),
    "effective_rank": Margin(0.1, LATE),
    "roughness": Margin(0.02, LATE),
    "epochs": Margin(2.0, LATE),
}
"The margin of each metric and why it is that."
PICTURES = Margin(
    0.004,
    "IoU of pictures in the second protocol: half of the gain that the paper's figure of layers"
    " shows",
    protocol=True,
)
MARGIN = MARGINS["dice"].value
"The margin of the primary metric: one Dice point."
EQUIVALENCE_POINTS = 100 * MARGIN
"Half-width of the equivalence band, Dice points."

_INHERITED = (
    "it took the rate of the hybrid with LoRA mappers (0.032) untuned, and its training loss rises "
    "within a run"
)
UNTUNED = dict.fromkeys(
    (
        "medvisionllama_v1",
        "medvisionllama_v1_plain",
        "medvisionllama_v1_hybrid",
        "medvisionllama_v1_fusion",
        "medvisionllama_v3_linear",
    ),
    _INHERITED,
)
"Systems that the first study trained at a rate that does not suit them: no verdict on them stands."
TUNED_APART = frozenset({"hippocampus2_tuned"})
"Studies in which every arm has a rate of its own, so that nothing is withdrawn."


@dataclass(frozen=True)
class Numbers:
    """What a difference is decided from; a p-value that there is not is NaN."""

    low: float
    "The lower end of the 95 % bootstrap interval over folds, seeds and cases."
    high: float
    "The upper end."
    p_difference: float = math.nan
    "The corrected t-test over folds, after Holm's correction."
    p_equivalence: float = math.nan
    "The larger of the two one-sided corrected t-tests over folds."
    planned: int = 0
    "Planned pairs of runs; 0: none was planned."
    done: int = 0
    "Pairs of runs that there are, of those planned."
    folds: int = 0
    "Folds that they lie in."
    missing: int = 0
    "Planned runs that are missing, where they are counted singly."


@dataclass(frozen=True)
class Decision:
    """The word for a difference, and why where there is none."""

    word: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}, {self.why}" if self.why else self.word


def words(
    low: np.ndarray,
    high: np.ndarray,
    p_difference: np.ndarray,
    p_equivalence: np.ndarray,
    margin: float = MARGIN,
) -> np.ndarray:
    """The word for each of many complete differences over enough folds.

    Equivalent: the interval lies within the margin and both one-sided tests are below the level.
    Higher or lower: not equivalent, the adjusted test is below the level, and the interval excludes
    0.
    """
    same = (p_equivalence < LEVEL) & (low >= -margin) & (high <= margin)
    clear = ~same & (p_difference < LEVEL)
    return np.select(
        [same, clear & (low > 0), clear & (high < 0)], [EQUIVALENT, HIGHER, LOWER], UNDECIDED
    )


def decide(
    found: Numbers, margin: float = MARGIN, systems: Iterable[str] = (), study: str = ""
) -> Decision:
    """Decide the word for one difference of systems: the only place where one gets its word."""
    if reason := withdrawn(systems, study):
        return Decision(WITHDRAWN, reason)
    if not found.planned:
        return Decision(UNDECIDED, "not planned in this study")
    if absent := found.missing or found.planned - found.done:
        what = "run" if found.missing else "pair of runs"
        plural = what.replace(what.split()[0], f"{what.split()[0]}s") if absent > 1 else what
        return Decision(UNDECIDED, f"incomplete, {absent} planned {plural} missing")
    if found.folds < MIN_FOLDS:
        of = f"{found.folds} fold{'s' * (found.folds != 1)}"
        return Decision(UNDECIDED, f"too few runs, {of} where {MIN_FOLDS} are needed")
    numbers = np.array([[found.low], [found.high], [found.p_difference], [found.p_equivalence]])
    word = str(words(numbers[0], numbers[1], numbers[2], numbers[3], margin)[0])
    lone = word == UNDECIDED and found.p_equivalence < LEVEL
    return Decision(word, "the bootstrap over cases reaches beyond the margin" if lone else "")


def withdrawn(systems: Iterable[str], study: str = "") -> str:
    """Why no verdict on a study's comparison of these systems stands; empty where one can."""
    if study in TUNED_APART:
        return ""
    return next((UNTUNED[name] for name in systems if name in UNTUNED), "")


def within(margin: float, scale: float, unit: str) -> str:
    """The margin in words: `within 1 Dice point`."""
    text = f"within {scale * margin:g} {unit}"
    return text.removesuffix("s") if scale * margin == 1 else text


def error_factor(folds: int, test_over_train: float = TEST_OVER_TRAIN) -> float:
    """The corrected standard error of the mean as a multiple of the fold means' sd."""
    return math.sqrt(1 / folds + test_over_train)


def t_reach(spread: float, folds: int) -> float:
    """The half-width of the 95 % corrected t-interval at a standard error of a mean over folds."""
    return float(distributions.t.ppf(1 - LEVEL / 2, folds - 1)) * spread


def decided(row: dict[Any, Any]) -> Decision:
    """The word for a row of `differences`, by the one rule (`mvl.evidence.decision.decide`)."""
    numbers = Numbers(
        row["boot_low"],
        row["boot_high"],
        row["p_holm"],
        row["p_equivalence"],
        int(row["planned"]),
        int(row["n_runs"]),
        int(row["n_folds"]),
    )
    margin = row.get("margin", MARGIN)
    return decide(numbers, margin, (row["system"], row["reference"]), row.get("study", ""))


def verdict(row: dict[Any, Any], metric: str) -> str:
    """`decided` in words, with the margin where it is an equivalence."""
    found = decided(row)
    if found.word != EQUIVALENT:
        return str(found)
    unit = f"{metric} points"
    return f"{found.word} {within(MARGIN, 100.0, unit)}"
