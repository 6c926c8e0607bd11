"""Resampled weights are shares of their fold, whatever the numbers of seeds and cases."""

from __future__ import annotations

import numpy as np

from mvl.evidence import resampling


def test_resample_weights_are_shares() -> None:
    weights = resampling.resample_weights([(2, 5), (1, 4)], 50, np.random.default_rng(0))
    assert weights.shape == (50, 14) and (weights >= 0).all()
    assert np.allclose(weights.sum(1), 1)
    first = weights[:, :10].reshape(50, 2, 5)
    assert (
        all(np.linalg.matrix_rank(w) <= 2 for w in first) and len(np.unique(weights, axis=0)) > 40
    )
