"""Every system maps an image (B, C, *spatial) to logits (B, K, *spatial) and is built from one
config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mvl.core.config import Config, ConfigError, did_you_mean
from mvl.core.seeds import draw_seed
from mvl.datasets.registry import find_task
from mvl.datasets.task import UnknownTask
from mvl.models.cnn import build_cnn
from mvl.models.comparators import build_peer
from mvl.models.cpu_bf16 import replace_convolutions
from mvl.models.vit import ViTBaseline


def make_vit(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    """The ViT without a token block."""
    return ViTBaseline(config.model, config.data.img_size, num_channels, num_classes, config.seed)


def make_cnn(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    """A CNN without a token block."""
    return build_cnn(config.model, config.data.img_size, num_channels, num_classes)


def make_hybrid(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    """A network around a token block."""
    # Imported here, with transformers: that takes seconds, which the other networks do not need.
    from mvl.models.llm4seg import LLM4Seg
    from mvl.models.medvisionllama_v1 import MedVisionLlamaV1
    from mvl.models.medvisionllama_v3 import MedVisionLlamaV3

    networks: dict[str, type[LLM4Seg] | type[MedVisionLlamaV3]] = {
        "medvisionllama_v1": MedVisionLlamaV1,
        "medvisionllama_v3": MedVisionLlamaV3,
        "llm4seg": LLM4Seg,
    }
    return networks[config.model.architecture](
        config.model,
        config.data.img_size,
        num_channels,
        num_classes,
        config.seed,
        guiding_words(config),
    )


def guiding_words(config: Config) -> str:
    """The words that the block sees before the visual tokens: the config's, else the task's where
    text guidance is on."""
    block = config.model.token_block
    if block.words or not block.text_guidance:
        return block.words
    from mvl.models.text_guidance import task_words

    try:
        return task_words(find_task(config.task))
    except UnknownTask as error:
        raise ConfigError(
            f"token_block.text_guidance: no words are known for {config.task}; set"
            " token_block.words"
        ) from error


SYSTEMS: dict[str, Callable[[Config, int, int], nn.Module]] = {
    "vit_baseline": make_vit,
    "medvisionllama_v1": make_hybrid,
    "medvisionllama_v3": make_hybrid,
    "cnn": make_cnn,
    "llm4seg": make_hybrid,
    "unet": build_peer,
    "unetpp": build_peer,
    "unetr": build_peer,
    "swinunetr": build_peer,
    "dynunet": build_peer,
}
"""Architecture name -> maker (config, channels, classes). A maker draws from torch's generator and
builds on torch's current device."""


def build_system(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    """The config's network with weights that are a function of `config.seed`; parts that two
    systems share start alike.

    Raises:
        ConfigError: unknown architecture.
    """
    name = config.model.architecture
    if name not in SYSTEMS:
        raise ConfigError(
            f"unknown architecture {name!r}{did_you_mean(name, list(SYSTEMS))}; known:"
            f" {', '.join(SYSTEMS)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw_seed(config.seed, "weights"))
        return replace_convolutions(SYSTEMS[name](config, num_channels, num_classes))


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of trainable, frozen and all parameters."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return {"trainable": trainable, "frozen": total - trainable, "total": total}


def count_parameters(config: Config, num_channels: int, num_classes: int) -> dict[str, int]:
    """`parameter_counts` of a config's network without its memory: only the language layer is read,
    the rest is built on `meta`.

    MONAI's SwinUNETR cannot be built there (it asks a tensor for its value) and is built in memory.
    """
    maker = SYSTEMS[config.model.architecture]
    with torch.device("cpu" if config.model.architecture == "swinunetr" else "meta"):
        return parameter_counts(maker(config, num_channels, num_classes))


def frozen_sha256(model: nn.Module) -> str:
    """Hex sha256 over names, shapes and bytes of every frozen parameter, wherever it lies."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def own_state(model: nn.Module) -> dict[str, Any]:
    """The state that a run keeps: everything but the frozen tensors of the language layer, which
    their source has."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in frozen or not name.startswith("block.")
    }
