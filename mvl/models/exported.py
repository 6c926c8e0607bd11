"""Read a network back from a folder that `mvl export` wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mvl.core.config import Config, build, check
from mvl.core.errors import MvlError
from mvl.models.build import build_system, frozen_sha256, own_state

CONFIG, WEIGHTS, CARD, ONNX = "config.json", "model.safetensors", "README.md", "model.onnx"
"The files of an exported folder; the last is there where the network could be written as ONNX."
MODEL_TYPE = "mvl"
"How `config.json` names the kind of network that the folder holds."


class ExportedError(MvlError, ValueError):
    """A folder is no whole export, or its network cannot be built; the message says why."""


@dataclass(frozen=True)
class Described:
    """What `config.json` says of an exported network."""

    config: Config
    channels: tuple[str, ...]
    "Names of the image's channels, in order."
    classes: tuple[str, ...]
    "Names of the foreground classes, in the order of the logits."
    num_classes: int
    "Number of the logits' channels."
    frozen_sha256: str
    "What `frozen_sha256` gives for the network that was trained."


def read_described(folder: Path) -> Described:
    """Read what an exported folder says of its network.

    Raises:
        ExportedError: there is no such file, or it is not one of ours.
    """
    path = Path(folder) / CONFIG
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found["model_type"] != MODEL_TYPE:
            raise ValueError(f"its model_type is {found['model_type']!r}, not {MODEL_TYPE!r}")
        return Described(
            check(build(Config, found["config"], str(path))),
            tuple(found["channels"]),
            tuple(found["classes"]),
            int(found["num_classes"]),
            str(found["frozen_sha256"]),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ExportedError(
            f"{path}: no description of an exported network ({type(error).__name__}: {error});"
            " export the run again"
        ) from error


def load_exported(folder: str | Path) -> nn.Module:
    """Build an exported network with its weights, in evaluation mode: image (B, C, *S), as
    `mvl.datasets.preprocessing` makes it, to logits (B, K, *S).

    A frozen layer of a language model is fetched from where its owners publish it, unless it is
    here already, and must be the one that the network was trained with.

    Raises:
        ExportedError: the folder is not whole, or its weights do not fit.
        SourceError: the layer cannot be fetched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    described = read_described(folder)
    network = build_system(described.config, len(described.channels), described.num_classes)
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ExportedError(
            f"{folder / WEIGHTS}: cannot be read ({error}); export the run again"
        ) from error
    if set(state) != set(own_state(network)):
        raise ExportedError(f"{folder / WEIGHTS}: holds other tensors than the network has")
    network.load_state_dict(state, strict=False)
    if frozen_sha256(network) != described.frozen_sha256:
        raise ExportedError(
            f"{folder}: the frozen layer of {described.config.model.token_block.source} differs"
            " from the one that the network was trained with; fetch that source again"
        )
    return network.eval()
