"""Read one DICOM series as a volume with its geometry; what cannot be read with certainty is
refused with the remedy.

Nothing of a patient's leaves this module: voxels, geometry and series identifiers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mvl.datasets.nifti import FileFault
from mvl.datasets.task import is_stray

Affine = Float[np.ndarray, "4 4"]
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"DICOM's patient axes run left, posterior, superior; NIfTI's right, anterior, superior."
CONVERT = "convert it to NIfTI with dcm2niix and give that"
TOLERANCE = 0.01
"Share of the slice distance by which slices may lie off their even places."
PASSED_OVER = (
    *(".txt", ".md", ".pdf", ".html", ".xml", ".json", ".csv", ".tsv", ".log", ".ini", ".inf"),
    *(".png", ".jpg", ".jpeg", ".gif", ".exe", ".zip", ".yaml", ".yml", ".doc", ".docx", ".rtf"),
)
"Endings of what lies beside the slices of a series and is none of them."
NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")


class DicomFault(FileFault):
    """A folder or file of DICOM that cannot be read as one volume; the message names it and the
    remedy."""


def find_series(folder: Path) -> dict[str, list[Path]]:
    """Files of each series in `folder` and below, by SeriesInstanceUID; notes and the like, which
    are not DICOM by name or content, are passed over.

    Raises:
        DicomFault: pydicom is not installed, or a file may be a slice and cannot be read as one.
    """
    found: dict[str, list[Path]] = {}
    for path, header in _headers(folder):
        if "Rows" in header:
            found.setdefault(
                str(header.get("SeriesInstanceUID", "no SeriesInstanceUID")), []
            ).append(path)
        elif _was_an_image(header):
            raise DicomFault(
                f"{path}: ends before its pixels; copy the series again from where it came"
            )
    return found


def _headers(folder: Path) -> Iterator[tuple[Path, Any]]:
    pydicom = _pydicom()
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
        and not is_stray(path.name)
        and path.name.upper() != "DICOMDIR"
        and path.suffix.lower() not in PASSED_OVER
    ]
    # A slice that is left out silently is missing from the mask: a series without its first or
    # last slices looks whole. So whatever may be one is read, or named.
    odd = [path for path in files if not is_dicom(path)]
    if odd and len(odd) < len(files):
        raise DicomFault(
            f"{odd[0]}: not a DICOM file (no DICM mark, or it cannot be read), beside"
            f" {len(files) - len(odd)} that are ({len(odd)} such files); copy the series again, or"
            " take out what does not belong to it"
        )
    for path in files if not odd else []:
        try:
            tags = ["SeriesInstanceUID", "SOPClassUID", "Rows"]
            yield path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        except Exception as error:
            raise DicomFault(
                f"{path}: cannot be read ({type(error).__name__}); copy the series again from where"
                " it came"
            ) from error


def _was_an_image(header: Any) -> bool:
    """Return whether a file without rows was cut short, and is no report, plan or DICOMDIR."""
    kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    return kind is None or "Image Storage" in kind.name


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's mark after its preamble."""
    if not path.is_file():  # e.g. a pipe, which would never end
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise DicomFault(
            "reading DICOM needs pydicom; install it with `pip install -e '.[dicom]'`, or"
            f" {CONVERT}"
        ) from error
    return pydicom


def read_series(
    folder: Path, series: str | None = None
) -> tuple[Float[np.ndarray, "x y z"], Affine]:
    """Voxels (columns, rows, slices; rescaled to the scanner's unit, float32) and affine (mm, RAS)
    of the one series in `folder`, or of `series`.

    Raises:
        DicomFault: no series or several, or one that is not an even stack of whole grey slices in
            one place; names file and remedy.
    """
    slices = _read_all(_choose(folder, series))
    first = slices[0][1]
    for path, data in slices:
        _check_slice(path, data)
        _check_same(path, data, first)
    axes = _axes(first)
    slices = sorted(slices, key=lambda pair: float(_position(pair[1]) @ axes[2]))
    affine = _affine(slices, axes, folder)
    voxels = np.stack([_pixels(path, data).T for path, data in slices], axis=2)
    return np.ascontiguousarray(voxels, dtype=np.float32), affine


def _choose(folder: Path, series: str | None) -> list[Path]:
    found = find_series(folder)
    if not found:
        raise DicomFault(
            f"{folder}: no scan in this folder: neither .nii, .nii.gz nor a DICOM image"
        )
    listed = "; ".join(f"{uid} ({len(paths)} files)" for uid, paths in sorted(found.items()))
    if series is not None and series not in found:
        raise DicomFault(f"{folder}: no series {series}; it holds {listed}")
    if series is None and len(found) > 1:
        raise DicomFault(f"{folder}: {len(found)} series; choose one with --series: {listed}")
    return found[series or next(iter(found))]


def _read_all(paths: list[Path]) -> list[tuple[Path, Any]]:
    out = []
    for path in paths:
        try:
            out.append((path, _pydicom().dcmread(path)))
        except Exception as error:
            raise DicomFault(
                f"{path}: cannot be read ({type(error).__name__}); copy the series again from where"
                " it came"
            ) from error
    return out


def _check_slice(path: Path, data: Any) -> None:
    """Nothing for a single grey frame that says where it lies."""
    if int(data.get("NumberOfFrames", 1) or 1) > 1 or "SharedFunctionalGroupsSequence" in data:
        raise DicomFault(f"{path}: a multi-frame file, which is not read; {CONVERT}")
    if (
        data.get("PhotometricInterpretation") != "MONOCHROME2"
        or int(data.get("SamplesPerPixel", 1)) != 1
    ):
        raise DicomFault(
            f"{path}: {data.get('PhotometricInterpretation')} pixels, expected MONOCHROME2 (grey"
            " values); choose another series"
        )
    lacking = [name for name in NEEDED if not _has(data, name)]
    if lacking:
        raise DicomFault(
            f"{path}: lacks {', '.join(lacking)}, so that its place is unknown; give the scanner's"
            " original series"
        )


