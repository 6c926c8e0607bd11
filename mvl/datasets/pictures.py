"""Pictures: which files of a folder are an image and its masks (BUSI's layout, or pairs), and their
pixels, read with nothing trusted."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, ImageOps

from mvl.core.command_lines import command_line
from mvl.datasets.nifti import FileFault, read_whole
from mvl.datasets.task import Case, TaskError, composed, is_stray

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"Endings of pictures, in any case."
OTHERS = (".gif", ".webp", ".jp2", ".j2k", ".heic", ".avif", ".ppm", ".pgm", ".tga", ".dcm")
"Endings of pictures that are not read: a set that holds one is named, lest it shrink unnoticed."
MAX_PIXELS = 64 * 10**6
"Larger pictures are refused before their pixels are read."
DESCRIPTIONS = ("dataset.json", "groups.csv", "manifest.json")
"Files that describe a folder of pictures, and are none of its pictures."
BUSI_NAME = re.compile(r"(benign|malignant|normal) \((\d+)\)")
MASK_END = re.compile(r"_mask(_\d+)?$", re.IGNORECASE)
Picture = Float32[np.ndarray, "C rows columns"]


@dataclass
class Listing:
    """What a folder of pictures holds: whole cases, and what belongs to none."""

    cases: list[Case] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    "Files without a partner: the task cannot be used until they are gone or completed."
    strays: list[Path] = field(default_factory=list)
    "Files that are no picture of the layout; they are not read."


def read_busi(folder: Path) -> list[Case]:
    """Cases of `benign/`, `malignant/` and `normal/`: `benign (1).png` with `benign (1)_mask.png`,
    `..._mask_1.png`, ... is `benign_001`.

    Raises:
        TaskError: an image without a mask or a mask without an image; names the first.
    """
    return _whole(list_busi(folder), folder)


def read_pairs(folder: Path) -> list[Case]:
    """Cases of a folder of image and mask pairs: `images/x.png` with `masks/x.png`, or `x.png`
    beside `x_mask.png`; `x` is the case.

    Suffixes may differ; `x_mask_1.png`, ... are further masks of `x`.

    Raises:
        TaskError: no case at all, or an image or mask without its partner; names the first.
    """
    return _whole(list_pairs(folder), folder)


def _whole(listing: Listing, folder: Path) -> list[Case]:
    if listing.broken:
        path, fault = listing.broken[0]
        raise TaskError(
            f"{path}: {fault} ({len(listing.broken)} such); complete or remove it,"
            f" `{command_line('verify', folder)}` lists them all"
        )
    if not listing.cases:
        raise TaskError(
            f"{folder}: no image with a mask; expected images/x.png with masks/x.png, or x.png with"
            " x_mask.png"
        )
    return listing.cases


def list_busi(folder: Path) -> Listing:
    """What BUSI's three folders hold."""
    files = [path for kind in ("benign", "malignant", "normal") for path in _files(folder / kind)]
    return _paired(files, files, _busi_case)


def list_pairs(folder: Path) -> Listing:
    """What a folder of pairs holds; `images` and `masks` in any case."""
    sub = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    if "images" in sub and "masks" in sub:
        return _paired(
            _files(sub["images"]), _files(sub["masks"]), lambda path, stem: stem, masks_apart=True
        )
    files = _files(folder)
    return _paired(files, files, lambda path, stem: stem)


def _busi_case(path: Path, stem: str) -> str | None:
    match = BUSI_NAME.fullmatch(stem)
    return f"{match[1]}_{int(match[2]):03d}" if match and match[1] == path.parent.name else None


def _files(folder: Path) -> list[Path]:
    return (
        sorted(
            path
            for path in folder.iterdir()
            if path.is_file() and not is_stray(path.name) and path.name not in DESCRIPTIONS
        )
        if folder.is_dir()
        else []
    )


