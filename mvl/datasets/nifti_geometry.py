"""Where a NIfTI file's voxels lie, in mm, and within which tolerances two places are one."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
from jaxtyping import Float
from nibabel.spatialimages import HeaderDataError

from mvl.core.errors import MvlError

SPACING_MM = (0.05, 20.0)
TOLERANCE_VOXELS = 0.01
"""Two affines mean one place where no corner of the grid moves by more than this share of a voxel
..."""
QUATERNION_ERROR = 2e-3
"""... and, for each of them that comes from a qform, by this share of the grid's extent: a qform
keeps three float32 components of a unit quaternion, and the fourth is lost to rounding near half a
turn (1.4 voxels at the corner of 512 x 512 x 512 were measured, a share of 1.6e-3)."""
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
Affine = Float[np.ndarray, "4 4"]


class FileFault(MvlError, ValueError):
    """What is wrong with one file, without its name."""


def check_geometry(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> tuple[Affine, bool]:
    """Affine in mm, and whether it is the qform's: the sform decides where there is one.

    Raises:
        FileFault: spacing out of range, an unknown unit of length, no orientation, sform and qform
            apart, or axes that are not orthogonal.
    """
    unit, scale = length_unit(header)
    told = f"{unit}, as xyzt_units says" if scale != 1 else "mm"
    spacing = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not all(np.isfinite(s) and SPACING_MM[0] <= s * scale <= SPACING_MM[1] for s in spacing):
        raise FileFault(
            f"spacing {spacing.tolist()} {told}; expected {SPACING_MM[0]} to {SPACING_MM[1]} mm on"
            " each axis"
        )
    forms = _forms(header)
    if not forms:
        raise FileFault("orientation unknown: neither sform nor qform is set")
    for name, form in forms.items():
        _check_form(name, form, spacing)
    if len(forms) == 2:
        far = distance_voxels(forms["sform"], forms["qform"], shape)
        if not far <= TOLERANCE_VOXELS + QUATERNION_ERROR * extent(shape):
            far_mm = corner_distance_mm(forms["sform"], forms["qform"], shape) * scale
            raise FileFault(
                f"sform and qform disagree by up to {far_mm:.3g} mm: {_short(forms['sform'])} and"
                f" {_short(forms['qform'])}"
            )
    affine = next(iter(forms.values()))
    # Behind this reader all counts in mm; a factor of 1 leaves the affine as it is, bit by bit.
    return np.diag(
        [scale, scale, scale, 1.0]
    ) @ affine if scale != 1 else affine, "sform" not in forms


def length_unit(header: nibabel.Nifti1Header) -> tuple[str, float]:
    """Return the unit of length that the header names, and how many mm it has.

    Raises:
        FileFault: a unit that NIfTI does not know.
    """
    code = int(header["xyzt_units"]) & 7  # the bits above are the unit of time
    if code > 3:
        raise FileFault(f"xyzt_units names a unit of length that is unknown (code {code})")
    unit = ("unknown", "meter", "mm", "micron")[code]
    return unit, MM_PER_UNIT[unit]


def _forms(header: nibabel.Nifti1Header) -> dict[str, Affine]:
    forms = {}
    if int(header["sform_code"]) > 0:
        forms["sform"] = np.asarray(header.get_sform(), dtype=np.float64)
    if int(header["qform_code"]) > 0:
        try:
            forms["qform"] = np.asarray(header.get_qform(), dtype=np.float64)
        except (HeaderDataError, ValueError) as error:
            # Beside a sound sform, which decides, an unreadable qform is no fault.
            if not forms:
                raise FileFault(f"qform cannot be read ({error})") from error
    return forms


def _check_form(name: str, form: Affine, spacing: np.ndarray) -> None:
    axes = form[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(form).all() or abs(np.linalg.det(axes)) <= 1e-9 * np.prod(lengths):
        raise FileFault(f"{name} is singular or not finite: {_short(form)}")
    if np.abs(lengths / spacing - 1).max() > TOLERANCE_VOXELS:
        raise FileFault(
            f"{name} has spacing {lengths.round(4).tolist()} mm, pixdim says"
            f" {np.round(spacing, 4).tolist()}"
        )
    cosines = (axes / lengths).T @ (axes / lengths)
    if np.abs(cosines - np.eye(3)).max() > 1e-3:
        raise FileFault(
            f"{name} is sheared, as by a tilted gantry: {_short(form)}; resample the scan to"
            " perpendicular axes (dcm2niix writes such a copy, `_Tilt`)"
        )


def extent(shape: tuple[int, ...]) -> float:
    """Length of a grid's diagonal in voxels."""
    return float(np.linalg.norm(shape[:3]))


def corner_distance_mm(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between where two affines put a corner voxel of a grid."""
    return float(np.linalg.norm((_corners(shape) @ (a - b).T)[:, :3], axis=1).max())


def distance_voxels(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """As `corner_distance_mm`, in voxels of the first affine's grid."""
    moved = _corners(shape) @ (np.linalg.inv(a) @ (a - b)).T
    return float(np.linalg.norm(moved[:, :3], axis=1).max())


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    places = itertools.product(*[(0, n - 1) for n in shape[:3]])
    return np.array([[*place, 1.0] for place in places])


def _short(form: Affine) -> str:
    return str(form[:3].round(3).tolist())
