"""What a GGUF file lists is what the published reader says of it, and a made-up file ends the
child, not the caller."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from mvl.weights import gguf_directory
from mvl.weights.gguf_source import _strings, open_gguf

SCRIPT = gguf_directory.__file__


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A small GGUF file as the published writer makes it."""
    writer = GGUFWriter(tmp_path / "whole.gguf", "llama")
    writer.add_block_count(2)
    writer.add_rope_freq_base(500.0)
    writer.add_token_list(["a", "bc", "é"])
    writer.add_token_types([1, 1, 3])
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("output_norm.weight", np.ones(4, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "whole.gguf"


def test_it_lists_what_the_published_reader_lists(whole: Path) -> None:
    reader, found = GGUFReader(whole), open_gguf(whole)
    scalars = {
        key: field.contents()
        for key, field in reader.fields.items()
        if field.types[0] != gguf_directory.ARRAY
    }
    assert found.fields == scalars and list(found.arrays) == ["tokenizer.ggml.tokens"]
    assert _strings(found, "tokenizer.ggml.tokens") == ["a", "bc", "é"]
    assert [(t.name, t.tensor_type) for t in found.tensors] == [
        (t.name, t.tensor_type) for t in reader.tensors
    ]
    assert all(
        np.array_equal(a.data, b.data) and a.data.dtype == b.data.dtype
        for a, b in zip(found.tensors, reader.tensors)
    )


def test_the_real_file_is_read_within_the_limits(smollm2: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, str(smollm2)], capture_output=True, text=True, check=True
    )
    assert len(json.loads(done.stdout)["tensors"]) == 272


def test_a_made_up_file_ends_with_1_and_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + b"x"
    )
    done = subprocess.run(
        [sys.executable, "-P", SCRIPT, str(tmp_path / "a.gguf")], capture_output=True, text=True
    )
    assert (
        (done.returncode, done.stdout) == (1, "")
        and "ends before byte" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


@pytest.mark.parametrize(
    ("code", "status"), [("while True: pass", -9), ("x = bytearray(2**31)", 1)]
)
def test_time_and_memory_are_bounded(code: str, status: int) -> None:
    words = (
        f"import sys; sys.path.insert(0, {str(Path(SCRIPT).parent)!r}); import gguf_directory as g;"
        f" g.CPU_S = 1; g.limit(0)\n{code}"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=60)
    assert done.returncode == status and ("MemoryError" in done.stderr) == (status == 1)
