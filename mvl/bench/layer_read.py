"""What reading one block out of a checkpoint of Llama-3.1-8B's true shapes costs, in bytes read and
memory held; the file is sparse, so cheap."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import mmap
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from mvl.weights.safetensors_ranges import DTYPES, INDEX, header, local_places

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
"""config.json of Llama-3.1-8B. Source: the model's card and its technical report, arXiv 2407.21783,
table 3."""
SHARD_BYTES = 5_000_000_000


def llama_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Llama checkpoint."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    rows, pairs = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "mlp.down_proj": (width, inner),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "post_attention_layernorm": (width,),
        "self_attn.k_proj": (pairs, width),
        "self_attn.o_proj": (width, rows),
        "self_attn.q_proj": (rows, width),
        "self_attn.v_proj": (pairs, width),
    }
    layers = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in block.items()
    }
    ends = {"model.norm.weight": (width,), "lm_head.weight": (config["vocab_size"], width)}
    return {"model.embed_tokens.weight": (config["vocab_size"], width), **layers, **ends}


def write_layout(
    folder: Path, config: dict[str, Any] | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """A sharded bf16 checkpoint in true shapes whose shards are sparse: a one in each tensor, else
    zeros that take no room on disk."""
    config = config or LLAMA_8B
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in llama_shapes(config).items():
        if shards[-1] and 2 * sum(map(math.prod, [*shards[-1].values(), shape])) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        _write_sparse(folder / name, shard)
    index = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    size = 2 * sum(math.prod(shape) for shard in shards for shape in shard.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}))
    return folder


def _write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    with open(path, "wb") as file:
        file.write(header({name: ("BF16", shape) for name, shape in shapes.items()}))
        at = file.tell()
        for shape in shapes.values():
            file.seek(at)
            file.write(b"\x80\x3f")  # 1.0 in bfloat16
            at += 2 * math.prod(shape)
        file.truncate(at)


def block_names(layer: int) -> Callable[[str], bool]:
    """Accepts the tensors of one Llama layer and the final norm."""
    return lambda name: name.startswith(f"model.layers.{layer}.") or name == "model.norm.weight"


def block_bytes(folder: Path, layer: int) -> int:
    """Bytes that a layer and the final norm take in the checkpoint."""
    return sum(
        math.prod(p.shape) * DTYPES[p.dtype].itemsize
        for p in local_places(folder, block_names(layer)).values()
    )


def measure(folder: Path, layer: int, load: Callable[[], Iterable[Tensor]]) -> dict[str, float]:
    """Bytes read and the peak of memory held while `load` returns the block, in this process; Linux
    only.

    Read: what went through read(2), or, where that is less than the block, the pages of the shards
    that came into memory (which counts the kernel's reading ahead too, an upper bound).
    """
    stored = block_bytes(folder, layer)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, pages = _status("VmRSS"), resident(folder)
    calls = _called()
    tensors = list(load())
    read, peak = _called() - calls, _status("VmHWM") - before
    read = read if read >= stored else max(read, resident(folder) - pages)
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {
        "block_bytes": float(stored),
        "read_bytes": float(read),
        "read_ratio": read / stored,
        "returned_bytes": float(held),
        "peak_bytes": float(peak),
        "peak_ratio": peak / stored,
    }


def resident(folder: Path) -> int:
    """Bytes of a checkpoint's shards that lie in the page cache."""
    return sum(_resident(path) for path in folder.glob("*.safetensors"))


def _resident(path: Path) -> int:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // mmap.PAGESIZE))()
        anchor = ctypes.c_char.from_buffer(view)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(view)), pages
        )
        del anchor
        return 0 if failed else bytes(pages).count(1) * mmap.PAGESIZE


def _called() -> int:
    return int(
        next(
            line.split()[1]
            for line in Path("/proc/self/io").read_text().splitlines()
            if line.startswith("rchar")
        )
    )


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(key)))


def probe_load_layer() -> dict[str, float]:
    """The figures of `measure` for the last layer of the 16 GB layout, read by `load_layer`, which
    checks the tensors that the block takes."""
    from mvl.weights.sources import load_config, load_layer

    small = {
        **LLAMA_8B,
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 2,
        "vocab_size": 8,
        "num_hidden_layers": 1,
    }
    with tempfile.TemporaryDirectory() as scratch:
        warm = write_layout(Path(scratch) / "small", small)
        folder = write_layout(Path(scratch) / "large")
        load_layer(str(warm), 0), load_config(str(folder))  # imports are not counted
        return measure(folder, 31, lambda: _tensors(load_layer(str(folder), 31)))


def _tensors(weights: Any) -> Iterable[Tensor]:
    """Every tensor in a dataclass of tensors and dicts of tensors."""
    for value in vars(weights).values():
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, Tensor):
            yield value
