"""The one reader of NIfTI-1 files, which may be anything: sanity before allocation, then every byte
to the end.

Checks, training, evaluation and prediction all see a scan through `decode`, by its content and
never by its name, so that what one of them accepts the others accept.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from mvl.core.errors import MvlError

MAX_VOXELS = 10**9
"The largest Decathlon scan has 0.3e9 voxels (all channels)."
SLACK = 2**16
"Bytes after the last voxel that are forgiven."
SPACING_MM = (0.05, 20.0)
TOLERANCE_VOXELS = 0.01
"Two affines mean one place where no corner of the grid moves by more than this share of a voxel ..."
QUATERNION_ERROR = 2e-3
"""... and, for each of them that comes from a qform, by this share of the grid's extent: a qform keeps
three float32 components of a unit quaternion, and the fourth is lost to rounding near half a turn
(1.4 voxels at the corner of 512 x 512 x 512 were measured, a share of 1.6e-3)."""
MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
Affine = Float[np.ndarray, "4 4"]


class FileFault(MvlError, ValueError):
    """What is wrong with one file, without its name."""


@dataclass(frozen=True)
class Scan:
    """Voxels (as stored, scaled where the header says so), affine (mm) and header."""

    voxels: np.ndarray
    affine: Affine
    header: nibabel.Nifti1Header
    from_qform: bool = False
    "True where the affine is a qform's, for want of an sform."

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each of the three axes."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))


def read_whole(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        FileFault: missing, a folder, or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileFault("broken link" if path.is_symlink() else "missing") from None
    except OSError as error:
        raise FileFault(f"cannot be read: {error.strerror}") from error


def check_bytes(raw: bytes) -> None:
    """Nothing for bytes that begin like gzip or NIfTI.

    Raises:
        FileFault: empty, a Git-LFS pointer, HTML, or something else.
    """
    if not raw:
        raise FileFault("empty file")
    if raw.startswith(b"version https://git-lfs"):
        raise FileFault("a Git-LFS pointer, not the scan (run `git lfs pull` where it came from)")
    if raw.lstrip()[:1] == b"<":
        raise FileFault(f"HTML or XML, not a scan: {raw[:60]!r}")
    if raw[:2] != b"\x1f\x8b" and raw[344:348] != b"n+1\0":
        raise FileFault(f"neither gzip nor NIfTI: begins with {raw[:16]!r}")


def read_scan(path: Path, channels: int | None = None) -> Scan:
    """The scan in a file, see `decode`.

    Raises:
        FileFault: says what is wrong, without the file's name.
    """
    raw = read_whole(Path(path))
    check_bytes(raw)
    return decode(raw, channels)


def decode(raw: bytes, channels: int | None) -> Scan:
    """The scan in `raw` (.nii.gz or .nii bytes), read to the end, its gzip checksum checked; without
    a number of `channels`, any that three or four axes hold.

    Raises:
        FileFault: says what is wrong; nothing larger than the header announces, and nothing above
            `MAX_VOXELS`, is allocated.
    """
    head = _inflate(raw, 352)
    if len(head) < 352:
        raise FileFault(f"holds {len(head)} bytes, a NIfTI-1 header needs 352")
    header = parse_header(head)
    shape = check_shape(header, channels)
    start, size = check_offset(header, head), int(np.prod(shape)) * header.get_data_dtype().itemsize
    affine, from_qform = check_geometry(header, shape)
    if start + size > 1032 * len(raw):
        raise FileFault(
            f"{len(raw)} bytes cannot hold the {size} bytes of voxels that its header announces"
        )
    body = _inflate(raw, start + size + SLACK + 1)
    if len(body) < start + size:
        raise FileFault(f"truncated: {len(body)} of {start + size} bytes")
    if len(body) > start + size + SLACK:
        raise FileFault(f"holds more than the {start + size} bytes that its header announces")
    check_extensions(header, body, start)
    return Scan(_scaled(header, body).reshape(shape, order="F"), affine, header, from_qform)


def _inflate(raw: bytes, limit: int) -> bytes:
    """Up to `limit` bytes of the content; below the limit the stream has been read to its end and
    its checksum agreed."""
    if raw[:2] != b"\x1f\x8b":
        return raw[:limit]
    out, rest = b"", raw
    try:
        while rest.strip(b"\0") and len(out) < limit:
            stream = zlib.decompressobj(wbits=31)
            out += stream.decompress(rest, limit - len(out))
            if len(out) < limit and not stream.eof:
                raise FileFault(
                    f"truncated: its gzip stream stops after {len(out)} bytes of content"
                )
            rest = stream.unused_data
    except zlib.error as error:
        raise FileFault(f"damaged gzip stream ({error})") from error
    return out


def parse_header(head: bytes) -> nibabel.Nifti1Header:
    """The header in the first 348 bytes.

    Raises:
        FileFault: not a single-file NIfTI-1 header, or a voxel type other than whole or
            floating-point numbers.
    """
    sizes = struct.unpack("<i", head[:4])[0], struct.unpack(">i", head[:4])[0]
    if 348 not in sizes or head[344:348] != b"n+1\0":
        raise FileFault(f"not a NIfTI-1 header (sizeof_hdr {sizes[0]}, magic {head[344:348]!r})")
    header = nibabel.Nifti1Header(
        head[:348], endianness="<" if sizes[0] == 348 else ">", check=False
    )
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise FileFault(f"unknown voxel type, code {int(header['datatype'])}") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise FileFault(f"voxels of type {dtype}; expected whole or floating-point numbers")
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise FileFault(f"bitpix {int(header['bitpix'])} does not fit voxel type {dtype}")
    return header


def check_shape(header: nibabel.Nifti1Header, channels: int | None) -> tuple[int, ...]:
    """Voxels per axis, with a last axis of the channels where there is more than one.

    Axes of one voxel behind the third say nothing (ANTs writes them) and are left out.

    Raises:
        FileFault: other dimensions, a slice, or too many voxels.
    """
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise FileFault(f"impossible dimensions {dim}")
    stored = tuple(dim[1 : dim[0] + 1])
    shape = stored[:3] + tuple(n for n in stored[3:] if n > 1)
    if channels is None:
        fits = len(shape) in (3, 4)
    elif channels == 1:
        fits = len(shape) == 3
    else:
        fits = len(shape) == 4 and shape[3] == channels
    if not fits:
        several = f" and {channels} channels" if (channels or 1) > 1 else ""
        raise FileFault(f"shape {stored}; expected 3 axes{several}")
    if min(shape[:3]) < 2:
        raise FileFault(f"shape {stored}: a slice, not a volume")
    if (count := int(np.prod([float(n) for n in shape]))) > MAX_VOXELS:
        raise FileFault(f"shape {stored}: {count} voxels, the cap is {MAX_VOXELS}")
    return shape


def check_offset(header: nibabel.Nifti1Header, head: bytes) -> int:
    """Byte at which voxels begin.

    Raises:
        FileFault: inside the header, not a whole number, or beyond 352 although there is no
            extension.
    """
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset != int(offset) or not 352 <= offset <= 2**24:
        raise FileFault(
            f"voxels begin at byte {offset:g}; expected 352 or just after the header's extensions"
        )
    if not head[348] and offset >= 352 + 16:
        raise FileFault(f"voxels begin at byte {offset:g} although the header has no extension")
    return int(offset)


def check_extensions(header: nibabel.Nifti1Header, body: bytes, start: int) -> None:
    """Nothing when the header's extensions end where the voxels begin.

    Raises:
        FileFault: one runs past the first voxel, or is shorter than its own head.
    """
    place = 352
    while body[348] and place + 8 <= start:
        size = struct.unpack(f"{header.endianness}i", body[place : place + 4])[0]
        if size < 8 or place + size > start:
            raise FileFault(
                f"header extension of {size} bytes at byte {place} does not end before the voxels"
                f" at {start}"
            )
        place += size


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
    # Everything behind this reader counts in mm; a factor of 1 leaves the affine as it is, bit by bit.
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
        raise FileFault(f"{name} is sheared: {_short(form)}")


def apart_mm(a: Scan, b: Scan) -> float:
    """Largest distance in mm between where two scans of one grid put a voxel; 0 where they mean one
    place (see `TOLERANCE_VOXELS`)."""
    shape = a.voxels.shape[:3]
    rounded = QUATERNION_ERROR * (a.from_qform + b.from_qform)
    if distance_voxels(a.affine, b.affine, shape) <= TOLERANCE_VOXELS + rounded * extent(shape):
        return 0.0
    return corner_distance_mm(a.affine, b.affine, shape)


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


def _scaled(header: nibabel.Nifti1Header, body: bytes) -> np.ndarray:
    """Voxels times slope plus intercept, exactly as nibabel gives them; as stored where the slope is
    0 or NaN (unscaled, by the standard)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    unscaled = np.isnan(slope) or slope == 0
    if not unscaled and not (np.isfinite(slope) and np.isfinite(inter)):
        raise FileFault(f"intensity scale {slope:g} with intercept {inter:g} is not finite")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asanyarray(ArrayProxy(io.BytesIO(body), header)).ravel("F")


def nifti_bytes(voxels: np.ndarray, affine: Affine) -> bytes:
    """A gzipped NIfTI-1 file of `voxels`; the same bytes for the same input, with no time stamp."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
