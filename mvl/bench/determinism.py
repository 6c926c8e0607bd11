"""Which systems train alike, bit for bit, at every run on a GPU: found by counting operators, no
GPU is needed for it.

A training step runs on PyTorch's `meta` device, in the ways that are made for GPUs, and each
operator in it is compared with those that PyTorch says have no deterministic form on CUDA.
`python -m mvl.bench.determinism` writes `data/determinism.json`, which the book shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mvl.bench import systems
from mvl.core import files
from mvl.core.config import Config
from mvl.core.markdown import markdown_table
from mvl.models.describe import system_config, without_files
from mvl.training.devices import RECORD, read_record

if TYPE_CHECKING:
    from torch import nn

NONDETERMINISTIC = frozenset(
    {
        "_adaptive_avg_pool2d_backward",
        "_adaptive_avg_pool3d_backward",
        "_ctc_loss_backward",
        "_embedding_bag_dense_backward",
        "adaptive_max_pool2d_backward",
        "adaptive_max_pool3d_backward",
        "avg_pool3d_backward",
        "bincount",
        "cumsum",
        "fractional_max_pool2d_backward",
        "fractional_max_pool3d_backward",
        "grid_sampler_2d_backward",
        "grid_sampler_3d_backward",
        "histc",
        "kthvalue",
        "max_pool3d_with_indices_backward",
        "max_unpool2d",
        "max_unpool3d",
        "median",
        "nll_loss2d_forward",
        "put",
        "put_",
        "reflection_pad1d_backward",
        "reflection_pad2d_backward",
        "reflection_pad3d_backward",
        "replication_pad1d_backward",
        "replication_pad2d_backward",
        "replication_pad3d_backward",
        "upsample_bicubic2d_backward",
        "upsample_bilinear2d_backward",
        "upsample_linear1d_backward",
        "upsample_trilinear3d_backward",
    }
)
"""Operators that raise on CUDA under `torch.use_deterministic_algorithms(True)`.

Source: its documentation, PyTorch 2.13. Fused attention is not among them: its backward pass
has a deterministic form, which it takes unless `warn_only` is set.
"""


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Tensors on `meta` take the ways that are made for GPUs."""
    from mvl.models import deterministic_layers

    deterministic_layers.GPUS.add("meta")
    try:
        yield
    finally:
        deterministic_layers.GPUS.discard("meta")


@contextmanager
def deterministic_off() -> Iterator[None]:
    """Let PyTorch choose its operators as it would for anybody.

    Asked to be deterministic, which a run before this one may have done, PyTorch takes another way
    to upsample, and the operator that is looked for would go unseen.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def sketch(config: Config) -> Config:
    """The config with a language layer that is drawn at its listed sizes, so that no file of a
    model is read."""
    config = without_files(config, with_words=False)
    size = systems.measured_size(config)
    return replace(config, data=replace(config.data, img_size=size))


def step_operators(network: nn.Module, img_size: tuple[int, ...], classes: int) -> set[str]:
    """Names of the operators that a training step runs, both losses included, on `meta` as on a
    GPU."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from mvl.training.objective import build_loss

    names: set[str] = set()

    class Names(TorchDispatchMode):
        """Notes the name of every operator."""

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    image = torch.empty(2, 1, *img_size, device="meta")
    label = torch.empty(2, 1, *img_size, device="meta")
    with as_on_a_gpu(), deterministic_off(), Names():
        logits = network.to("meta").train()(image)
        for loss in ("dice_ce", "bce_dice"):
            build_loss(classes, loss)(logits, label).backward(retain_graph=True)
    return names


def nondeterministic_operators(system: str) -> list[str]:
    """Operators of a system's training step that have no deterministic form on a GPU; none: the
    system is strict."""
    import torch

    from mvl.models.build import build_system

    config = sketch(system_config(system))
    # Swin UNETR reads numbers out of tensors while it is built, which `meta` has none of.
    with torch.device("cpu" if config.model.architecture == "swinunetr" else "meta"):
        network = build_system(config, 1, 3)
    return sorted(step_operators(network, config.data.img_size, 3) & NONDETERMINISTIC)


def determinism_table() -> str:
    """A Markdown table says of each system `strict`, or the operators that prevent it."""
    rows = [
        [f"`{system}`", ", ".join(f"`{name}`" for name in operators) or "strict"]
        for system, operators in read_record().items()
    ]
    return markdown_table(["system", "on a GPU"], "ll", rows)


if __name__ == "__main__":
    files.write_json(
        RECORD, {name: nondeterministic_operators(name) for name in systems.measurable()}
    )
