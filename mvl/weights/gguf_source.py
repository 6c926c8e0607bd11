"""GGUF files: config, one layer, embedding rows and tokenizer of a Llama model, each read alone and
dequantised."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvl.core.command_lines import command_line
from mvl.weights.families import SourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedConfig

GGUF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"llama.cpp's tensor names = transformers' names."
WAIT_S = 120
"""Seconds of the wall clock that the child may take: its processor time is bounded far below, this
is for machines that are busy."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, as it is stored."""

    name: str
    tensor_type: Any
    "gguf's name of the packing."
    data: Any
    "Array that reads the file where it is touched."


@dataclass(frozen=True)
class Gguf:
    """What a file lists, read by a limited child process (see gguf_directory.py), and its bytes,
    read where they are touched."""

    path: Path
    fields: dict[str, Any]
    "Scalar and text values."
    arrays: dict[str, tuple[int, int]]
    "Where an array of text begins, and how many items it has."
    tensors: list[StoredTensor]
    data: Any

    def value(self, key: str, kind: type = str) -> Any:
        """The value of a field.

        Raises:
            SourceError: it is not there, of another kind, or a number that no model has.
        """
        found: Any = self.fields.get(key)
        sound = type(found) is kind
        if not sound or (kind is not str and not 0 < found < 2**31):
            raise _refused(self.path, f"{key} is {found!r}")
        return found


@lru_cache(maxsize=1)
def open_gguf(path: Path) -> Gguf:
    """What a GGUF file holds.

    Raises:
        SourceError: not a GGUF file, or one whose counts, lengths or offsets make no sense, or that
            takes too long to read.
    """
    import numpy as np
    from gguf import GGMLQuantizationType

    listed = _directory(path)
    data = np.memmap(path, mode="r")

    def stored(name: str, kind: int, dtype: str, shape: list[int], start: int) -> StoredTensor:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return StoredTensor(
            name, GGMLQuantizationType(kind), data[start : start + size].view(dtype).reshape(shape)
        )

    arrays = {key: (start, count) for key, (start, count) in listed["arrays"].items()}
    return Gguf(path, listed["fields"], arrays, [stored(*row) for row in listed["tensors"]], data)


def _directory(path: Path) -> dict[str, Any]:
    words = [sys.executable, "-P", str(Path(__file__).with_name("gguf_directory.py")), str(path)]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(path, f"reading its header took more than {WAIT_S} s") from error
    if done.returncode < 0:
        raise _refused(
            path,
            "reading its header took more time or memory than any model's (signal"
            f" {-done.returncode})",
        )
    if done.returncode:
        raise _refused(path, (done.stderr.strip().splitlines() or ["its reader failed"])[-1])
    return json.loads(done.stdout)


def _refused(path: Path, reason: str) -> SourceError:
    return SourceError(
        f"{path}: not a GGUF file of a Llama model that can be used ({reason}); delete it and run"
        f" `{command_line('fetch', 'weights')}`"
    )


def gguf_config(path: Path) -> LlamaConfig:
    """The model's config, from the file's own fields.

    Raises:
        SourceError: as `open_gguf`; or a field is not there or is no number that a model has.
    """
    from transformers import LlamaConfig

    reader = open_gguf(path)
    count, real = (
        (lambda key: reader.value(f"llama.{key}", int)),
        (lambda key: reader.value(f"llama.{key}", float)),
    )
    return LlamaConfig(
        hidden_size=count("embedding_length"),
        intermediate_size=count("feed_forward_length"),
        num_hidden_layers=count("block_count"),
        num_attention_heads=count("attention.head_count"),
        num_key_value_heads=count("attention.head_count_kv"),
        rms_norm_eps=real("attention.layer_norm_rms_epsilon"),
        vocab_size=count("vocab_size"),
        max_position_embeddings=count("context_length"),
        initializer_range=count("embedding_length") ** -0.5,
        rope_parameters={"rope_type": "default", "rope_theta": real("rope.freq_base")},
    )


def gguf_layer(
    path: Path, layer: int, config: PreTrainedConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of one layer in float32 by their names in `LlamaDecoderLayer`, and the final norm's.

    Raises:
        SourceError: as `open_gguf`; or a tensor cannot be unpacked.
    """
    tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}
    prefix, norm = f"blk.{layer}.", "output_norm.weight"
    out = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        part = name.removeprefix(prefix).removesuffix(".weight")
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
            part
        )
        read = _unpacked(path, tensors[name])
        if heads and (read.dim() != 2 or read.shape[0] % (2 * heads)):
            raise _refused(path, f"{name} has shape {tuple(read.shape)} for {heads} heads")
        out[GGUF_NAMES.get(part, part) + ".weight"] = _half_split(read, heads) if heads else read
    return out, {"weight": _unpacked(path, tensors[norm])} if norm in tensors else {}


def _unpacked(path: Path, tensor: StoredTensor, rows: Sequence[int] | None = None) -> Tensor:
    from gguf import dequantize

    try:
        return torch.from_numpy(
            dequantize(
                tensor.data if rows is None else tensor.data[list(rows)], tensor.tensor_type
            ).copy()
        )
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise _refused(path, f"{tensor.name}: {error}") from error


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection in transformers' rotary order (halves) from llama.cpp's
    (interleaved pairs)."""
    return (
        weight.reshape(heads, -1, 2, weight.shape[1])
        .transpose(1, 2)
        .reshape(weight.shape)
        .contiguous()
    )


def gguf_rows(path: Path, rows: Sequence[int]) -> Tensor:
    """The given rows of the embedding matrix in float32; only they are dequantised.

    Raises:
        SourceError: as `open_gguf`; or there is no such matrix or row.
    """
    matrix = next(
        (tensor for tensor in open_gguf(path).tensors if tensor.name == "token_embd.weight"), None
    )
    if matrix is None:
        raise _refused(path, "it holds no embedding matrix")
    return _unpacked(path, matrix, rows)


@lru_cache(maxsize=1)
def gguf_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE tokenizer whose vocabulary and merges the file holds.

    Raises:
        SourceError: as `open_gguf`; or the file's tokenizer is of another kind.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    reader = open_gguf(path)
    kind = tuple(str(reader.fields.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if kind != ("gpt2", "smollm"):
        raise SourceError(
            f"{path}: tokenizer {'/'.join(kind)} is not supported; only gpt2/smollm is"
        )
    try:
        tokens, merges = (_strings(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    except ValueError as error:
        raise _refused(path, f"its vocabulary: {error}") from error
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    split = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer


def _strings(reader: Gguf, key: str) -> list[str]:
    """An array of strings, whose lengths the child has walked through."""
    if key not in reader.arrays:
        raise _refused(reader.path, f"it holds no {key}")
    (place, count), data, out = reader.arrays[key], reader.data, []
    for _ in range(count):
        length = struct.unpack_from("<Q", data, place)[0]
        out.append(bytes(data[place + 8 : place + 8 + length]).decode())
        place += 8 + length
    return out
