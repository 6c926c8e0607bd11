"""What stands behind a figure, as one sha256, and whether a book's figures are the published ones.

The hash is taken of what is drawn, not of the file: the same figure has other bytes with other
fonts, another theme or another release of matplotlib, but the same data. It covers the points,
lines, areas and outlines in the units of their axes, and every number that is written beside them;
words, colours and places are not in it. Values are rounded to a millionth of the largest of their
series, so that another processor's last bit changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from mvl.core import files
from mvl.core.config import ROOT

TABLE = ROOT / "data" / "figures.csv"
"Page, number on the page and hash of each figure of the published book."
COLUMNS = ("page", "figure", "data_sha256")
SCAN = "scan"
"Mark (`gid`) of what is drawn from scans: they are no records, and a copy without them is whole."
ABSENT = "0" * 16
"In the place of the hash of a figure whose scans this machine has not."
KEY = "mvl-data-"
NUMBER = re.compile(r"[-+\u2212]?\d+(?:\.\d+)?")
PICTURE = re.compile(r'(?:src|data)="([^"]+\.svg)"|' + KEY + "([0-9a-f]{16})")


def data_sha256(figure: Figure) -> str:
    """The first 16 digits of the sha256 of what the figure shows; `ABSENT` where its scans are not
    here."""
    if figure.get_gid() == SCAN:
        return ABSENT
    digest = hashlib.sha256()
    for axes in figure.axes:
        if axes.get_gid() != SCAN:
            for values in series(axes):
                digest.update(rounded(values).encode())
    for words in [text.get_text() for text in figure.texts if text is not figure._supxlabel]:  # type: ignore[attr-defined]
        digest.update(" ".join(NUMBER.findall(words)).encode())
    return digest.hexdigest()[:16]


def series(axes: Axes) -> Iterator[np.ndarray]:
    """Each series of numbers that the axes show."""
    for line in axes.lines:
        yield np.asarray(line.get_xydata(), float)
    for collection in axes.collections:
        if collection.get_gid() == SCAN:
            continue
        if isinstance(collection, PathCollection):
            yield np.asarray(np.ma.filled(collection.get_offsets(), np.nan), float)
        else:
            yield from (np.asarray(path.vertices, float) for path in collection.get_paths())
    for patch in axes.patches:
        yield np.asarray(patch.get_patch_transform().transform(patch.get_path().vertices), float)
    for image in axes.images:
        yield np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
    for text in axes.texts:
        yield np.array([float(n.replace("\u2212", "-")) for n in NUMBER.findall(text.get_text())])


def rounded(values: np.ndarray) -> str:
    """A series as text, to a millionth of its largest number."""
    sizes = np.abs(values[np.isfinite(values)])
    scale = float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0
    kept = np.round(values / scale, 6) + 0.0  # no minus zero
    return f"{scale:.5e}{values.shape}{kept.ravel().tolist()}"


def figures_of(book: Path) -> dict[str, list[str]]:
    """Hashes of the figures of each page of a built book, in the order of the page."""
    found: dict[str, list[str]] = {}
    for page in sorted(book.rglob("*.html")):
        for source, inline in PICTURE.findall(page.read_text(errors="replace")):
            picture = page.parent / source
            text = picture.read_text(errors="replace") if source and picture.is_file() else ""
            for digest in [inline] if inline else re.findall(KEY + "([0-9a-f]{16})", text):
                found.setdefault(page.relative_to(book).with_suffix("").as_posix(), []).append(
                    digest
                )
    return found


def write_table(book: Path) -> Path:
    """Keep the hashes of the published book's figures."""
    rows = [
        dict(zip(COLUMNS, (page, number, digest)))
        for page, digests in figures_of(book).items()
        for number, digest in enumerate(digests, 1)
    ]
    files.write_csv(TABLE, rows, list(COLUMNS))
    return TABLE


def compared(book: Path) -> list[tuple[str, int, int, int]]:
    """Page, figures of it that equal the published ones, how many are published (or drawn, where
    that is more), and how many of these are not drawn for want of their scans."""
    published: dict[str, list[str]] = {}
    for line in TABLE.read_text().splitlines()[1:]:
        page, _, digest = line.split(",")
        published.setdefault(page, []).append(digest)
    redrawn = figures_of(book)
    rows = []
    for page, digests in published.items():
        pairs = list(itertools.zip_longest(digests, redrawn.get(page, [])))
        absent = sum(new == ABSENT != old for old, new in pairs)
        rows.append((page, sum(old == new for old, new in pairs), len(pairs), absent))
    return rows


def main(book: Path) -> int:
    """Print how many figures of each page equal the published ones; 1 where one does not."""
    rows = compared(book)
    width = max(len(page) for page, *_ in rows)
    print(f"{'figures redrawn from the records':{width}}  equal to the published ones")
    print("-" * (width + 31))
    for page, equal, number, absent in rows:
        wanting = f"  {absent} without their scans" if absent else ""
        differs = "  DIFFERS" if equal + absent < number else ""
        print(f"{page:{width}}  {equal} of {number - absent}{wanting}{differs}")
    equal, number, absent = (sum(column) for column in list(zip(*rows, strict=True))[1:])
    end = f"; {absent} more show scans that are not on this machine (MVL_DATA)" if absent else ""
    print(
        f"figures: {equal} of {number - absent} equal to the published ones, by the hash of their"
        f" data{end}"
    )
    return int(equal + absent < number)
