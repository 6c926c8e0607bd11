"""Shapes: made-up ultrasound-like pictures, in the layout of image and mask pairs, so that the
whole 2-D path is exercised without data.

Most hold one dark lobed blob, the label, among dark bars, bright bands and streaks; some hold none
and their masks are empty. Speckle is multiplicative. Now and then a picture shows the scene before
it again, a little brighter or darker and with some other speckle: near duplicates, as in BUSI.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

from mvl.core.files import sha256_bytes, write_json
from mvl.core.seeds import draw_seed
from mvl.datasets.made import ensure_made
from mvl.datasets.pictures import png_bytes

VERSION = 1
"Raised whenever a change of this file changes a picture; folders of another version are made anew."
EMPTY_EVERY, REPEAT_EVERY = 10, 15
"Picture 10 k + 9 holds no blob; picture 15 k + 14 repeats the scene before it."
SIZE = (80, 112)
"Least and largest side, px."
Grey = UInt8[np.ndarray, "rows columns"]


def ensure_shapes(folder: Path, num_cases: int = 60, seed: int = 0) -> Path:
    """Return `folder` with this version's pictures and `manifest.json`, made now unless they lie
    there.

    Raises:
        TaskError: something else lies there, or the place cannot be written.
    """
    recipe = {"version": VERSION, "num_cases": num_cases, "seed": seed}

    def write_all(partial: Path) -> None:
        hashes = {}
        for index in range(num_cases):
            for kind, data in zip(("images", "masks"), _files(seed, index), strict=True):
                (partial / kind).mkdir(parents=True, exist_ok=True)
                (partial / kind / f"shape_{index:03d}.png").write_bytes(data)
                hashes[f"{kind}/shape_{index:03d}.png"] = sha256_bytes(data)
        write_json(partial / "manifest.json", {"task": "shapes", "files": hashes, "shapes": recipe})

    return ensure_made(folder, "shapes", "manifest.json", recipe, write_all)


def _files(seed: int, index: int) -> tuple[bytes, bytes]:
    picture, mask = make_shape(seed, index)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="PNG")
    return out.getvalue(), png_bytes(mask)


def make_shape(seed: int, index: int) -> tuple[Grey, Grey]:
    """Picture (0-255) and mask (0, 1) of one case, a function of (seed, index) alone."""
    scene = index - 1 if index % REPEAT_EVERY == REPEAT_EVERY - 1 else index
    clean, mask = _scene(
        np.random.default_rng(draw_seed(seed, "shape", scene)),
        empty=scene % EMPTY_EVERY == EMPTY_EVERY - 1,
    )
    rng, own = (np.random.default_rng(draw_seed(seed, "speckle", k)) for k in (scene, index))
    speckle = gaussian_filter(
        rng.rayleigh(1.0, clean.shape) + 0.3 * own.rayleigh(1.0, clean.shape), 0.7
    )
    bright = clean * speckle / speckle.mean() * own.uniform(0.9, 1.1)
    return np.clip(255 * bright, 0, 255).round().astype(np.uint8), mask


def _scene(rng: np.random.Generator, empty: bool) -> tuple[np.ndarray, Grey]:
    """Brightness in 0-1 without speckle, and the mask."""
    rows, columns = (int(n) for n in rng.integers(SIZE[0], SIZE[1] + 1, 2))
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    clean = 0.45 + 0.08 * gaussian_filter(rng.standard_normal((rows, columns)), 8) * 20
    for _ in range(rng.integers(2, 5)):
        clean += 0.2 * np.exp(
            -(
                (
                    (y - rng.uniform(0, rows) - 4 * np.sin(x / rng.uniform(8, 20)))
                    / rng.uniform(1.5, 4)
                )
                ** 2
            )
        )
    for _ in range(rng.integers(2, 5)):
        clean = np.where(_bar(rng, x, y, rows, columns), 0.22, clean)
    blob = np.zeros((rows, columns)) if empty else _blob(rng, x, y, rows, columns)
    soft = gaussian_filter(blob, 1.0)
    clean = clean * (1 - soft) + rng.uniform(0.16, 0.26) * soft
    return gaussian_filter(clean, 0.5).clip(0.02, 1) * (1.1 - 0.5 * y / rows), (blob > 0).astype(
        np.uint8
    )


def _bar(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """A thin dark bar somewhere, as dark as a blob: brightness alone does not tell them apart."""
    angle, long, thin = rng.uniform(0, np.pi), rng.uniform(12, 25), rng.uniform(1.5, 3)
    dx, dy = x - rng.uniform(0, columns), y - rng.uniform(0, rows)
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return (along / long) ** 2 + (across / thin) ** 2 < 1


def _blob(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    """1 inside a closed curve whose radius varies with the angle by three harmonics."""
    radius = rng.uniform(8, 0.24 * min(rows, columns))
    dx, dy = (
        x - rng.uniform(0.3, 0.7) * columns,
        (y - rng.uniform(0.3, 0.7) * rows) * rng.uniform(1.0, 1.6),
    )
    angle = np.arctan2(dy, dx)
    wave = sum(
        rng.uniform(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    return (np.hypot(dx, dy) < radius * (1 + wave)).astype(np.float64)
