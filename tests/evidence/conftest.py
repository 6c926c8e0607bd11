"""What the tests of the claims have in common."""

from __future__ import annotations

from functools import partial

import pytest

from mvl.evidence import stats


@pytest.fixture
def few_resamples(monkeypatch):
    """Few resamples: the verdicts do not hang on them."""
    monkeypatch.setattr(stats, "bootstrap", partial(stats.bootstrap, resamples=400))
