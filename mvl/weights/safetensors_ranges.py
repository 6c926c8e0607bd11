"""Safetensors by byte ranges: where each tensor lies, what a file of chosen tensors begins with,
and reading them without the rest.

Source: the format's description, github.com/huggingface/safetensors: 8 bytes of header length, a
JSON header, the tensors without holes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvl.weights.families import SourceError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_LIMIT = 25_000_000
"Bytes that a header may have; the hub's client draws the same line."
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BOOL": torch.bool,
}
"The format's names of what is read here."
Span = tuple[int, int]
"First byte and the byte after the last."
Reader = Callable[[str, int, int], tuple[bytes, int]]
"(file, start, end) -> those bytes, and the size of the whole file."


@dataclass(frozen=True)
class Place:
    """Where one tensor lies."""

    file: str
    dtype: str
    "As the format names it, e.g. BF16."
    shape: tuple[int, ...]
    start: int
    "First byte in the file."
    end: int
    "The byte after its last."


def read_places(file: str, read: Reader) -> dict[str, Place]:
    """Every tensor of a file by name, from its header alone.

    Raises:
        SourceError: the header is too long, no JSON, or its offsets do not tile the file.
    """
    first, total = read(file, 0, 8)
    length = struct.unpack("<Q", first)[0]
    if not 2 <= length <= min(HEADER_LIMIT, total - 8):
        raise SourceError(
            f"{file}: says that its header has {length} bytes, the file has {total}; not a whole"
            " safetensors file, fetch it again"
        )
    return parse_header(read(file, 8, 8 + length)[0], file, total)


def parse_header(raw: bytes, file: str, total: int) -> dict[str, Place]:
    """Places that a header of a file of `total` bytes lists, in the file's order.

    Raises:
        SourceError: as `read_places`.
    """
    try:
        entries = json.loads(raw, object_pairs_hook=_unique)
        entries.pop("__metadata__", None)
        base = 8 + len(raw)
        places = {name: _place(file, base, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{file}: its safetensors header is damaged ({type(error).__name__}: {error}); fetch it"
            " again"
        ) from error
    places, at = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].end))), base
    for name, place in places.items():
        wanted = math.prod(place.shape) * DTYPES[place.dtype].itemsize
        if place.start != at or place.end - place.start != wanted:
            raise SourceError(
                f"{file}: {name} has bytes {place.start} to {place.end}, expected {at} to"
                f" {at + wanted}; fetch it again"
            )
        at = place.end
    if at != total:
        raise SourceError(
            f"{file}: has {total} bytes, its header lists {at}; the file is cut or changed, fetch"
            " it again"
        )
    return places


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _place(file: str, base: int, entry: dict[str, Any]) -> Place:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not one of {', '.join(DTYPES)}")
    if not all(type(n) is int and n >= 0 for n in (start, end, *shape)):
        raise ValueError("offsets and shapes must be whole numbers")
    return Place(file, entry["dtype"], shape, base + start, base + end)


def header(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The beginning of a file that holds tensors of these dtypes and shapes, in this order: length
    and padded JSON."""
    entries, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in the same order, with neighbours joined."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        elif end > start:
            out.append((start, end))
    return out


def cut_front(spans: list[Span], count: int) -> list[Span]:
    """What is left of `spans` after their first `count` bytes."""
    out = []
    for start, end in spans:
        step = min(count, end - start)
        count -= step
        if start + step < end:
            out.append((start + step, end))
    return out


def read_index(raw: bytes, where: str) -> tuple[dict[str, str], int]:
    """(file of each tensor, bytes of all tensors) that an index says.

    Raises:
        SourceError: not an index, or it names files elsewhere.
    """
    try:
        value = json.loads(raw)
        files = {str(name): str(file) for name, file in value["weight_map"].items()}
        size = int((value.get("metadata") or {}).get("total_size") or 0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{where}: not a safetensors index ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if outside := [
        file
        for file in files.values()
        if Path(file).name != file or not file.endswith(".safetensors")
    ]:
        raise SourceError(
            f"{where}: names {outside[0]!r}, which is no safetensors file beside it; do not use"
            " this checkpoint"
        )
    return files, size


def local_places(folder: Path, names: Callable[[str], bool]) -> dict[str, Place]:
    """Where the wanted tensors of a local checkpoint lie; only the headers of the shards that hold
    them are read.

    Raises:
        SourceError: no safetensors there, or a shard is missing or damaged; names the file.
    """
    if (folder / INDEX).is_file():
        index, _ = read_index((folder / INDEX).read_bytes(), str(folder / INDEX))
        shards = sorted({file for name, file in index.items() if names(name)})
    else:
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        if not shards:
            pickles = sorted(
                path.name
                for path in folder.glob("*")
                if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
            )
            held = f" but {pickles[0]}, a pickle, which is never opened" if pickles else ""
            raise SourceError(
                f"{folder}: holds no safetensors{held}; use a checkpoint in safetensors, or convert"
                " it on a machine that you trust"
            )
    found: dict[str, Place] = {}
    for shard in shards:
        found |= {
            name: place
            for name, place in read_places(str(folder / shard), _read_file).items()
            if names(name)
        }
    return found


def _read_file(file: str, start: int, end: int) -> tuple[bytes, int]:
    try:
        with open(file, "rb", buffering=0) as handle:
            handle.seek(start)
            data = handle.read(end - start) or b""
            size = os.fstat(handle.fileno()).st_size
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror}; fetch the checkpoint again") from error
    if len(data) != end - start:
        raise SourceError(f"{file}: ends at byte {size}, before its header does; fetch it again")
    return data, size


def read_tensors(folder: Path, names: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The wanted tensors of a local checkpoint one at a time, in the dtype they are stored in; no
    other tensor's bytes are read.

    Raises:
        SourceError: as `local_places`.
    """
    for name, place in local_places(folder, names).items():
        yield name, _read_tensor(place)


def read_rows(place: Place, rows: Sequence[int]) -> Tensor:
    """The given rows of a matrix in a local file, (len(rows), width) in the stored dtype; no other
    row's bytes are read.

    Raises:
        SourceError: no such row, or the file is cut.
    """
    count, width = place.shape
    if not rows or not all(0 <= row < count for row in rows):
        raise SourceError(
            f"{place.file}: its matrix has rows 0 to {count - 1}, asked for {sorted(rows)[-1:]};"
            " tokenizer and weights do not match"
        )
    step = (place.end - place.start) // count
    starts = [place.start + row * step for row in rows]
    return torch.cat(
        [
            _read_tensor(replace(place, shape=(1, width), start=start, end=start + step))
            for start in starts
        ]
    )


def _read_tensor(place: Place) -> Tensor:
    tensor = torch.empty(place.shape, dtype=DTYPES[place.dtype])
    view = tensor.reshape(-1).view(torch.uint8).numpy().data
    with open(place.file, "rb", buffering=0) as file:
        file.seek(place.start)
        while view.nbytes and (count := file.readinto(view)):
            view = view[count:]
    if view.nbytes:
        raise SourceError(f"{place.file}: cut, {view.nbytes} bytes are missing; fetch it again")
    return tensor
