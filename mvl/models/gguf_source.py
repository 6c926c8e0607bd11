"""GGUF files: config, one layer, embedding rows and tokenizer of a Llama model, each read alone and dequantised."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvl.models.families import SourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, PreTrainedConfig

GGUF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
"llama.cpp's tensor names = transformers' names."


@lru_cache(maxsize=1)
def open_gguf(path: Path) -> Any:
    """Reader of a GGUF file whose arrays (the vocabulary) are stepped over, which take 2 s to parse otherwise."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class LayerReader(GGUFReader):
        def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            kind, length = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            item, end = GGUFValueType(int(kind[0])), orig_offs + 12
            if item == GGUFValueType.STRING:
                for _ in range(int(length[0])):
                    end += 8 + struct.unpack_from("<Q", self.data, end)[0]  # type: ignore[arg-type]
            else:
                end += int(length[0]) * np.dtype(self.gguf_scalar_to_np[item]).itemsize
            return end - orig_offs, [kind, length], [], [GGUFValueType.ARRAY, item]

    return LayerReader(path)


def gguf_config(path: Path) -> LlamaConfig:
    """The model's config, from the file's own fields."""
    from transformers import LlamaConfig

    reader = open_gguf(path)
    value = lambda key: reader.fields[f"llama.{key}"].contents()
    return LlamaConfig(
        hidden_size=value("embedding_length"), intermediate_size=value("feed_forward_length"), num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"), num_key_value_heads=value("attention.head_count_kv"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"), vocab_size=value("vocab_size"),
        max_position_embeddings=value("context_length"), initializer_range=value("embedding_length") ** -0.5,
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
    )


def gguf_layer(path: Path, layer: int, config: PreTrainedConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of one layer in float32 by their names in `LlamaDecoderLayer`, and the final norm's."""
    from gguf import dequantize

    tensors = {tensor.name: tensor for tensor in open_gguf(path).tensors}
    read = lambda name: torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())
    prefix = f"blk.{layer}."
    out = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        part = name.removeprefix(prefix).removesuffix(".weight")
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
        out[GGUF_NAMES.get(part, part) + ".weight"] = _half_split(read(name), heads) if heads else read(name)
    return out, {"weight": read("output_norm.weight")}


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection in transformers' rotary order (halves) from llama.cpp's (interleaved pairs)."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def gguf_rows(path: Path, rows: Sequence[int]) -> Tensor:
    """The given rows of the embedding matrix in float32; only they are dequantised."""
    from gguf import dequantize

    matrix = next(tensor for tensor in open_gguf(path).tensors if tensor.name == "token_embd.weight")
    return torch.from_numpy(dequantize(matrix.data[list(rows)], matrix.tensor_type).copy())


@lru_cache(maxsize=1)
def gguf_tokenizer(path: Path) -> Tokenizer:
    """The byte-level BPE tokenizer whose vocabulary and merges the file holds.

    Raises:
        SourceError: the file's tokenizer is of another kind.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    reader = open_gguf(path)
    kind = tuple(reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre"))
    if kind != ("gpt2", "smollm"):
        raise SourceError(f"{path}: tokenizer {'/'.join(kind)} is not supported; only gpt2/smollm is")
    tokens, merges = (_strings(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    return tokenizer


def _strings(reader: Any, key: str) -> list[str]:
    """An array of strings, which the reader has stepped over."""
    field, data, out = reader.fields[key], reader.data, []
    name_length = struct.unpack_from("<Q", data, field.offset)[0]
    place = field.offset + 8 + name_length + 4
    place, count = place + 12, struct.unpack_from("<Q", data, place + 4)[0]
    for _ in range(count):
        length = struct.unpack_from("<Q", data, place)[0]
        out.append(bytes(data[place + 8:place + 8 + length]).decode())
        place += 8 + length
    return out
