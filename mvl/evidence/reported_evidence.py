"""What the papers' own numbers can carry, without any training: chance, small test sets, picking.

Every number comes from `data/paper_reported.csv`. What the papers leave out (standard deviations,
the correlation of two methods' scores) is taken over a grid, and all of it is shown.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import integrate, stats

from mvl.core.errors import MvlError
from mvl.evidence.decision import LEVEL
from mvl.evidence.reported import reported

TASKS = 10
"Tasks that MedVisionLlama's averages are over, the cases of its comparisons here."
PICTURES = 234
"30 % of BUSI's 780 pictures, a test set by LLM4Seg's released split."
TASK_SDS = (0.04, 0.05, 0.06)
"Grid of standard deviations over tasks where none is reported: those that are lie within it."
TASK_CORRELATIONS = (0.0, 0.5, 0.8, 0.95)
PICTURE_SDS = (15.0, 25.0, 35.0)
"Grid of standard deviations of a picture's IoU or F1, percent; none is reported."
PICTURE_CORRELATIONS = (0.5, 0.8, 0.9)
LLAMA = "layers of Llama-3.2-1B"
DEEPSEEK = "layers of DeepSeek-R1-Distill-Qwen-1.5B"
"Tables of LLM4Seg's layer figure."


class EvidenceError(MvlError, ValueError):
    """The question cannot be asked of these numbers; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A claimed superiority: two reported means of one metric over the same cases."""

    claim: str
    "Its id in `data/claims.toml`."
    words: str
    paper: str
    table: str
    ours: str
    theirs: str
    metric: str
    lower: bool = False
    "True where the smaller value is the better one."

    @property
    def n(self) -> int:
        """Cases of the comparison: tasks of an average, or pictures of a test set."""
        return PICTURES if self.paper == "P2" else TASKS

    @property
    def unit(self) -> str:
        """What the cases are."""
        return "pictures" if self.paper == "P2" else "tasks"

    @property
    def n_stated(self) -> bool:
        """True where the paper says over how many the means are."""
        return self.paper == "P1" and self.table in ("average", "comparators")


@dataclass(frozen=True)
class Point:
    """One point of a comparison's grid."""

    sd_ours: float
    sd_theirs: float
    correlation: float
    probability: float


V3 = "MedVisionLlama"
VIT = "ViT-Baseline"
CNN = "CMUNeXt"
HYBRID = "CMUNeXt + Transformer"
COMPARISONS = (
    Comparison("mean_dice", f"{V3} against {VIT}, Dice", "P1", "average", V3, VIT, "dice"),
    Comparison("mean_nsd", f"{V3} against {VIT}, NSD", "P1", "average", V3, VIT, "nsd"),
    Comparison("mean_hd95", f"{V3} against {VIT}, HD95", "P1", "average", V3, VIT, "hd95", True),
    *(
        Comparison(claim, f"{V3} against {peer}, Dice", "P1", "comparators", V3, peer, "dice")
        for claim, peer in (
            ("better_than_unetr", "UNETR"),
            ("better_than_unetpp", "UNet++"),
            ("better_than_nnunet", "nnU-Net"),
            ("better_than_missformer", "MissFormer"),
            ("better_than_swin", "Swin-UNet"),
        )
    ),
    *(
        Comparison(
            f"few_shot_{share}",
            f"{share} % of the data, validation Dice",
            "P1",
            f"few-shot {share} %",
            V3,
            VIT,
            "val_dice",
        )
        for share in (10, 30)
    ),
    Comparison(
        "v1_gain",
        f"Version 1 against {VIT}, Dice",
        "P1-v1",
        "average",
        "ViT + LLM block",
        VIT,
        "dice",
    ),
    *(
        Comparison(claim, words, "P2", table, best, reference, "iou_percent")
        for claim, words, table, best, reference in (
            ("llm4seg_gain", f"Llama's best layer against {CNN}", LLAMA, "frozen layer 4", CNN),
            ("", f"Llama's best layer against {HYBRID}", LLAMA, "frozen layer 4", HYBRID),
            (
                "llm4seg_robust_llms",
                f"DeepSeek's best layer against {CNN}",
                DEEPSEEK,
                "frozen layer 19",
                CNN,
            ),
        )
    ),
)
"Every claim of superiority whose two means were recovered; an empty id stands in no ledger line."


def false_claim(gain: float, sd_ours: float, sd_theirs: float, n: int, correlation: float) -> float:
    """Return the probability that a claimed superiority is false, from means alone.

    It is the posterior probability that the true mean difference is not above zero, with a flat
    prior and normal differences; `gain` is ours minus theirs, positive where ours is better.

    Raises:
        EvidenceError: fewer than two cases, a correlation beyond 1, or no spread at all.

    Source: Christodoulou and others, arXiv 2505.04720.
    """
    if n < 2 or not -1 <= correlation <= 1:
        raise EvidenceError(
            f"needs two cases and a correlation within 1, not {n} and {correlation}"
        )
    variance = sd_ours**2 + sd_theirs**2 - 2 * correlation * sd_ours * sd_theirs
    if variance <= 0:
        raise EvidenceError("differences without any spread say nothing of chance")
    return float(stats.t.cdf(-math.sqrt(n) * gain / math.sqrt(variance), n - 1))


