"""The configuration of the block between a hybrid's two mappers: its kinds, and the switches of a
language model's layer."""

from __future__ import annotations

from dataclasses import dataclass

LAYER_KINDS = ("pretrained", "random", "random_matched", "rounded", "shuffled", "xavier")
"Kinds that are one layer of a language model, whatever its values."
NATIVE_KINDS = ("attention", "transformer")
"Kinds that are trained at the network's own width; they have no mappers around them."
BARE_KINDS = ("norm", "mlp", "noise", "zero", "identity")
"""Kinds that have the language model's width and no parameter; `mlp` is the first study's name of
`norm`."""
KINDS = (*LAYER_KINDS, *NATIVE_KINDS, *BARE_KINDS)
"Every word that `token_block.kind` may be."


@dataclass(frozen=True)
class TokenBlockConfig:
    """What sits between the two mappers; controls are substitutions here."""

    kind: str = "pretrained"
    """pretrained: layer of source; random: the same layer before its training; random_matched:
    normal with each pretrained tensor's mean and variance; rounded: pretrained matrices rounded to
    4 bits and back; shuffled: pretrained values permuted within each tensor; xavier: linear maps
    Xavier, norms pretrained, as LLM4Seg's --need_init;
    attention: one trained attention layer and transformer: one trained ViT block, both at the
    network's own width, without mappers; norm (mlp in old records): GELU and a norm, no weights;
    noise: random tokens of the pretrained block's size, drawn anew in every pass; zero: the
    residual alone; identity: nothing."""
    source: str = "smollm2-135m"
    """A named source (see mvl/weights/wheels.py), owner/name@commit on the hub, or the path of a
    local safetensors checkpoint."""
    layer: int = -1
    """Layer index in the source; negative counts from the end (-1 is the last, as in both papers'
    parents)."""
    trainable: bool = False
    "Train the layer too (LLM4Seg's T variants); both papers' claim is about a frozen one."
    residual: bool = True
    """Add the block's input to its output, as released (on top of the residuals inside the layer).
    attention and transformer have their one residual either way."""
    causal_mask: bool = False
    "Each token sees only earlier tokens, as in language modelling; the paper removes the mask."
    rotary: bool = False
    "Rotary position embedding by token index; the paper removes it."
    released_positions: bool = False
    """LLM4Seg's home-made position table in place of rotary positions, as released (sine and cosine
    swapped)."""
    final_norm: str = "unit"
    """unit: the model's final RMSNorm with gain 1, as released; loaded: with its pretrained gain;
    none."""
    lora_targets: tuple[str, ...] = ()
    """Projections of the block that get LoRA adapters (e.g. q_proj, v_proj); empty: the block has
    none, as released."""
    lora_r: int = 4
    "Rank of the adapters inside the block."
    text_guidance: bool = False
    """Put the task's words (structure and modality), looked up in the model's own embedding, before
    the visual tokens; dropped after the block."""
    words: str = ""
    """Words for text guidance in place of the task's, e.g. wrong ones as a control; empty: the
    task's."""
