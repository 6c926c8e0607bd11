"""The work of a run: FLOPs, memory and parameters counted on a network without weights, and the
cases that it is done on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvl.bench.measure import counted_gflops, dice_bce
from mvl.core.block_config import LAYER_KINDS
from mvl.core.config import Config, DataConfig
from mvl.core.errors import MvlError
from mvl.datasets.registry import find_task
from mvl.datasets.splits import NUM_FOLDS, roles
from mvl.models.build import SYSTEMS, parameter_counts
from mvl.models.describe import without_files
from mvl.training.objective import num_classes


class PlanError(MvlError, RuntimeError):
    """A study cannot be planned; the message names the remedy."""


@dataclass(frozen=True)
class Work:
    """What one case costs a network: GFLOP trained and GFLOP seen, MB kept for the backward pass
    and held at most at once where there is none, parameters."""

    trained: float
    seen: float
    saved_mb: float
    live_mb: float
    trainable: int
    frozen: int


class FusedAttention(TorchFunctionMode):
    """`scaled_dot_product_attention` goes by the operator that a CPU takes, on any device.

    On the meta device PyTorch would write the scores of all tokens with all others out, which no
    kernel that is planned for does.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        taken = fused_attention if function is scaled_dot_product_attention else function
        return taken(*args, **(kwargs or {}))


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention whose scores are not kept; heads of key and value that are shared are repeated."""
    if enable_gqa:
        key, value = (
            x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3) for x in (key, value)
        )
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators made and that still are there; `most` is
    their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.note(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        """Count a storage once, and until it is let go."""
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.now += storage.nbytes()
            finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Count a storage no longer."""
        self.now -= self.known.pop(key, 0)


@cache
def count_work(config: Config, channels: int, classes: int) -> Work:
    """Count a training step and a forward pass of two cases on the meta device: nothing is
    computed, nothing is held.

    Raises:
        PlanError: the network cannot be run there.
    """
    saved: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Any) -> Any:
        saved[tensor.untyped_storage()._cdata] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    try:
        with torch.device("meta"), FusedAttention():
            make = SYSTEMS[config.model.architecture]
            network = make(without_files(config, with_words=False), channels, classes)
            network.to("meta").train()
            image = torch.empty(2, channels, *config.data.img_size)
            label = torch.empty(2, classes, *config.data.img_size)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                trained = counted_gflops(lambda: dice_bce(network(image), label).backward())
            with torch.no_grad(), LiveBytes() as live:
                seen = counted_gflops(lambda: network.eval()(image))
    except RuntimeError as error:  # e.g. a network that asks a tensor for its value
        raise PlanError(
            f"{config.model.architecture}: its FLOPs cannot be counted"
            f" ({str(error).splitlines()[0]})"
        ) from error
    # Weights are there anyway, so that what is kept of them counts once, not as kept for a step.
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    held = sum(size for key, (_, size) in saved.items() if key not in weights)
    counts = parameter_counts(network)
    per_case = (trained / 2, seen / 2, held / 2e6, live.most / 2e6)
    return Work(*per_case, counts["trainable"], counts["frozen"])


def cases(config: Config, data_dir: Path | None = None) -> dict[str, int]:
    """Numbers of training, validation and test cases, as `datasets.splits` deals the registry's
    number of cases to ten blocks."""
    number = find_task(config.task, data_dir).num_cases
    blocks = [len(range(k, number, NUM_FOLDS)) for k in range(NUM_FOLDS)]
    test, *val = roles(config.fold)
    seen = sum(blocks[k] for k in val)
    train = number - blocks[test] - seen
    return {"train": max(1, round(config.fraction * train)), "val": seen, "test": blocks[test]}


def visits(config: Config, data_dir: Path | None = None) -> tuple[int, int]:
    """Cases trained on and cases looked at, over the whole run."""
    n, train = cases(config, data_dir), config.train
    looks = math.ceil(train.train_epochs / train.val_interval)
    return n["train"] * train.train_epochs, n["val"] * looks + n["test"]


def work_of(config: Config, data_dir: Path | None = None) -> Work:
    """`count_work` of a run; runs that differ in fold, seed, fraction or epochs share it."""
    task = find_task(config.task, data_dir)
    classes = num_classes(config, task)
    block = config.model.token_block
    kind = "random" if block.kind in LAYER_KINDS else block.kind
    model = replace(config.model, token_block=replace(block, kind=kind, layer=-1))
    same = Config(system="", task="", data=DataConfig(img_size=config.data.img_size), model=model)
    return count_work(same, len(task.channels), classes)
