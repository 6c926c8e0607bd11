"""What an open claim needs: the spread behind a printed interval, and folds that would decide."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mvl.evidence import claims_evidence, claims_ledger, claims_power, power
from mvl.evidence.claims_evidence import Found

CLAIM = next(claim for claim in claims_ledger.load_claims() if claim.id == "v1_gain")
RUNS = pd.DataFrame(
    [
        {"system": "medvisionllama_v1", "state": "done", "cpu_s": 120.0},
        {"system": "vit_baseline", "state": "done", "cpu_s": 60.0},
    ]
)
EVIDENCE = claims_evidence.Evidence(
    "hippocampus", pd.DataFrame(), RUNS, pd.DataFrame(), pd.DataFrame()
)


def found(folds: np.ndarray, **more) -> Found:
    """A difference with the corrected interval of these fold means."""
    n = len(folds)
    spread = folds.std(ddof=1) * np.sqrt(1 / n + 1 / 7)
    reach = stats.t.ppf(0.975, n - 1) * spread
    middle = folds.mean()
    return Found(
        "A minus B",
        "dice",
        n,
        n_runs=n,
        n_folds=n,
        difference=middle,
        low=middle - reach,
        high=middle + reach,
        systems=("medvisionllama_v1", "vit_baseline"),
        **more,
    )


def test_the_spread_is_that_of_the_folds():
    folds = np.array([0.01, 0.03, -0.02, 0.005])
    assert claims_power.fold_sd(found(folds)) == pytest.approx(folds.std(ddof=1))
    assert np.isnan(claims_power.fold_sd(Found("A minus B", "dice", 1, n_runs=1, n_folds=1)))


@pytest.mark.parametrize("sd", [0.002, 0.006])
def test_the_fewest_folds_are_the_first_that_reach_the_power(sd):
    needed = claims_power.folds_needed(sd, 0.01)
    if needed is None:
        assert power.power_of_difference(0.01, sd, 10) < 0.8
        return
    assert power.power_of_difference(0.01, sd, needed) >= 0.8
    assert needed == 3 or power.power_of_difference(0.01, sd, needed - 1) < 0.8


def test_an_open_claim_says_what_it_needs_and_what_that_costs():
    quiet = claims_power.what_would_decide(
        CLAIM, EVIDENCE, [found(np.array([0.002, 0.004, 0.003]), missing=("a", "b"))]
    )
    assert "3 folds would see 1 Dice point; 3 would call equal arms equivalent." in quiet
    assert "A fold of one seed took 3 core-minutes." in quiet
    assert quiet.endswith("2 planned runs of it are missing.")
    loud = claims_power.what_would_decide(CLAIM, EVIDENCE, [found(np.array([0.2, -0.3, 0.1]))])
    assert "Not even ten folds of one seed would see 1 Dice point" in loud
    alone = Found("A minus B", "dice", 1, n_runs=1, n_folds=1)
    assert "three folds are the least" in claims_power.what_would_decide(CLAIM, EVIDENCE, [alone])
