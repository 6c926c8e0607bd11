"""What a task and a case are, and where the data lie."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mvl.core.config import ROOT
from mvl.core.errors import MvlError

MADE = ("phantoms", "shapes")
"Tasks that mvl makes itself, on demand."
SLICES = "_slices"
"End of the name of a task of slices."
OWN = "own data"
"Licence of tasks that are not in the registry."
IGNORED_NAMES = (".DS_Store", "Thumbs.db", "desktop.ini")
"Stray files that desktops leave behind; so is every name that starts with `._`."


class TaskError(MvlError, RuntimeError):
    """A task is unknown, absent or not whole; the message names it and the remedy."""


class UnknownTask(TaskError):
    """No task and no folder has this name."""


@dataclass(frozen=True)
class Task:
    """One row of the registry."""

    name: str
    "Folder name, e.g. Task04_Hippocampus."
    title: str
    "What a figure calls it."
    modality: str
    "MRI, CT or synthetic."
    channels: tuple[str, ...]
    "Image channels in order."
    labels: dict[int, str]
    "Foreground values and their names."
    url: str
    "Archive; empty for what is made here."
    md5: str
    "Hex md5 of the archive."
    bytes: int
    "Size of the archive; 0: not known."
    num_cases: int
    "Labelled cases."
    licence: str
    "Licence of the data."
    citation: str
    "Whom to cite."
    nsd_tolerance_mm: float
    "Tolerance of the normalised surface distance, mm."
    dims: int = 3
    "Spatial dimensions."
    layout: str = "decathlon"
    """decathlon: a dataset.json that lists cases; nnunet: one that names channels (own_data.py);
    busi, pairs: pictures (see pictures.py); slices: axial slices of the Decathlon task in the same
    folder."""
    unit: str = "mm"
    "Unit of nsd_tolerance_mm and hd95_mm: mm, or px for pictures, whose pixels have no known size."
    folder: str = ""
    "Folder below the data root; empty: the task's name."
    home: str = ""
    """Folder of this clone that holds the task's folder where the data root does not: the scans
    that are committed."""
    page: str = ""
    "Where a person downloads what has no archive that can be fetched and checked."
    persons: str = ""
    """How the case names tell persons, for `data.split: persons`; `pairs`: numbers 2k-1 and 2k are
    two sides of one person; empty: they do not."""
    copy_of: str = ""
    "Name of the task of which this one is a reduced copy; empty: of none that the registry knows."
    together: tuple[tuple[str, ...], ...] = ()
    "Groups of cases that stay in one block of every split, such as one image with two labels."
    sequence_ends: tuple[int, ...] = ()
    """Last number of each video sequence, where a case is the number of a frame; the frames of a
    sequence stay in one block."""
    least_correlation: float = 0.96
    """Near duplicates of a picture task correlate at least so much at 64 x 64 pixels (see
    duplicates.py)."""
    prompt: str = ""
    "Words for text guidance; empty: structure and modality, from title, channels and modality."

    @cached_property
    def own(self) -> bool:
        """True for your own data, which the registry does not know."""
        return self.licence == OWN


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    case_id: str
    "File name without .nii.gz."
    image: Path
    "Image file."
    label: Path
    "Label file."
    more_labels: tuple[Path, ...] = ()
    "Further mask files: the label is the union of all."
    z: int | None = None
    "Index along the superior axis, for a slice of a volume."
    more: tuple[Path, ...] = ()
    "Image files of the further channels, where each channel has its own (nnU-Net)."

    @property
    def images(self) -> tuple[Path, ...]:
        """Every image file, in channel order."""
        return (self.image, *self.more)


def data_root(data_dir: Path | None = None) -> Path:
    """Folder that holds the tasks: `data_dir`, else `$MVL_DATA`, else `data/raw` of this clone."""
    return Path(data_dir or os.environ.get("MVL_DATA") or ROOT / "data" / "raw").expanduser()


def case_name(path: str) -> str:
    """`./imagesTr/a_001.nii.gz` -> `a_001`."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", Path(path).name, count=1, flags=re.IGNORECASE)


def composed(name: str) -> str:
    """Return a name with each letter and its accent as one character: macOS takes them apart in
    file names, and a list or a partner of the file may not."""
    return unicodedata.normalize("NFC", name)


def is_stray(name: str) -> bool:
    """True for files that desktops leave behind (`._x`, `.DS_Store`, ...), which are never
    cases."""
    return name.startswith("._") or name in IGNORED_NAMES
