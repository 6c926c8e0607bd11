"""Near duplicates among pictures, by perceptual hash and correlation of thumbnails: groups that
must stay in one fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from scipy.fft import dctn

from mvl.datasets.pictures import open_picture

SIDE = 64
"Thumbnails are SIDE x SIDE grey pixels, bilinear."
FREQUENCIES = 16
"""The hash holds the signs, about their median, of the lowest 16 x 16 cosine terms without the
constant: 255 bits."""
SAME = ((78, -1.0), (94, 0.90), (255, 0.94))
"""(largest Hamming distance, least correlation): two pictures belong together where a row holds.
Chosen by looking at BUSI: every pair up to 78 shows one lesion and the first that does not comes at
80; of the pairs further apart, those in the other rows do too. Mirrored pictures are not compared:
BUSI has none, and the nearest of them, at 78, is another lesion."""
LEAST_BEYOND_COMMON = 0.8
"""Two pictures that belong together correlate at least so much once what the set has in common is
taken out. Eye grounds and endoscopes share a bright disc on black, which alone correlates by .96
and more: of 30 such pictures with unlike insides none reaches .2, while every pair that is grouped
in Kvasir-SEG, ISIC 2017 and PH2 reaches .85."""
Thumbnails = Float32[np.ndarray, "n side side"]
Hashes = Bool[np.ndarray, "n bits"]


def thumbnail(path: Path) -> np.ndarray:
    """Return SIDE x SIDE grey levels, float32; deep grey is stretched to 0-255 first."""
    picture = open_picture(path)
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow's convert("L") clips deep grey to white, which makes all such pictures one.
        values = np.asarray(picture, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        levels = np.rint((values - low) * (255 / max(high - low, 1e-12)))
        picture = Image.fromarray(levels.astype(np.uint8))
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32)


def hashes(thumbnails: Thumbnails) -> Hashes:
    """One row of 255 bits per thumbnail."""
    low = dctn(thumbnails, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES].reshape(
        len(thumbnails), -1
    )[:, 1:]
    return low > np.median(low, axis=1, keepdims=True)


def distances(bits: Hashes) -> np.ndarray:
    """Hamming distance of every pair (n, n)."""
    ones = bits.astype(np.float32)
    shared = ones @ ones.T
    return (ones.sum(1)[:, None] + ones.sum(1)[None] - 2 * shared).astype(int)


def correlations(thumbnails: Thumbnails) -> np.ndarray:
    """Pearson correlation of every pair of thumbnails (n, n); 0 for a flat one."""
    flat = _unit_rows(thumbnails.reshape(len(thumbnails), -1))
    return flat @ flat.T


def _unit_rows(flat: np.ndarray) -> np.ndarray:
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def beyond_common(
    thumbnails: Thumbnails, alike: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> list[float]:
    """Return the partial correlation of each pair, given the mean of all other pictures.

    The pair itself is left out of the mean, so that a true pair in a small set stays one. Where
    there is no other picture, it is the plain correlation.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    total, rows = flat.sum(0), _unit_rows(flat)
    out = []
    for one, other in pairs:
        common = _unit_rows((total - flat[one] - flat[other])[None])[0]
        a, b = float(rows[one] @ common), float(rows[other] @ common)
        left = np.sqrt(max(0.0, 1 - a * a) * max(0.0, 1 - b * b))
        # A pair that the mean explains wholly, such as copies among copies, keeps its correlation.
        whole = left < 1e-3
        out.append(float(alike[one, other] if whole else (alike[one, other] - a * b) / left))
    return out


def duplicate_groups(
    names: Sequence[str], paths: Sequence[Path], least_correlation: float = -1.0
) -> list[list[str]]:
    """Return the groups of two and more of `names` whose pictures belong together, directly or
    through others, sorted.

    The hash proposes pairs (`SAME`); with a `least_correlation` of 0 or more, a pair counts where
    its thumbnails correlate at least by that, and by `LEAST_BEYOND_COMMON` beyond what the set has
    in common.

    The proposals alone were judged on ultrasound. Endoscopes and dermoscopes give every picture one
    frame and one vignette, so that unlike pictures have like hashes, and chains of them swallow a
    set: of the 998 pictures of Kvasir-SEG 11,645 pairs are proposed and one chain holds 640
    pictures. At .96 (the registry's default) 5 of those pairs stay, 13 of ISIC 2017, 2 of PH2 and
    632 of CVC-ClinicDB's frames. Looked at: in ISIC the ten pairs from .969 up show one lesion and
    the ones below do not; in Kvasir the pairs from .962 up show one polyp and the next two do not,
    but one pair at .942 does; PH2's pairs (.972, .961) show two lesions each, which are kept
    together for nothing. Of CVC-ClinicDB's 185,136 pairs of frames, 18 of the 632 join two video
    sequences. The false pairs are thus 0 of 497,503 (Kvasir), 3 of 1,999,000 (ISIC), 2 of 19,900
    (PH2) and at most 18 of 185,136 (CVC). Grouping too much costs nothing, too little shows the
    test in training.
    """
    small = np.stack([thumbnail(path) for path in paths])
    apart, alike = distances(hashes(small)), correlations(small)
    proposed = np.any([(apart <= far) & (alike >= least) for far, least in SAME], axis=0)
    found = np.nonzero(np.triu(proposed & (alike >= least_correlation), 1))
    pairs = list(zip(*(places.tolist() for places in found), strict=True))
    if least_correlation >= 0:
        beyond = beyond_common(small, alike, pairs)
        pairs = [pair for pair, r in zip(pairs, beyond) if r >= LEAST_BEYOND_COMMON]
    return joined(list(names), [(names[a], names[b]) for a, b in pairs])


def joined(names: list[str], pairs: list[tuple[str, str]]) -> list[list[str]]:
    """Groups of two and more names that pairs connect; sorted inside and among each other."""
    home = {name: {name} for name in names}
    for a, b in pairs:
        if home[a] is not home[b]:
            both = home[a] | home[b]
            home |= dict.fromkeys(both, both)
    return sorted(
        sorted(group)
        for group in {id(group): group for group in home.values()}.values()
        if len(group) > 1
    )
