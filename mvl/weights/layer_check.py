"""The tensors of one layer, and the check that they are what the model's config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mvl.weights import families
from mvl.weights.families import SourceError

CHECKED_AT_ONCE = 1 << 22
"Values looked at together, so that a check holds little beside the tensor."
LARGEST = 65504.0
"""Largest number of float16, in which language models are kept too: what lies above is a flipped
bit, not a weight."""


@dataclass(frozen=True)
class LayerWeights:
    """Tensors of one layer by their names in the layer class, and the final norm's (`weight`,
    `bias`; none in BERT), in the stored dtype."""

    layer: dict[str, Tensor]
    final_norm: dict[str, Tensor]


def expected_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a layer of this config has."""
    with torch.device("meta"):
        layer = families.make_layer(config, 0)
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}


def norm_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the model's final norm has."""
    with torch.device("meta"):
        norm = families.make_norm(config)
    if norm is None:
        return {}
    return {name: tuple(tensor.shape) for name, tensor in norm.state_dict().items()}


def check_layer(weights: LayerWeights, config: PreTrainedConfig, where: str) -> None:
    """Raise SourceError that lists every tensor that is missing, extra, misshapen, not finite or
    all zero."""
    wanted = expected_shapes(config) | as_final_norm(norm_shapes(config))
    found = weights.layer | as_final_norm(weights.final_norm)
    faults = [f"missing {name}" for name in sorted(set(wanted) - set(found))]
    faults += [f"extra {name}" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        if fault := tensor_fault(found[name], wanted[name]):
            faults.append(f"{name} {fault}")
    if faults:
        raise SourceError(
            f"{where}: {'; '.join(faults)}. Fetch the checkpoint again, or mend its config.json"
        )


def as_final_norm(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under names that say that they are the final norm's."""
    return {f"final norm {name}": value for name, value in named.items()}


def tensor_fault(tensor: Tensor, shape: tuple[int, ...]) -> str:
    """What is wrong with a tensor that should have this shape; empty: nothing."""
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)}, the config says {shape}"
    if not tensor.is_floating_point():
        return f"is stored as {tensor.dtype}, not as floats"
    parts = tensor.flatten().split(CHECKED_AT_ONCE)
    if not all(torch.isfinite(part).all() for part in parts):
        return "is not finite"
    top = max(float(part.float().abs().max()) for part in parts)
    if top > LARGEST:
        return f"holds {top:.3g}, more than any trained weight"
    # A bias may be zero, a matrix of zeros is a file that was never written.
    if tensor.dim() == 2 and top == 0:
        return "is all zero"
    return ""
