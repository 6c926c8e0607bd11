"""A network without its memory: the real shapes and names, and no values."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mvl.core.config import Config
from mvl.models.describe import without_files


def make_network(config: Config) -> nn.Module:
    """The config's network without its memory and without its source's file: shapes, names and what
    is frozen are the real ones, values are not."""
    from mvl.datasets.registry import find_task
    from mvl.models.build import SYSTEMS
    from mvl.training.objective import num_classes

    task = find_task(config.task)
    with torch.device("meta"):
        return SYSTEMS[config.model.architecture](
            without_files(config), len(task.channels), num_classes(config, task)
        )


class _Stages(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.network.stages(image)  # type: ignore[operator]


@torch.no_grad()
def stage_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of every named intermediate of one case, from a forward pass that computes no values;
    the network stays as it is."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    shadow = {f"network.{name}": torch.empty_like(tensor, device="meta") for name, tensor in named}
    image = torch.empty(2, *image_shape, device="meta")
    out = torch.func.functional_call(_Stages(network), shadow, (image,))
    return {"input": image_shape, **{name: tuple(tensor.shape[1:]) for name, tensor in out.items()}}
