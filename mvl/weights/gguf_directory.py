"""What a GGUF file lists, as JSON: run as a script, in a process of its own with little time and
memory, since the file may be anything.

The published parser loops over whatever counts a file states: 49 bytes keep it busy for days. Here
counts are compared with the file's size first.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from contextlib import suppress
from typing import Any

CPU_S = 10
"Processor time that a file may take; 135 million weights and their vocabulary take 0.3 s."
MEMORY = 2**30
"Bytes of address space beside the file's own."
ENTRIES = 2**16
"Fields, or tensors, that a file may list."
TEXT, ARRAY = 8, 9
"Kinds of values, as the format numbers them."


def limit(size: int) -> None:
    """Bound this process for a file of `size` bytes: time, memory, nothing written to disk."""
    with suppress(ImportError):  # not on Windows, where the caller's clock is what is left
        import resource

        bounds = {
            resource.RLIMIT_CPU: CPU_S,
            resource.RLIMIT_AS: MEMORY + size,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
        }
        for what, bound in bounds.items():
            resource.setrlimit(what, (bound, bound))


def stepping_reader() -> Any:
    """The published reader, which steps over arrays (the vocabulary takes 2 s otherwise) and
    believes no count that the file cannot hold."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            item, end, count = GGUFValueType(int(kind[0])), orig_offs + 12, int(length[0])
            if item != GGUFValueType.STRING and item not in self.gguf_scalar_to_np:
                raise ValueError("an array of arrays")
            least = (
                8
                if item == GGUFValueType.STRING
                else np.dtype(self.gguf_scalar_to_np[item]).itemsize
            )
            if count * least > len(self.data) - end:
                raise ValueError(f"an array of {count} items, more than the file can hold")
            if item != GGUFValueType.STRING:
                return 12 + count * least, [kind, length], [], [GGUFValueType.ARRAY, item]
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", self.data, end)[0]  # type: ignore[arg-type]
            return end - orig_offs, [kind, length], [], [GGUFValueType.ARRAY, item]

        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != int(count):
                raise ValueError(
                    f"it ends before byte {int(offset) + int(count)}, which it speaks of"
                )
            return found

        def _build_fields(self, offs: Any, count: Any) -> Any:
            return super()._build_fields(offs, self._few(count, "fields"))

        def _build_tensor_info(self, offs: Any, count: Any) -> Any:
            return super()._build_tensor_info(offs, self._few(count, "tensors"))

        def _few(self, count: Any, what: str) -> int:
            if count > ENTRIES:
                raise ValueError(f"{count} {what}, more than {ENTRIES}")
            return int(count)

    return Reader


def directory(path: str) -> dict[str, Any]:
    """`fields`: scalar and text values by key; `arrays`: where those of text begin, and their
    length; `tensors`: name, kind, dtype, shape, bytes.

    Raises:
        ValueError: and others of the published parser: not a GGUF file, or one whose counts,
            lengths or offsets leave it.
    """
    reader, fields, arrays = stepping_reader()(path), {}, {}
    for key, field in reader.fields.items():
        if int(field.types[0]) == ARRAY:
            if int(field.types[1]) == TEXT:
                arrays[key] = [
                    int(field.offset) + sum(int(part.nbytes) for part in field.parts),
                    int(field.parts[-1][0]),
                ]
        else:
            fields[key] = field.contents()
    if odd := [
        key
        for key, value in fields.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]:
        raise ValueError(f"{odd[0]} is not finite")
    tensors = [
        [
            tensor.name,
            int(tensor.tensor_type),
            tensor.data.dtype.str,
            list(tensor.data.shape),
            int(tensor.data_offset),
        ]
        for tensor in reader.tensors
    ]
    return {"fields": fields, "arrays": arrays, "tensors": tensors}


def main(path: str) -> int:
    """Print the directory of a file; 1, and the reason on standard error, where there is none."""
    try:
        limit(os.path.getsize(path))
        print(json.dumps(directory(path), default=lambda value: value.item(), allow_nan=False))
    except Exception as error:  # whatever a made-up file brings a parser to
        print(f"{type(error).__name__}: {error}".replace(path, "the file")[:300], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
