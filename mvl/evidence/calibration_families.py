"""Calibration of the second protocol's designs: does the corrected t-test with Holm's correction
hold 5 % for a whole family, and does the printed interval cover the truth in 95 % of studies?

The contrasts of a family share an arm, so they are simulated with a correlation of one half.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from mvl.core.markdown import markdown_table
from mvl.evidence import calibration, decision
from mvl.evidence.calibration import CORRELATION, Components
from mvl.evidence.decision import LEVEL, TEST_OVER_TRAIN

DESIGNS = ((5, 2), (5, 1), (3, 1))
"(folds, seeds) of the second protocol."
SIZES = (1, 2, 3)
"Contrasts in its families."
STUDIES, SEED = 10_000, 0
"Simulated studies of each design and family, and their seed."


@dataclass(frozen=True)
class Rates:
    """Shares of simulated studies in which nothing differs."""

    called: float
    "At least one contrast of the family is called different: should be 5 % at most."
    covered: float
    "The printed interval of a contrast holds the true difference: should be 95 %."
    called_independent: float
    "As `called`, where folds have no training case in common, which the test does not assume."


def family_means(
    variances: Components, folds: int, seeds: int, family: int, studies: int, shared: float
) -> np.ndarray:
    """Fold means (studies, family, folds) of contrasts without any difference, which share an
    arm; `shared` is the correlation of two folds."""
    rng = np.random.default_rng([SEED, folds, seeds, family])

    def drawn() -> np.ndarray:
        return calibration.simulate(variances, folds, seeds, rng, studies, shared).mean((2, 3))

    common = drawn()
    # Half of a contrast's variance is the shared arm's: each keeps the variance that is given.
    parts = [math.sqrt(0.5) * (common + drawn()) for _ in range(family)]
    return np.stack(parts, axis=1)


def rates(
    variances: Components, folds: int, seeds: int, family: int, studies: int = STUDIES
) -> Rates:
    """Simulate a design and count."""
    called = {}
    covered = math.nan
    for shared in (CORRELATION, 0.0):
        means = family_means(variances, folds, seeds, family, studies, shared)
        flat = means.reshape(-1, folds)
        p = calibration._two_sided(flat, TEST_OVER_TRAIN).reshape(studies, family)
        # Holm calls none of a family unless its smallest p does, times the family's size.
        called[shared] = float((p.min(axis=1) * family < LEVEL).mean())
        if shared:
            spread = flat.std(1, ddof=1) * decision.error_factor(folds, TEST_OVER_TRAIN)
            reach = spread * decision.t_reach(1.0, folds)
            covered = float((abs(flat.mean(1)) <= reach).mean())
    return Rates(called[CORRELATION], covered, called[0.0])


def table(variances: Components, studies: int = STUDIES) -> str:
    """Every design and family as a Markdown table."""
    head = [
        "folds x seeds",
        "contrasts in the family",
        "calls a difference that is not there",
        "the same, folds independent",
        "interval holds the truth",
    ]
    rows = []
    for (folds, seeds), family in itertools.product(DESIGNS, SIZES):
        found = rates(variances, folds, seeds, family, studies)
        shares = (found.called, found.called_independent, found.covered)
        rows.append([f"{folds} x {seeds}", family, *(f"{share:.1%}" for share in shares)])
    return markdown_table(head, "lrrrr", rows)
