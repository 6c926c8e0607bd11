"""What a design can decide before its runs exist: detectable differences and equivalence.

The model is the one under which the corrected resampled t-test is exact: fold means with one
standard deviation, and a correlation between folds that adds test/train times their variance to
the variance of the mean. Runs of the same fold are averaged first, as everywhere in this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

from mvl.evidence.calibration import Components
from mvl.evidence.decision import LEVEL, MARGIN, error_factor

POWER = 0.8
"Probability with which a design should find what it looks for."
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(400)
"Gauss and Legendre's points and weights, for an integral between -1 and 1."


def fold_sd(variances: Components, seeds: int, cases: int) -> float:
    """Return the standard deviation of a fold's mean difference over its seeds and test cases.

    Seeds thin out what varies between runs, and cases what varies between cases. Records with one
    seed cannot tell runs from folds, nor what cases share between seeds from the rest: there more
    seeds are taken to help nothing.
    """
    return math.sqrt(variances.of_fold_mean(seeds if variances.seeds > 1 else 1, cases))


def upper_factor(folds: int) -> float:
    """Return the factor from a standard deviation measured over folds to its 80 % upper limit.

    Source: Browne, On the use of a pilot sample for sample size determination, Statistics in
    Medicine 14 (1995).
    """
    freedom = folds - 1
    return math.sqrt(freedom / float(stats.chi2.ppf(1 - 0.8, freedom)))


def power_of_difference(difference: float, sd: float, folds: int, family: int = 1) -> float:
    """Return the probability that the two-sided corrected t-test finds a true difference.

    `family` divides the level: Holm's hardest step, which the smallest of so many p-values takes.
    A single fold finds nothing.
    """
    if folds < 2:
        return 0.0
    critical = float(stats.t.isf(LEVEL / family / 2, folds - 1))
    centre = difference / (sd * error_factor(folds))

    def rejected(ratio: np.ndarray) -> np.ndarray:
        above = stats.norm.sf(critical * ratio - centre)
        below = stats.norm.cdf(-critical * ratio - centre)
        return above + below

    return _mean_over_measured_sd(rejected, folds)


def detectable(sd: float, folds: int, family: int = 1) -> float | None:
    """Return the true difference that is found with a power of `POWER`, or None for one fold.

    It is in the unit of `sd`.
    """
    if folds < 2:
        return None
    error = sd * error_factor(folds)

    def lacking(multiple: float) -> float:
        return power_of_difference(multiple * error, sd, folds, family) - POWER

    # the multiple of the standard error depends on folds and family alone; a family of hundreds
    # at two folds needs thousands, hence the wide bracket
    high = 8.0
    while lacking(high) < 0:
        high *= 2
    return float(optimize.brentq(lacking, 0.0, high)) * error


def power_of_equivalence(
    sd: float, folds: int, margin: float = MARGIN, difference: float = 0.0
) -> float:
    """Return the probability that both one-sided corrected tests reject, given the difference.

    Both reject where |mean| < margin - t * standard error.
    """
    if folds < 2:
        return 0.0
    error = sd * error_factor(folds)
    critical = float(stats.t.isf(LEVEL, folds - 1))
    centre = difference / error

    def both_reject(ratio: np.ndarray) -> np.ndarray:
        room = margin / error - critical * ratio
        return stats.norm.cdf(room - centre) - stats.norm.cdf(-room - centre)

    return _mean_over_measured_sd(both_reject, folds, margin / (error * critical))


def _mean_over_measured_sd(
    probability: Callable[[np.ndarray], np.ndarray], folds: int, last: float = math.inf
) -> float:
    """Return the mean of a probability that depends on the measured sd over the true one.

    Given that ratio the mean difference is normal; the ratio is a chi over the root of its degrees
    of freedom. Integrating over it gives the noncentral t, for which scipy's own function gives
    NaN in the tails that a search passes through. Beyond `last` the probability is taken as 0.
    """
    freedom = folds - 1
    root = math.sqrt(freedom)

    # ten standard deviations of the ratio: what lies beyond weighs nothing
    end = min(last, 1 + 10 / root)
    ratio = (NODES + 1) * end / 2
    density = stats.chi.pdf(ratio * root, freedom) * root
    value = float(np.sum(NODE_WEIGHTS * probability(ratio) * density)) * end / 2
    return min(1.0, max(0.0, value))


def largest_sd(folds: int, margin: float = MARGIN) -> float | None:
    """Return the largest sd of fold means at which arms without a difference are called equivalent.

    That is with a power of `POWER`; None for one fold, at which no spread is small enough.
    """
    if folds < 2:
        return None

    def lacking(share: float) -> float:
        return power_of_equivalence(share * margin, folds, margin) - POWER

    return float(optimize.brentq(lacking, 1e-3, 10.0)) * margin
