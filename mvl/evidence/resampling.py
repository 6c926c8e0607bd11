"""The hierarchical bootstrap: folds drawn with replacement, then the seeds and the cases within
each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

CHUNK = 4_000_000
"Weights held at once."


def hierarchical_means(folds: Sequence[np.ndarray], resamples: int, seed: int = 0) -> np.ndarray:
    """Bootstrap distribution (resamples,) of the mean over folds of the mean over seeds and cases;
    `folds` are (seeds, cases) each."""
    values, shapes = np.concatenate([d.ravel() for d in folds]), tuple(d.shape for d in folds)
    step = max(1, CHUNK // len(values))
    return np.concatenate(
        [
            _drawn(shapes, min(step, resamples - start), seed, start) @ values
            for start in range(0, resamples, step)
        ]
    )


@lru_cache(maxsize=2)
def _drawn(shapes: tuple[tuple[int, ...], ...], count: int, seed: int, start: int) -> np.ndarray:
    return resample_weights(shapes, count, np.random.default_rng([seed, start]))


def resample_weights(
    shapes: Sequence[tuple[int, ...]], count: int, rng: np.random.Generator
) -> np.ndarray:
    """Weights (count, values) that resamples give to the differences of folds with (seeds, cases)
    `shapes`, folds one after another.

    A drawn fold draws its seeds and its cases; a case drawn is drawn for all its seeds, since they
    share it.
    """
    weights = [np.zeros((count, *shape)) for shape in shapes]
    for drawn in rng.integers(len(shapes), size=(len(shapes), count)):
        for fold, ((seeds, cases), weight) in enumerate(zip(shapes, weights)):
            rows = np.flatnonzero(drawn == fold)
            weight[rows] += (
                _share(seeds, len(rows), rng)[:, :, None]
                * _share(cases, len(rows), rng)[:, None, :]
                / len(shapes)
            )
    return np.concatenate([weight.reshape(count, -1) for weight in weights], axis=1)


def _share(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Share (count, size) of each of `size` things in `count` draws of `size` with replacement."""
    index = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(index.ravel(), minlength=count * size).reshape(count, size) / size
