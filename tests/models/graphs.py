"""Compiles one system of each kind as a single graph: `python -m tests.models.graphs FOLDER`, with
the folder of a small Llama."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from mvl.core.config import Config
from mvl.models.build import build_system
from mvl.models.describe import system_config
from tests.models.test_contract import small

SHALLOW = {"channels": (4, 4), "depths": (1, 1), "kernel_sizes": (3, 3)}
COMPILED = (
    "llm4seg_released",
    "llm4seg_unet",
    "vit_mlp",
    "medvisionllama_v1",
    "medvisionllama_v3",
    "medvisionllama_v3_lora_block",
    "medvisionllama_v3_mask_rotary",
    "unet",
    "dynunet",
)
"One system of each kind of network or block, compiled with its backward pass."
TRACED = ("unetpp", "unetr", "swinunetr")
"Many layers of one kind: traced for graph breaks, their backward pass is not."


def small_system(name: str, llama: Path) -> Config:
    """A system at its own number of axes and a size that takes milliseconds; words are looked up in
    no tokenizer."""
    config = small(name, len(system_config(name).data.img_size), llama)
    block = replace(config.model.token_block, text_guidance=False)
    return replace(config, model=replace(config.model, token_block=block))


def compile_system(name: str, backend: str, llama: Path) -> None:
    """One system through torch.compile; raises where the graph breaks or the result is another."""
    config = small_system(name, llama)
    if config.model.architecture in ("cnn", "llm4seg"):
        config = replace(config, model=replace(config.model, **SHALLOW))
    network = build_system(
        replace(config, model=replace(config.model, dropout_rate=0.0)), 2, 3
    ).train()
    image = torch.randn(
        1 if name == "swinunetr" else 2,
        2,
        *config.data.img_size,
        generator=torch.Generator().manual_seed(0),
    )
    torch._dynamo.reset()
    compiled = torch.compile(network, backend=backend, fullgraph=True)(image)
    if backend == "aot_eager":
        compiled.square().mean().backward()
        first = next(p for p in network.parameters() if p.requires_grad)
        assert first.grad is not None and first.grad.any(), name
    assert torch.allclose(compiled, network(image), rtol=0, atol=1e-5), name


if __name__ == "__main__":
    for system in (*COMPILED, *TRACED):
        compile_system(system, "aot_eager" if system in COMPILED else "eager", Path(sys.argv[1]))
        print(system, flush=True)