def _has(data: Any, name: str) -> bool:
    """Return whether a slice says something under this name: for a place, as many finite numbers as
    it takes, and a spacing above 0 or axes of length 1."""
    value = data.get(name)
    wanted = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.get(name)
    if value in (None, "") or wanted is None:
        return value not in (None, "")
    try:
        numbers = _floats(value)
    except (TypeError, ValueError):
        return False
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        return False
    if name == "ImageOrientationPatient":
        return bool(np.abs(np.linalg.norm(numbers.reshape(2, 3), axis=1) - 1).max() < 1e-2)
    return name != "PixelSpacing" or bool((numbers > 0).all())


def _check_same(path: Path, data: Any, first: Any) -> None:
    """Nothing for a slice on the same grid as the first."""
    for name in (
        "Rows",
        "Columns",
        "PixelSpacing",
        "ImageOrientationPatient",
        "FrameOfReferenceUID",
        "Modality",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        a, b = data.get(name), first.get(name)
        if name in ("RescaleSlope", "RescaleIntercept") and (a is None) == (b is None):
            continue  # they may differ from slice to slice, as in PET
        numeric = name in ("PixelSpacing", "ImageOrientationPatient")
        if not (np.allclose(_floats(a), _floats(b), atol=1e-4) if numeric else a == b):
            shown = "" if name.endswith("UID") else f" ({a}, the first slice has {b})"
            raise DicomFault(
                f"{path}: {name} differs within the series{shown}; it mixes several scans: separate"
                f" them, or {CONVERT}"
            )


def _floats(values: Any) -> np.ndarray:
    return np.asarray([float(v) for v in values])


def _position(data: Any) -> np.ndarray:
    return _floats(data.ImagePositionPatient)


def _axes(data: Any) -> np.ndarray:
    """Unit vectors (rows of the result) along a row, down a column, and from slice to slice."""
    along, down = _floats(data.ImageOrientationPatient).reshape(2, 3)
    return np.stack([along, down, np.cross(along, down)])


def _affine(slices: list[tuple[Path, Any]], axes: np.ndarray, folder: Path) -> Affine:
    if len(slices) < 2:
        raise DicomFault(
            f"{slices[0][0]}: a series of one slice, not a volume; give the whole series"
        )
    positions = np.stack([_position(data) for _, data in slices])
    check_spacing([path for path, _ in slices], positions @ axes[2])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.abs(positions - positions[0] - np.arange(len(slices))[:, None] * step).max()
    if (
        np.linalg.norm(step - (step @ axes[2]) * axes[2]) > TOLERANCE * np.linalg.norm(step)
        or off > TOLERANCE * np.linalg.norm(step) + 1e-3
    ):
        raise DicomFault(
            f"{folder}: slices do not lie straight above one another (tilted gantry?); {CONVERT},"
            " which straightens it"
        )
    rows_mm, columns_mm = _floats(slices[0][1].PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack(
        [axes[0] * columns_mm, axes[1] * rows_mm, (step @ axes[2]) * axes[2]], axis=1
    )
    affine[:3, 3] = positions[0]
    return TO_RAS @ affine


def check_spacing(paths: list[Path], places_mm: np.ndarray) -> None:
    """Nothing for slices at even distances.

    Raises:
        DicomFault: two in one place, or a gap; names the files on both sides.
    """
    gaps = np.diff(places_mm)
    step = float(np.median(gaps))
    for index, gap in enumerate(gaps):
        pair = f"{paths[index]} and {paths[index + 1].name}"
        if gap < 1e-3:
            raise DicomFault(
                f"{pair}: two slices in one place (several echoes or time points?); separate them,"
                f" or {CONVERT}"
            )
        if gap > 1.5 * step:
            raise DicomFault(
                f"{pair}: {gap:.4g} mm apart where others are {step:.4g} mm: slices are missing;"
                " copy the whole series"
            )
        if abs(gap - step) > TOLERANCE * step + 1e-3:
            raise DicomFault(
                f"{pair}: {gap:.4g} mm apart where others are {step:.4g} mm: uneven slices;"
                f" {CONVERT}, which resamples them"
            )


def _pixels(path: Path, data: Any) -> np.ndarray:
    """Rows by columns in the scanner's unit (Hounsfield for CT): slope and intercept, or the lookup
    table, applied slice by slice."""
    from pydicom.pixels import apply_modality_lut

    if "PixelData" not in data:
        raise DicomFault(f"{path}: holds no pixels; copy the series again from where it came")
    scale = [data.get(name) for name in ("RescaleSlope", "RescaleIntercept")]
    if any(text not in (None, "") and not np.isfinite(float(text)) for text in scale) or (
        scale[0] == 0
    ):
        raise DicomFault(
            f"{path}: RescaleSlope {scale[0]} with RescaleIntercept {scale[1]} gives no values;"
            " give the scanner's original series"
        )
    try:
        return np.asarray(apply_modality_lut(data.pixel_array, data), dtype=np.float32)
    except Exception as error:
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            remedy = (
                f"compressed as {syntax.name}, which cannot be decoded here; decompress it with"
                f" `gdcmconv --raw`, or {CONVERT}"
            )
        else:
            remedy = (
                f"its pixels cannot be read ({type(error).__name__}); copy the series again from"
                " where it came"
            )
        raise DicomFault(f"{path}: {remedy}") from error
