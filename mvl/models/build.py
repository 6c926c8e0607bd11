"""Every system: image (B, C, *spatial) -> logits (B, K, *spatial), built from one config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mvl.core.config import Config, ConfigError, did_you_mean
from mvl.core.seeds import draw_seed


def _vit(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.vit import ViTBaseline

    return ViTBaseline(config.model, config.data.img_size, num_channels, num_classes, config.seed)


def _words(config: Config) -> str:
    """The task's words, where the block asks for them."""
    block = config.model.token_block
    if block.words or not block.text_guidance:
        return block.words
    from mvl.datasets.registry import find_task
    from mvl.datasets.task import UnknownTask
    from mvl.models.text_guidance import task_words

    try:
        return task_words(find_task(config.task))
    except UnknownTask as error:
        raise ConfigError(
            f"token_block.text_guidance: no words are known for {config.task}; set"
            " token_block.words"
        ) from error


def _v3(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.medvisionllama_v3 import MedVisionLlamaV3

    return MedVisionLlamaV3(
        config.model, config.data.img_size, num_channels, num_classes, config.seed, _words(config)
    )


def _v1(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.medvisionllama_v1 import MedVisionLlamaV1

    return MedVisionLlamaV1(
        config.model, config.data.img_size, num_channels, num_classes, config.seed, _words(config)
    )


def _cnn(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.cnn import build_cnn

    return build_cnn(config.model, config.data.img_size, num_channels, num_classes)


def _llm4seg(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.llm4seg import LLM4Seg

    return LLM4Seg(
        config.model, config.data.img_size, num_channels, num_classes, config.seed, _words(config)
    )


def _peer(config: Config, num_channels: int, num_classes: int) -> nn.Module:
    from mvl.models.comparators import build_peer

    return build_peer(config, num_channels, num_classes)


SYSTEMS: dict[str, Callable[[Config, int, int], nn.Module]] = {
    "vit_baseline": _vit,
    "medvisionllama_v1": _v1,
    "medvisionllama_v3": _v3,
    "cnn": _cnn,
    "llm4seg": _llm4seg,
    **dict.fromkeys(("unet", "unetpp", "unetr", "swinunetr", "dynunet"), _peer),
}
"Architecture name -> maker."


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
        return SYSTEMS[name](config, num_channels, num_classes)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of trainable, frozen and all parameters."""

    def count(trained):
        return sum(p.numel() for p in model.parameters() if p.requires_grad is trained)

    return {"trainable": count(True), "frozen": count(False), "total": count(True) + count(False)}


def count_parameters(config: Config, num_channels: int, num_classes: int) -> dict[str, int]:
    """`parameter_counts` of a config's network without its memory: only the language layer is read,
    the rest is built on `meta`.

    MONAI's SwinUNETR cannot be built there (it asks a tensor for its value) and is built in memory.
    """
    maker = SYSTEMS[config.model.architecture]
    with torch.device("cpu" if config.model.architecture == "swinunetr" else "meta"):
        return parameter_counts(maker(config, num_channels, num_classes))


def frozen_sha256(model: nn.Module) -> str:
    """Hex sha256 over names, shapes and bytes of every frozen parameter, as they are on the device."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def own_state(model: nn.Module) -> dict[str, Any]:
    """The state that a run keeps: everything but the frozen tensors of the language layer, which
    their source has."""
    kept = {name: p.requires_grad for name, p in model.named_parameters()}
    return {
        name: t
        for name, t in model.state_dict().items()
        if kept.get(name, True) or not name.startswith("block.")
    }
