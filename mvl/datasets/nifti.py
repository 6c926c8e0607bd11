"""The one reader of NIfTI-1 files, which may be anything: sanity before allocation, then every byte
to the end.

Checks, training, evaluation and prediction all see a scan through `decode`, by its content and
never by its name, so that what one of them accepts the others accept.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError

from mvl.datasets.nifti_geometry import (
    QUATERNION_ERROR,
    TOLERANCE_VOXELS,
    Affine,
    FileFault,
    check_geometry,
    corner_distance_mm,
    distance_voxels,
    extent,
)

MAX_VOXELS = 10**9
"The largest Decathlon scan has 0.3e9 voxels (all channels)."
SLACK = 2**16
"Bytes after the last voxel that are forgiven."


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
        FileFault: missing, a folder, a device or pipe, or unreadable.
    """
    try:
        # A pipe without a writer would never end.
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise FileFault("no regular file, but a device, a pipe or a socket")
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
    if 540 in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")):
        raise FileFault("a NIfTI-2 file, which is not read; convert it to NIfTI-1")
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
    """The scan in `raw` (.nii.gz or .nii bytes), read to the end, its gzip checksum checked;
    without a number of `channels`, any that three or four axes hold.

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
    if 540 in sizes:
        raise FileFault("a NIfTI-2 file, which is not read; convert it to NIfTI-1")
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


def apart_mm(a: Scan, b: Scan) -> float:
    """Largest distance in mm between where two scans of one grid put a voxel; 0 where they mean one
    place (see `TOLERANCE_VOXELS`)."""
    shape = a.voxels.shape[:3]
    rounded = QUATERNION_ERROR * (a.from_qform + b.from_qform)
    if distance_voxels(a.affine, b.affine, shape) <= TOLERANCE_VOXELS + rounded * extent(shape):
        return 0.0
    return corner_distance_mm(a.affine, b.affine, shape)


def _scaled(header: nibabel.Nifti1Header, body: bytes) -> np.ndarray:
    """Voxels times slope plus intercept, exactly as nibabel gives them; as stored where the slope
    is 0 or NaN (unscaled, by the standard)."""
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
