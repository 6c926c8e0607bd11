"""The format's own library agrees with what ranges read and write; damaged files are named."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvl.weights.families import SourceError
from mvl.weights.safetensors_ranges import (
    DTYPES,
    cut_front,
    header,
    local_places,
    merged,
    parse_header,
    read_index,
    read_rows,
    read_tensors,
)


def every_dtype():
    return {
        name.lower(): (torch.arange(6).reshape(2, 3) % 2).to(dtype)
        for name, dtype in DTYPES.items()
    } | {"scalar": torch.tensor(2.5), "nothing": torch.empty(0, 4)}


def test_what_the_library_writes_is_read(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "model.safetensors")
    found = dict(read_tensors(tmp_path, lambda name: True))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), (
            name
        )


def test_what_is_written_the_library_reads(tmp_path):
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.arange(5, dtype=torch.int16),
        "c": torch.ones(2, dtype=torch.bfloat16),
    }
    start = header({"a": ("F32", (3, 2)), "b": ("I16", (5,)), "c": ("BF16", (2,))})
    body = b"".join(tensor.view(torch.uint8).numpy().tobytes() for tensor in tensors.values())
    (tmp_path / "x.safetensors").write_bytes(start + body)
    found = load_file(tmp_path / "x.safetensors")
    assert len(start) % 8 == 0 and all(
        found[name].equal(tensor) for name, tensor in tensors.items()
    )


def test_only_the_headers_of_the_shards_in_question_are_read(wide_llama, tmp_path):
    import shutil

    folder = shutil.copytree(wide_llama, tmp_path / "part")
    (folder / "model-00001-of-00004.safetensors").write_bytes(b"damaged")
    places = local_places(folder, lambda name: name.startswith("model.layers.3."))
    assert len(places) == 9 and all("00001" not in place.file for place in places.values())
    with pytest.raises(
        SourceError,
        match=(
            "model-00001-of-00004.safetensors: ends at byte 7, before its header does; fetch it"
            " again"
        ),
    ):
        local_places(folder, lambda name: True)


def test_rows(wide_llama):
    place = local_places(wide_llama, lambda name: name == "model.embed_tokens.weight")[
        "model.embed_tokens.weight"
    ]
    whole = load_file(place.file)["model.embed_tokens.weight"]
    assert read_rows(place, [4, 0, 4]).equal(whole[[4, 0, 4]])
    with pytest.raises(SourceError, match="rows 0 to 499"):
        read_rows(place, [500])


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


DAMAGE = {
    "hole": ({"a": entry(4, 8, [1])}, "a has bytes .*expected"),
    "overlap": ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, "b has bytes"),
    "size": ({"a": entry(0, 8, [1])}, "a has bytes"),
    "beyond": ({"a": entry(0, 4000, [1000])}, "its header lists .*cut or changed"),
    "dtype": ({"a": entry(0, 8, [1], "Q4")}, "dtype Q4 is not one of"),
    "negative": ({"a": entry(-4, 4, [2])}, "must be whole numbers"),
    "bool": ({"a": entry(0, 4, [True])}, "must be whole numbers"),
    "list": ([1, 2], "header is damaged"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, "header is damaged .KeyError"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_headers_are_named(kind):
    value, message = DAMAGE[kind]
    raw = json.dumps(value).encode()
    with pytest.raises(SourceError, match=f"^x.safetensors: .*{message}"):
        parse_header(raw, "x.safetensors", 8 + len(raw) + 8)


def test_names_that_stand_twice_and_deep_nesting():
    raw = (
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8",'
        b' "shape": [1], "data_offsets": [0, 1]}}'
    )
    with pytest.raises(SourceError, match="stands in it twice"):
        parse_header(raw, "x", 9 + len(raw))
    with pytest.raises(SourceError, match="damaged"):
        parse_header(b"[" * 100_000, "x", 1_000_000)


@pytest.mark.parametrize("length", [0, 1, 2**62, 30_000_000])
def test_header_lengths_that_cannot_be(tmp_path, length):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(
        SourceError,
        match=f"x.safetensors: says that its header has {length} bytes, the file has 10",
    ):
        local_places(tmp_path, lambda name: True)


def test_cut_file_is_named(tmp_path):
    save_file({"a": torch.ones(1000)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-1])
    with pytest.raises(SourceError, match="x.safetensors: has .* the file is cut or changed"):
        list(read_tensors(tmp_path, lambda name: True))


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "x.bin"])
def test_index_names_only_files_beside_it(file):
    with pytest.raises(
        SourceError, match="index.json: names .* which is no safetensors file beside it"
    ):
        read_index(json.dumps({"weight_map": {"a": file}}).encode(), "index.json")
    with pytest.raises(SourceError, match="index.json: not a safetensors index"):
        read_index(b"{}", "index.json")


def test_spans():
    assert merged([(0, 4), (4, 8), (8, 8), (10, 12)]) == [(0, 8), (10, 12)]
    assert [cut_front([(0, 8), (10, 12)], n) for n in (0, 3, 8, 9, 10)] == [
        [(0, 8), (10, 12)],
        [(3, 8), (10, 12)],
        [(10, 12)],
        [(11, 12)],
        [],
    ]
