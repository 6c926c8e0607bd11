"""What a network is made of, read off the network itself: its parts in order, their shapes, their
parameters, and what goes around them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.models.adapters import Mapper
from mvl.models.cnn import UShape
from mvl.models.control_blocks import Nothing
from mvl.models.llm4seg import LLM4Seg
from mvl.models.medvisionllama_v1 import MedVisionLlamaV1
from mvl.models.medvisionllama_v3 import MedVisionLlamaV3
from mvl.models.token_blocks import LanguageLayer
from mvl.models.vit import ViTBaseline
from mvl.publish.network_shapes import stage_shapes

KINDS = {
    "pretrained": "pretrained",
    "random": "random, as before training",
    "random_matched": "random, pretrained mean and variance",
    "rounded": "pretrained, rounded to 4 bits",
    "shuffled": "pretrained values shuffled",
    "xavier": "Xavier-random, norms pretrained",
}
"What `token_block.kind` means, in words."

CONTROLS = {
    "BareNorm": ("GELU and LayerNorm", "without parameters"),
    "Nothing": ("Nothing", "tokens as they are"),
    "Zero": ("Zeros", "the residual alone"),
    "Noise": ("Noise", "drawn anew in every pass"),
    "TrainedAttention": ("Trained attention layer", "no mappers around it"),
    "TrainedTransformer": ("Trained transformer block", "no mappers around it"),
}
"Blocks without a language model's layer: name and a detail, by class."


class PartsError(MvlError, ValueError):
    """A network that cannot be drawn; the message says which and what can."""


@dataclass(frozen=True)
class Part:
    """One box."""

    key: str
    "Name within the plan; the stage of `network.stages` that it ends in, where there is one."
    title: str
    "What it is, with the paper's letter."
    detail: str
    "Its sizes, read off the modules."
    trained: int = 0
    "Trained parameters."
    frozen: int = 0
    "Frozen parameters."
    shape: tuple[int, ...] = ()
    "Shape of what leaves it, one case."


@dataclass(frozen=True)
class Plan:
    """Parts in the order of the forward pass, and the arrows that go around them."""

    parts: tuple[Part, ...]
    "From input to output."
    around: tuple[tuple[str, str, str], ...]
    "(kind, first part, last part): a residual around parts, or a skip from one into another."

    @property
    def keys(self) -> list[str]:
        """Names of the parts in order."""
        return [part.key for part in self.parts]


def plan(network: nn.Module, img_size: tuple[int, ...] = (), config: Config | None = None) -> Plan:
    """Parts, shapes and counts of a network. `img_size` is needed for a CNN; the config gives the
    block's weights a name.

    Raises:
        PartsError: a network of another kind, a CNN without `img_size`, or parameters that no part
            accounts for.
    """
    size = tuple(getattr(getattr(network, "vit", network), "img_size", img_size))
    if not isinstance(network, ViTBaseline | MedVisionLlamaV3 | LLM4Seg | UShape):
        raise PartsError(
            f"{type(network).__name__} has no drawing; ViTs, MedVisionLlama, CNNs and LLM4Seg have"
        )
    if not size:
        raise PartsError(
            f"{type(network).__name__} takes images of several sizes; say which, as img_size"
        )
    found, around = _sections(network, config)
    shapes = stage_shapes(network, (_channels(network), *size))
    parts = [
        Part(key, name, detail, *_count(modules), shapes.get(key, ()))
        for key, name, detail, modules in found
    ]
    counted, wanted = (
        sum(p.trained + p.frozen for p in parts),
        sum(p.numel() for p in network.parameters()),
    )
    if counted != wanted:
        raise PartsError(
            f"{type(network).__name__} has {wanted:,} parameters, the drawing accounts for"
            f" {counted:,}"
        )
    last = shapes["logits"]
    ends = (
        Part("input", "Input X", _times(shapes["input"]), shape=shapes["input"]),
        Part("output", "Output Y", _times(last), shape=last),
    )
    return Plan((ends[0], *_with_shapes(parts, shapes), ends[1]), tuple(around))


def _with_shapes(parts: Sequence[Part], shapes: dict[str, tuple[int, ...]]) -> list[Part]:
    """Parts that end in no named stage take the shape of the stage that they feed."""
    known = {
        "positions": "embedding",
        "patches": "embedding",
        "head": "logits",
        "cnn_encoder": "bottleneck",
        "cnn_decoder": "decoder1",
    }
    return [part if part.shape else replace(part, shape=shapes[known[part.key]]) for part in parts]


Section = tuple[str, str, str, Sequence[nn.Module | nn.Parameter]]
Around = list[tuple[str, str, str]]


def _sections(network: nn.Module, config: Config | None) -> tuple[list[Section], Around]:
    if isinstance(network, ViTBaseline):
        start, end = _vit_ends(network)
        return [*start, *end], []
    if isinstance(network, MedVisionLlamaV3):
        return _hybrid_sections(network, config)
    cnn = network.cnn if isinstance(network, LLM4Seg) else network
    assert isinstance(cnn, UShape)
    middle, around = _block_sections(network, config) if isinstance(network, LLM4Seg) else ([], [])
    head, tail = _cnn_ends(cnn)
    return [head, *middle, *tail], [*around, ("skip", "cnn_encoder", "cnn_decoder")]


def _vit_ends(
    vit: ViTBaseline, hybrid: Iterable[nn.Module] = ()
) -> tuple[list[Section], list[Section]]:
    """Sections up to the encoder, and from the decoder on."""
    patch, width, local = "×".join(map(str, vit.patch_size)), vit.embed.out_features, list(hybrid)

    def blocks(part: Any) -> str:
        if not len(part):
            return "no blocks"
        return f"{len(part)} blocks, width {width}, {part[0].num_heads} heads"

    name = "ViT encoder, hybrid attention" if local else "ViT encoder"
    start: list[Section] = [
        (
            "embedding",
            "Patch embedding + positions",
            f"patches of {patch} → {width}",
            [vit.embed, vit.positions],
        ),
        ("encoder", f"{name}  $V_E$", blocks(vit.encoder), [vit.encoder, *local]),
    ]
    end: list[Section] = [("decoder", "ViT decoder  $V_D$", blocks(vit.decoder), [vit.decoder])]
    if vit.extra_mlp is not None:
        widths = [layer.out_features for layer in vit.extra_mlp if isinstance(layer, nn.Linear)]
        end.append(
            (
                "extra_mlp",
                "MLP",
                f"{len(widths)} layers, up to width {max(widths)}",
                [vit.extra_mlp],
            )
        )
    end.append(
        ("head", "Head", f"linear {width} → {vit.head.out_features}, tokens to voxels", [vit.head])
    )
    return start, end


def _hybrid_sections(
    network: MedVisionLlamaV3, config: Config | None
) -> tuple[list[Section], Around]:
    """MedVisionLlama, block at the bottleneck or after the embedding, with version 1's parts where
    they are."""
    hybrid, fusion = (
        (network.hybrid, network.fusion) if isinstance(network, MedVisionLlamaV1) else (None, None)
    )
    (embedding, encoder), end = _vit_ends(network.vit, hybrid or ())
    middle, around = _block_sections(network, config)
    if fusion is not None:
        scales = len(fusion.project)
        end.insert(
            0, ("fusion", "Multi-scale fusion", f"{scales} depths, {scales} scales", [fusion])
        )
        around += [("skip", "encoder", "fusion")]
    if network.block_position == "bottleneck":
        return [embedding, encoder, *middle, *end], around
    patches: Section = ("patches", "Patch embedding", embedding[2], [network.vit.embed])
    return [
        patches,
        *middle,
        ("positions", "+ positions", "learned", [network.vit.positions]),
        encoder,
        *end,
    ], around


def _block_sections(
    network: MedVisionLlamaV3 | LLM4Seg, config: Config | None
) -> tuple[list[Section], Around]:
    """Mapper, block, mapper; and the residual around the block where it is on."""
    flat, block = isinstance(network, LLM4Seg), network.block
    titles = (
        ("Linear map", "Linear map")
        if flat
        else ("Dimension mapper 1  $V_{D1}$", "Dimension mapper 2  $V_{D2}$")
    )
    words = ("flatten, linear", "linear, reshape") if flat else ("linear", "linear")
    found: list[Section] = [
        ("mapper1", titles[0], _mapper_words(network.mapper1, words[0]), [network.mapper1]),
        ("block", *_block_words(block, config), [block]),
        ("mapper2", titles[1], _mapper_words(network.mapper2, words[1]), [network.mapper2]),
    ]
    if isinstance(network.mapper1, nn.Identity):
        return found[1:2], []
    return found, [("residual", "block", "block")] * (
        bool(block.residual) and not isinstance(block, Nothing)
    )


def _mapper_words(mapper: nn.Module, words: str) -> str:
    linear: Any = mapper.linear if isinstance(mapper, Mapper) else mapper
    sizes = f"{linear.in_features} → {linear.out_features}"
    rank = _lora_rank(mapper)
    return f"frozen random linear {sizes}, LoRA rank {rank}" if rank else f"{words} {sizes}"


def _lora_rank(module: nn.Module) -> int:
    """Rank of the adapters in a module, 0 without any."""
    return max(
        (int(tensor.shape[0]) for name, tensor in module.named_parameters() if "lora_A" in name),
        default=0,
    )


def _block_words(block: nn.Module, config: Config | None) -> tuple[str, str]:
    """Title and detail of what sits between the mappers."""
    if not isinstance(block, LanguageLayer):
        name, detail = CONTROLS[type(block).__name__]
        return f"{name}  (in $V_{{LLM}}$'s place)", f"width {block.width}, {detail}"
    state = "Trained" if all(p.requires_grad for p in block.layer.parameters()) else "Frozen"
    own = config.model.token_block if config else None
    where = (
        f"{own.source}, layer {own.layer}, {KINDS[own.kind]}" if own else type(block.layer).__name__
    )
    facts = [
        f"width {block.width}",
        "causal mask" if block.causal_mask else "no mask",
        "positions" if block.rotary is not None or block.released_positions else "no positions",
    ]
    facts += [f"LoRA rank {_lora_rank(block)}"] * bool(_lora_rank(block))
    facts += [f"{len(block.words)} words before the tokens"] if block.words is not None else []
    return f"{state} LLM block  $V_{{LLM}}$", f"{where}\n{', '.join(facts)}"


def _cnn_ends(cnn: UShape) -> tuple[Section, list[Section]]:
    """The encoder; the decoder and the head."""
    widths = [_widths(stage) for stage in cnn.encoder]
    start: Section = (
        "cnn_encoder",
        "CNN encoder",
        f"{len(widths)} stages: {', '.join(map(str, widths))} channels",
        [cnn.encoder],
    )
    return start, [
        (
            "cnn_decoder",
            "CNN decoder",
            f"{len(cnn.ups)} stages, skips joined in",
            [cnn.ups, cnn.fusions],
        ),
        ("head", "Head", "1×1 convolution", [cnn.head]),
    ]


def _widths(stage: nn.Module) -> int:
    return [m.out_channels for m in stage.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]


def _channels(network: nn.Module) -> int:
    """Channels of the image that a network takes."""
    vit = getattr(network, "vit", network)
    if isinstance(vit, ViTBaseline):
        return vit.embed.in_features // math.prod(vit.patch_size)
    return next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


def _count(modules: Iterable[nn.Module | nn.Parameter]) -> tuple[int, int]:
    """Trained and frozen parameters, each once."""
    lists = ([m] if isinstance(m, nn.Parameter) else list(m.parameters()) for m in modules)
    owned = {id(p): p for p in itertools.chain.from_iterable(lists)}
    trained = sum(p.numel() for p in owned.values() if p.requires_grad)
    return trained, sum(p.numel() for p in owned.values()) - trained


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