def _paired(
    images: list[Path],
    masks: list[Path],
    name: Callable[[Path, str], str | None],
    masks_apart: bool = False,
) -> Listing:
    """Images and masks matched by the case that `name(path, stem)` gives, or None for a stray."""
    out, may_mask = Listing(), set(masks)
    found: dict[str, Path] = {}
    labels: dict[str, list[Path]] = {}
    for path in dict.fromkeys([*images, *masks]):
        is_mask = path in may_mask and (masks_apart or MASK_END.search(path.stem) is not None)
        case = (
            name(path, composed(MASK_END.sub("", path.stem) if is_mask else path.stem))
            if path.suffix.lower() in SUFFIXES
            else None
        )
        if path.suffix.lower() in OTHERS:
            text = f"{path.suffix} is not among the kinds that are read; convert it to PNG"
            out.broken.append((path, text))
        elif case is None:
            out.strays.append(path)
        elif is_mask:
            # Two files of one stem are two versions of a mask, not two structures to be united.
            if twin := next((one for one in labels.get(case, []) if one.stem == path.stem), None):
                out.broken.append((path, f"a second mask of case {case}, beside {twin.name}"))
            labels.setdefault(case, []).append(path)
        elif case in found:
            out.broken.append((path, f"a second image of case {case}, beside {found[case].name}"))
        else:
            found[case] = path
    out.broken += [
        (path, "image without a mask") for case, path in found.items() if case not in labels
    ]
    out.broken += [
        (paths[0], "mask without an image") for case, paths in labels.items() if case not in found
    ]
    out.cases = [
        Case(case, found[case], labels[case][0], tuple(labels[case][1:]))
        for case in sorted(found)
        if case in labels
    ]
    return out


def open_picture(path: Path) -> Image.Image:
    """The picture in a file, upright (EXIF orientation applied), every byte of it read.

    Raises:
        FileFault: empty, no picture, cut short, animated or larger than `MAX_PIXELS`.
    """
    raw = read_whole(path)
    if not raw:
        raise FileFault("empty file")
    if raw.startswith(b"version https://git-lfs"):
        raise FileFault(
            "a Git-LFS pointer, not the picture (run `git lfs pull` where it came from)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(raw))
        if picture.width * picture.height > MAX_PIXELS:
            raise FileFault(f"{picture.width} x {picture.height} pixels, the cap is {MAX_PIXELS}")
        if (frames := getattr(picture, "n_frames", 1)) > 1:
            raise FileFault(f"{frames} frames, expected one picture")
        picture.load()
    except Image.DecompressionBombError as error:
        raise FileFault(f"more pixels than the cap of {MAX_PIXELS}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise FileFault(
            str(error)
            if isinstance(error, FileFault)
            else f"not a whole picture ({error}); begins with {raw[:8]!r}"
        ) from error
    return ImageOps.exif_transpose(picture)


def exif_orientation(path: Path) -> int:
    """Return how the picture in a file is to be turned for display, 1 (as it is) to 8.

    Raises:
        FileFault: the picture cannot be read.
    """
    try:
        with Image.open(path) as picture:
            found = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise FileFault(f"not a whole picture ({error})") from error
    return found if found in range(1, 9) else 1


def read_image(path: Path, channels: int) -> Picture:
    """An image as float32 (channels, rows, columns): grey (ITU-R 601 luma) for one channel, red,
    green and blue for three.

    Palettes are looked up, transparency is laid over black, 16-bit grey keeps its values.

    Raises:
        FileFault: says what is wrong; the picture cannot be shown with so many channels.
    """
    picture = open_picture(path)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(
            Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture
        ).convert("RGB")
    deep = picture.mode.startswith("I") or picture.mode == "F"
    if channels == 1:
        values = np.asarray(picture if deep else grey(picture), dtype=np.float32)[None]
    elif channels == 3 and not deep and picture.mode != "LAB":
        values = np.moveaxis(np.asarray(picture.convert("RGB"), dtype=np.float32), -1, 0)
    else:
        raise FileFault(
            f"a picture of mode {picture.mode} has no {channels} channels; pictures have 1 or 3"
        )
    if not np.isfinite(values).all():
        raise FileFault("NaN or infinite pixels")
    return np.ascontiguousarray(values)


def grey(picture: Image.Image) -> Image.Image:
    """Return a picture in ITU-R 601 luma; Pillow knows no way from CIE L*a*b* but through RGB."""
    if picture.mode == "LAB":
        raise FileFault("a picture in CIE L*a*b*, which is not read; save it as RGB or grey")
    return picture.convert("L")


def check_pixels(pixels: Picture) -> None:
    """Nothing for a picture that shows something, and is no mask.

    Raises:
        FileFault: one value alone, or two.
    """
    low, high = pixels.min(), pixels.max()
    if low == high:
        raise FileFault(f"constant image: every pixel is {low:g}")
    if ((pixels == low) | (pixels == high)).all():
        raise FileFault(
            f"two values only ({low:g} and {high:g}), as in a mask: image and mask swapped?"
        )


def png_bytes(mask: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """A mask as a PNG, white where it is above 0."""
    out = io.BytesIO()
    Image.fromarray((mask > 0).astype(np.uint8) * 255).save(out, format="PNG")
    return out.getvalue()
