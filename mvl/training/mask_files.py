"""The files that are written of a segmented scan: their names, whether they are there already, and
a mask's bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from mvl.datasets.new_scans import NewScan, nifti_like
from mvl.datasets.nifti import FileFault
from mvl.datasets.pictures import png_bytes

STAYS = "is there already and stays"
ANEW = "use --overwrite to replace it, or choose another --output"


def asked_files(
    scan: NewScan, output: Path, probabilities: bool = False, overlay: bool = False
) -> dict[str, Path]:
    """Return what is to be written of a scan, the mask (`output`) among it."""
    mask, array = (".png", ".npy") if scan.kind == "picture" else (".nii.gz", ".nii.gz")
    asked = {"output": output / f"{scan.name}{mask}"}
    if probabilities:
        asked["probabilities"] = output / f"{scan.name}_probabilities{array}"
    if overlay:
        asked["overlay"] = output / f"{scan.name}_overlay.png"
    return asked


def is_there(asked: dict[str, Path], sources: set[Path], overwrite: bool = False) -> bool:
    """Whether a scan's mask is there already and stays. It is written last: what lies there without
    it was cut short, and is written anew.

    Raises:
        FileFault: a file would replace a scan, or the mask is there without the rest.
    """
    for path in asked.values():
        if path.resolve() in sources:
            raise FileFault(f"{path}: the mask would replace its scan; choose another --output")
    if overwrite or not asked["output"].is_file():
        return False
    for path in asked.values():
        if not path.is_file():
            raise FileFault(f"{asked['output']}: {STAYS}, without {path.name}; {ANEW}")
    return True


def encoded(values: np.ndarray, scan: NewScan, source: Path) -> bytes:
    """The bytes of a mask or of probabilities (classes last): NIfTI like `source`; of a picture, a
    black and white PNG or an array."""
    if scan.kind != "picture":
        return nifti_like(values, source)
    if values.dtype == np.uint8:
        return png_bytes(values)
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
