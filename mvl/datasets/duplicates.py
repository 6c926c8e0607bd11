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
Thumbnails = Float32[np.ndarray, "n side side"]
Hashes = Bool[np.ndarray, "n bits"]


def thumbnail(path: Path) -> np.ndarray:
    """SIDE x SIDE grey levels, float32."""
    return np.asarray(
        open_picture(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR),
        dtype=np.float32,
    )


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
    flat = thumbnails.reshape(len(thumbnails), -1)
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat @ flat.T


def duplicate_groups(
    names: Sequence[str], paths: Sequence[Path], least_correlation: float = -1.0
) -> list[list[str]]:
    """Return the groups of two and more of `names` whose pictures belong together, directly or
    through others, sorted.

    The hash proposes pairs (`SAME`); a pair counts where its thumbnails correlate at least by
    `least_correlation`.

    The proposals alone were judged on ultrasound. Endoscopes and dermoscopes give every picture one
    frame and one vignette, so that unlike pictures have like hashes, and chains of them swallow a
    set: of the 998 pictures of Kvasir-SEG 11,645 pairs are proposed and one chain holds 640
    pictures. At .96 (the registry's default) 5 of those pairs stay, 13 of ISIC 2017, 2 of PH2 and
    668 of CVC-ClinicDB's frames. Looked at: in ISIC the ten pairs from .969 up show one lesion and
    the ones below do not; in Kvasir the pairs from .962 up show one polyp and the next two do not,
    but one pair at .942 does; PH2's pairs (.972, .961) show two lesions each, which are kept
    together for nothing. Grouping too much costs nothing, too little shows the test in training.
    """
    small = np.stack([thumbnail(path) for path in paths])
    apart, alike = distances(hashes(small)), correlations(small)
    proposed = np.any([(apart <= far) & (alike >= least) for far, least in SAME], axis=0)
    same = proposed & (alike >= least_correlation)
    return joined(
        list(names),
        [(names[a], names[b]) for a, b in zip(*np.nonzero(np.triu(same, 1)), strict=True)],
    )


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
