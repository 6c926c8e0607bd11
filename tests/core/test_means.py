"""A mean is exactly rounded and leaves nothing out."""

import math

import pytest

from mvl.core.means import MetricError, mean


def test_mean_refuses_nan_and_nothing() -> None:
    assert mean([0.1] * 10) == 0.1
    assert mean([1e16, 1.0, -1e16]) == 1 / 3
    for bad, odd in (([0.5, math.nan], 1), ([math.inf], 1), ([math.nan] * 3, 3), ([], 0)):
        with pytest.raises(MetricError) as caught:
            mean(bad)
        assert str(caught.value) == (
            f"cannot average {len(bad)} values of which {odd} are not finite"
        )