def numbers(paper: str, table: str, metric: str, start: str = "") -> pd.DataFrame:
    """Return the reported rows of a table, those whose system's name starts with `start`."""
    rows = reported().query("paper == @paper and table == @table and metric == @metric")
    return rows[rows["system"].str.startswith(start)].reset_index(drop=True)


def one(comparison: Comparison, system: str) -> tuple[float, float]:
    """Return the value and the standard deviation (nan: not reported) of one side.

    Raises:
        EvidenceError: the table has not exactly one such row.
    """
    rows = numbers(comparison.paper, comparison.table, comparison.metric)
    rows = rows[rows["system"] == system]
    if len(rows) != 1:
        raise EvidenceError(f"{len(rows)} rows of {system} in {comparison.table}; one is needed")
    return float(rows["value"].iloc[0]), float(rows["sd"].iloc[0])


def gain(comparison: Comparison) -> float:
    """Return ours minus theirs, positive where ours is better."""
    difference = one(comparison, comparison.ours)[0] - one(comparison, comparison.theirs)[0]
    return -difference if comparison.lower else difference


def grid(comparison: Comparison) -> list[Point]:
    """Return the probability that the claim is false at every point of its grid.

    A reported standard deviation stands alone; one that is missing takes each value of the grid,
    the same on both sides where both are missing.
    """
    pictures = comparison.paper == "P2"
    ours, theirs = one(comparison, comparison.ours)[1], one(comparison, comparison.theirs)[1]
    spread = PICTURE_SDS if pictures else TASK_SDS
    sds = [(ours, theirs)]
    if math.isnan(ours) or math.isnan(theirs):
        sds = [(known(ours, sd), known(theirs, sd)) for sd in spread]
    difference = gain(comparison)
    correlations = PICTURE_CORRELATIONS if pictures else TASK_CORRELATIONS
    return [
        Point(a, b, r, false_claim(difference, a, b, comparison.n, r))
        for (a, b), r in itertools.product(sds, correlations)
    ]


def known(value: float, otherwise: float) -> float:
    """Return a reported value, or what stands in for it where it is nan."""
    return otherwise if math.isnan(value) else value


def cases_needed(difference: float, sd_of_differences: float) -> int:
    """Return the fewest cases at which the probability of a false claim falls below 5 %.

    Raises:
        EvidenceError: the difference is not positive, so no number of cases would do.
    """
    if difference <= 0:
        raise EvidenceError("no gain is claimed, so no number of cases could support it")
    n = 2
    while stats.t.cdf(-math.sqrt(n) * difference / sd_of_differences, n - 1) >= LEVEL:
        n += 1
    return n


def smallest_p(n: int) -> float:
    """Return the smallest p that a two-sided Wilcoxon signed-rank test reaches with n cases.

    It has that value when all n differences point one way: two of the 2^n patterns of signs.

    Raises:
        EvidenceError: there is no case.
    """
    if n < 1:
        raise EvidenceError(f"a test needs a case, not {n}")
    return 2.0 ** (1 - n)


def in_reach(sizes: Sequence[int], metrics: int, level: float = LEVEL) -> int:
    """Return how many comparisons (one a task and metric) can come below `level` at all."""
    return metrics * sum(smallest_p(n) < level for n in sizes)


def expected_maximum(k: int) -> float:
    """Return the expected largest of k draws from a standard normal distribution.

    Raises:
        EvidenceError: there is nothing to draw.
    """
    if k < 1:
        raise EvidenceError(f"the largest of {k} draws is nothing")

    def density(z: float) -> float:
        return z * k * float(stats.norm.pdf(z)) * float(stats.norm.cdf(z)) ** (k - 1)

    return float(integrate.quad(density, -10, 10)[0])


@dataclass(frozen=True)
class Picked:
    """The best of several values that may differ by nothing but noise."""

    k: int
    mean: float
    sd: float
    best: float
    expected: float
    "What the best of k is expected to be if all differ by noise of this mean and spread alone."
    chance: float
    "Probability that the best of k such values is at least as high as the best here."


def picked(values: Sequence[float]) -> Picked:
    """Return what picking the best of these values gives by itself.

    Mean and standard deviation are the values' own, so the best one is in them.
    """
    k, mean, sd = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    best = max(values)
    chance = 1 - float(stats.norm.cdf((best - mean) / sd)) ** k
    return Picked(k, mean, sd, best, mean + sd * expected_maximum(k), chance)


def as_low(values: Sequence[float], single: float) -> float:
    """Return the probability that a further draw beside these values lies as low as `single`.

    The prediction t-test: mean and spread are estimated from the values alone.
    """
    k = len(values)
    error = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / k)
    return float(stats.t.cdf((single - float(np.mean(values))) / error, k - 1))


def paired_interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean paired difference and its 95 % t-interval: mean, low, high."""
    differences = np.subtract(ours, theirs)
    error = float(stats.sem(differences)) * float(stats.t.ppf(1 - LEVEL / 2, len(differences) - 1))
    mean = float(differences.mean())
    return mean, mean - error, mean + error
