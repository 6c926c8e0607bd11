"""Masks of pictures by what they mean, never by their bytes alone: palettes are looked up, and what
cannot be told (void borders, grey levels, shapes in the alpha channel) is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy.ndimage import minimum_filter

from mvl.datasets.nifti import FileFault
from mvl.datasets.pictures import Picture, check_pixels, exif_orientation, open_picture, read_image
from mvl.datasets.task import Case, TaskError

PictureMask = UInt8[np.ndarray, "rows columns"]
NOISE = 16
"JPEG leaves values so near to black and to white in a mask that was black and white."
FEW_LEVELS = 16
"A mask with no more values than these was drawn in levels; noise has more."
REMEDY = "write the one structure in white on black"


def read_mask(path: Path, top: int = 1) -> PictureMask:
    """Return a mask as label values: as stored where none is above `top`, else 1 where at least
    half as bright as white.

    Raises:
        FileFault: the values are neither labels up to `top` nor black and white, or their meaning
            cannot be told.
    """
    return mask_labels(mask_values(path), top)


def mask_labels(values: np.ndarray, top: int) -> PictureMask:
    """As `read_mask`, for values that `mask_values` read."""
    high = int(values.max())
    if high <= top:
        return values.astype(np.uint8)
    white = 255 if high <= 255 else 65535
    if top > 1 or high < white / 2:
        raise FileFault(f"values up to {high}; a mask holds 0 to {top}, or black and white")
    _refuse_levels(values, white)
    return (values > white / 2).astype(np.uint8)


def _refuse_levels(values: np.ndarray, white: int) -> None:
    """Nothing for black and white with smooth or noisy edges.

    Raises:
        FileFault: whole areas lie between black and white, so that there are several structures, a
            void border (0, 1 and 255) or probabilities.
    """
    levels = np.unique(values)
    if len(levels) == 2 and levels[0] == 0:
        return
    # A pixel whose neighbours all have its own grey belongs to an area, not to a smooth edge.
    flat = minimum_filter(values, 3, mode="nearest") == -minimum_filter(-values, 3, mode="nearest")
    noise = NOISE * white / 255
    between = (values > 0) & (values < white)
    if len(levels) > FEW_LEVELS:
        between &= (values > noise) & (values < white - noise)
    if (flat & between).any():
        found = np.unique(values[flat & between]).tolist()
        shown = ", ".join(map(str, found[:6]))
        count = int(between.sum())
        raise FileFault(
            f"{count} pixels are neither black nor white, in whole areas of grey {shown}: several"
            f" structures, or a void border; {REMEDY}"
        )
    grey = (values > noise) & (values < white - noise)
    if np.count_nonzero(grey) > np.count_nonzero(values >= white - noise) and grey.mean() > 0.02:
        raise FileFault(
            f"{int(grey.sum())} pixels are neither black nor white, more than are white:"
            f" probabilities, not a mask; {REMEDY}"
        )


def mask_values(path: Path) -> np.ndarray:
    """Return a mask's values (rows, columns), whole numbers: grey levels, or labels.

    Raises:
        FileFault: coloured, not whole numbers, or partly transparent in another shape than drawn.
    """
    picture = open_picture(path)
    if picture.mode in ("P", "PA"):
        values = _looked_up(picture)
    else:
        values = _one_grey(np.asarray(picture), picture.mode)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise FileFault(f"a picture of mode {picture.mode}, not a mask")
    values = values.astype(np.int64)
    _check_alpha(picture, values)
    return values


def _one_grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Return the one value of a grey picture that is stored in colours."""
    if mode in ("RGB", "RGBA", "RGBX"):
        colours = values[..., :3]
        if (colours != colours[..., :1]).any():
            raise FileFault("a coloured picture, not a mask: its red, green and blue differ")
        return colours[..., 0]
    return values[..., 0] if mode == "LA" else values


def _looked_up(picture: Image.Image) -> np.ndarray:
    """Return what a palette's indices mean.

    Grey colours are grey levels, so that an inverted palette gives an inverted mask. Of colours,
    one beside black is the structure; several are refused, unless the indices are the labels of a
    palette that begins with black.
    """
    indices = np.asarray(picture.convert("P") if picture.mode == "PA" else picture)
    colours = np.asarray(picture.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = np.unique(indices)
    if used.max() >= len(colours):
        raise FileFault(f"index {int(used.max())} is not in its palette of {len(colours)} colours")
    if (colours[used] == colours[used][:, :1]).all():
        return colours[:, 0][indices]
    black = used[(colours[used] == 0).all(1)]
    if len(used) - len(black) == 1:
        return np.where(np.isin(indices, black), 0, 255)
    if list(black) == [0] and list(used) == list(range(len(used))):
        return indices.astype(np.int64)  # labels 0, 1, 2, ..., which `top` admits or not
    raise FileFault(
        f"{len(used)} colours of a palette: several structures, or a void border; {REMEDY}"
    )


def _check_alpha(picture: Image.Image, values: np.ndarray) -> None:
    """Nothing where all is equally opaque, or transparent just where nothing is drawn."""
    if picture.mode in ("RGBA", "LA", "PA"):
        alpha = np.asarray(picture.getchannel("A"))
    elif "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    else:
        return
    if alpha.min() == alpha.max():
        return
    drawn = values > values.max() / 2
    if values.max() == 0 or not np.array_equal(drawn, alpha > 127):
        raise FileFault(
            "its alpha channel holds another shape than its colours do, so that the mask cannot be"
            f" told; {REMEDY}, without transparency"
        )


def check_upright(image: Path, mask: Path) -> None:
    """Nothing where image and mask were surely drawn the same way up.

    Raises:
        FileFault: the EXIF orientation of one turns it, the other has none, and their sizes do not
            tell whether it was drawn on the turned picture.
    """
    turned, other = exif_orientation(image), exif_orientation(mask)
    if turned == other:
        return
    one, two = open_picture(image).size, open_picture(mask).size
    # Orientations from 5 on swap the sides: equal upright sides, not of a square, prove the way.
    if (turned >= 5) != (other >= 5) and one == two and one[0] != one[1]:
        return
    raise FileFault(
        f"EXIF orientation {other}, its image has {turned}: which way up the mask was drawn cannot"
        " be told; turn both files for good (e.g. `mogrify -auto-orient`) and look at them"
    )


def read_case(case: Case, channels: int, top: int = 1) -> tuple[Picture, PictureMask]:
    """Image and label (the union of the case's masks) on the picture's own grid.

    Raises:
        TaskError: names the file, what is wrong and the remedy.
    """
    path = case.image
    try:
        image = read_image(path, channels)
        check_pixels(image)
        label = np.zeros(image.shape[1:], np.uint8)
        for path in (case.label, *case.more_labels):
            check_upright(case.image, path)
            mask = read_mask(path, top)
            if mask.shape != label.shape:
                raise FileFault(
                    f"{' x '.join(map(str, mask.shape))} pixels, its image has"
                    f" {' x '.join(map(str, label.shape))}"
                )
            label = np.maximum(label, mask)
    except FileFault as fault:
        raise TaskError(f"{path}: {fault}; get the file again, or remove the case") from fault
    return image, label
