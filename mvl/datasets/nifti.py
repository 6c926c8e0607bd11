"""Read a NIfTI-1 file that may be anything: sanity before allocation, then every byte to the end."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float
from nibabel.spatialimages import HeaderDataError

from mvl.core.errors import MvlError

MAX_VOXELS = 10**9
"The largest Decathlon scan has 0.3e9 voxels (all channels)."
SLACK = 2**16
"Bytes after the last voxel that are forgiven."
SPACING_MM = (0.05, 20.0)
Affine = Float[np.ndarray, "4 4"]


class FileFault(MvlError, ValueError):
    """What is wrong with one file, without its name."""


@dataclass(frozen=True)
class Scan:
    """Voxels (as stored, scaled where the header says so) and affine (mm)."""

    voxels: np.ndarray
    affine: Affine


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


def decode(raw: bytes, channels: int) -> Scan:
    """The scan in `raw` (.nii.gz or .nii bytes), read to the end, its gzip checksum checked.

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
    affine = check_geometry(header, shape)
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
    voxels = np.frombuffer(body, header.get_data_dtype(), int(np.prod(shape)), start).reshape(
        shape, order="F"
    )
    return Scan(_scaled(header, voxels), affine)


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


def check_shape(header: nibabel.Nifti1Header, channels: int) -> tuple[int, ...]:
    """Voxels per axis, with a last axis of `channels` where there is more than one.

    Raises:
        FileFault: other dimensions, a slice, or too many voxels.
    """
    dim = [int(n) for n in header["dim"]]
    wanted = 3 if channels == 1 else 4
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]):
        raise FileFault(f"impossible dimensions {dim}")
    shape = tuple(dim[1 : dim[0] + 1])
    if dim[0] != wanted or (channels > 1 and shape[3] != channels):
        raise FileFault(
            f"shape {shape}; expected 3 axes{f' and {channels} channels' if channels > 1 else ''}"
        )
    if min(shape[:3]) < 2:
        raise FileFault(f"shape {shape}: a slice, not a volume")
    if (count := int(np.prod([float(n) for n in shape]))) > MAX_VOXELS:
        raise FileFault(f"shape {shape}: {count} voxels, the cap is {MAX_VOXELS}")
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


def check_geometry(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> Affine:
    """Affine in mm.

    Raises:
        FileFault: spacing out of range, no orientation, sform and qform apart, or axes that are not
            orthogonal.
    """
    spacing = [float(s) for s in header["pixdim"][1:4]]
    if not all(np.isfinite(s) and SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise FileFault(
            f"spacing {spacing} mm; expected {SPACING_MM[0]} to {SPACING_MM[1]} on each axis"
        )
    forms = _forms(header)
    if not forms:
        raise FileFault("orientation unknown: neither sform nor qform is set")
    for name, form in forms.items():
        _check_form(name, form, spacing)
    if (
        len(forms) == 2
        and not (far := corner_distance_mm(forms["sform"], forms["qform"], shape)) <= 1e-3
    ):
        raise FileFault(
            f"sform and qform disagree by up to {far:.3g} mm: {_short(forms['sform'])} and"
            f" {_short(forms['qform'])}"
        )
    return next(iter(forms.values()))


def _forms(header: nibabel.Nifti1Header) -> dict[str, Affine]:
    forms = {}
    if int(header["sform_code"]) > 0:
        forms["sform"] = np.asarray(header.get_sform(), dtype=np.float64)
    if int(header["qform_code"]) > 0:
        try:
            forms["qform"] = np.asarray(header.get_qform(), dtype=np.float64)
        except (HeaderDataError, ValueError) as error:
            raise FileFault(f"qform cannot be read ({error})") from error
    return forms


def _check_form(name: str, form: Affine, spacing: list[float]) -> None:
    axes = form[:3, :3]
    if not np.isfinite(form).all() or abs(np.linalg.det(axes)) < 1e-9:
        raise FileFault(f"{name} is singular or not finite: {_short(form)}")
    lengths = np.linalg.norm(axes, axis=0)
    if np.abs(lengths - spacing).max() > 1e-3:
        raise FileFault(
            f"{name} has spacing {lengths.round(4).tolist()} mm, pixdim says"
            f" {np.round(spacing, 4).tolist()}"
        )
    cosines = (axes / lengths).T @ (axes / lengths)
    if np.abs(cosines - np.eye(3)).max() > 1e-3:
        raise FileFault(f"{name} is sheared: {_short(form)}")


def corner_distance_mm(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between where two affines put a corner voxel of a grid."""
    corners = np.array(
        [[*corner, 1.0] for corner in itertools.product(*[(0, n - 1) for n in shape[:3]])]
    )
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())


def _short(form: Affine) -> str:
    return str(form[:3].round(3).tolist())


def _scaled(header: nibabel.Nifti1Header, voxels: np.ndarray) -> np.ndarray:
    """Voxels times slope plus intercept, as float32; as stored where the slope is 0 or NaN
    (unscaled, by the standard)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isnan(slope) or slope == 0 or (slope, inter) == (1, 0):
        return voxels
    if not np.isfinite(slope) or not np.isfinite(inter):
        raise FileFault(f"intensity scale {slope:g} with intercept {inter:g} is not finite")
    with np.errstate(over="ignore", invalid="ignore"):
        return (voxels * slope + inter).astype(np.float32)


def nifti_bytes(voxels: np.ndarray, affine: Affine) -> bytes:
    """A gzipped NIfTI-1 file of `voxels`; the same bytes for the same input, with no time stamp."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
