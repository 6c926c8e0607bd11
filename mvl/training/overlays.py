"""A picture of a predicted mask: one plane of the scan, or the picture itself, with the outline of
each label."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image, ImageDraw
from scipy import ndimage

from mvl.datasets.nifti import read_scan
from mvl.datasets.pictures import read_image

Plane = Float[np.ndarray, "rows columns"] | Float[np.ndarray, "rows columns 3"]
Colours = UInt8[np.ndarray, "rows columns 3"]

LEAST_SIDE = 384
"Pixels of a picture's shorter side; smaller planes are enlarged by a whole factor."
MOST_ENLARGED = 12
INKS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#0072B2")
"""Colours of the labels, in their order, and from the start again where there are more.

Source: Okabe and Ito's palette, whose colours differ for colour-blind readers too.
"""
CUT = (1, 99)
"Percentiles of the scan that are drawn black and white."


def drawn_mask(mask: np.ndarray, kind: str, source: Path, channels: int) -> bytes:
    """A PNG of a mask's outline: on the picture, or on the scan's plane that holds most of it.

    kind: of the file `source`, as `NewScan` has it. channels: of the run's images.
    """
    if kind == "picture":
        pixels = np.moveaxis(read_image(source, channels), 0, -1)
        return overlay_png(pixels if channels == 3 else pixels[..., 0], mask)
    scan = read_scan(source)
    plane, labels, spacing, index = plane_of_scan(scan.voxels, mask, scan.affine)
    return overlay_png(plane, labels, spacing, f"axial, index {index} of the file")


def plane_of_scan(
    voxels: np.ndarray, mask: UInt8[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Plane, UInt8[np.ndarray, "rows columns"], tuple[float, float], int]:
    """The axial plane that holds most of the mask, the middle one of an empty mask: scan, mask,
    spacing (rows, columns) in mm, and its index in the file along that axis.

    It is turned as radiologists look at it: anterior at the top, the patient's right at the left.
    Of a scan with several channels the first is taken.
    """
    scan = voxels if voxels.ndim == 3 else voxels[..., 0]
    turn = io_orientation(affine)
    seen, labels = apply_orientation(scan, turn), apply_orientation(mask, turn)
    counts = (labels > 0).sum(axis=(0, 1))
    z = int(counts.argmax()) if counts.any() else labels.shape[2] // 2

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = {int(axis): float(spacing[place]) for place, axis in enumerate(turn[:, 0])}
    place = int(np.flatnonzero(turn[:, 0] == 2)[0])
    index = z if turn[place, 1] > 0 else labels.shape[2] - 1 - z

    def turned(plane: np.ndarray) -> np.ndarray:
        # columns run from the patient's right to the left, rows from anterior to posterior
        return np.ascontiguousarray(plane.T[::-1, ::-1])

    return (
        turned(seen[:, :, z]).astype(np.float64),
        turned(labels[:, :, z]),
        (along[1], along[0]),
        index,
    )


def overlay_png(
    plane: Plane,
    mask: UInt8[np.ndarray, "rows columns"],
    spacing: tuple[float, float] = (1.0, 1.0),
    words: str = "",
) -> bytes:
    """The plane in grey, or in its own colours, with an outline just inside each label: a PNG.

    spacing: of rows and columns; pixels that are not square are drawn in their true shape.
    words: a line of text below the picture.
    """
    height, width = enlarged(mask.shape, spacing)
    picture = Image.fromarray(as_colours(plane)).resize((width, height), Image.Resampling.BILINEAR)
    labels = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    drawn = np.array(picture)
    for place, value in enumerate(np.unique(labels[labels > 0])):
        ink = INKS[place % len(INKS)]
        drawn[outline(labels == value)] = [int(ink[i : i + 2], 16) for i in (1, 3, 5)]
    picture = Image.fromarray(drawn)
    if words:
        picture = with_words(picture, words)
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def enlarged(shape: tuple[int, ...], spacing: tuple[float, float]) -> tuple[int, int]:
    """Rows and columns of the drawn picture: true proportions, its shorter side long enough."""
    finest = min(spacing)
    height, width = (n * each / finest for n, each in zip(shape, spacing))
    factor = min(MOST_ENLARGED, max(1, int(np.ceil(LEAST_SIDE / min(height, width)))))
    return max(1, round(height * factor)), max(1, round(width * factor))


def as_colours(plane: Plane) -> Colours:
    """The plane between black and white by its percentiles; a picture with colours as it is."""
    if plane.ndim == 3:
        return np.clip(plane, 0, 255).astype(np.uint8)
    low, high = np.percentile(plane, CUT)
    if high <= low:  # a plane of (nearly) one value
        low, high = float(plane.min()), float(plane.max())
    grey = np.zeros(plane.shape) if high <= low else (plane - low) / (high - low)
    return np.repeat((np.clip(grey, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def outline(inside: np.ndarray) -> np.ndarray:
    """The outermost two pixels of a region, at the picture's border too."""
    return inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=0)


def with_words(picture: Image.Image, words: str) -> Image.Image:
    """The picture with a line of text on a strip below it."""
    strip = 18
    out = Image.new("RGB", (picture.width, picture.height + strip), "black")
    out.paste(picture, (0, 0))
    ImageDraw.Draw(out).text((4, picture.height + 3), words, fill="white")
    return out
