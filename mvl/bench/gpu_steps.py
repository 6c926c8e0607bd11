"""Item 5 of `make gpu`: what a training step costs on the card in each precision, eager, as a graph
and compiled."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from mvl.bench.gpu_parts import PRECISIONS, Facts, matmul_gflops, peak_mb, refused, seconds_of
from mvl.bench.work import work_of
from mvl.core.config import Config, load_config
from mvl.datasets.registry import find_task
from mvl.models.build import build_system
from mvl.training.objective import build_loss, build_optimizer, num_classes
from mvl.training.precision import autocast, set_flags
from mvl.weights.listed_sizes import described

MODES = ("eager", "graph", "compiled")
WORKLOADS = (
    "hippocampus vit_baseline",
    "hippocampus medvisionllama_v3",
    "busi256 cmunext",
    "busi256 llm4seg",
    "paper vit_baseline",
    "paper medvisionllama_v3",
)
"""Study and system of the training steps; busi256 is `busi` at the paper's 256x256, paper's hybrid
has a random layer of Llama-3.1-8B's shape."""


def step_parts(released: str | None) -> list[str]:
    """Workload, precision and mode of each step of item 5: all that is eager first, what must be
    compiled last."""
    named = [*WORKLOADS, *(["released vit_baseline"] if released else [])]
    return [
        ", ".join((workload, precision, mode))
        for mode, workload, precision in itertools.product(MODES, named, PRECISIONS)
    ]


def workload_config(workload: str) -> Config:
    """The config of a named workload."""
    study, system = workload.split()
    if study == "busi256":
        config = load_config("busi", "BUSI", system)
        return replace(config, data=replace(config.data, img_size=(256, 256)))
    if study == "hippocampus":
        return load_config("hippocampus", "Task04_Hippocampus", system)
    config = load_config("paper", "Task02_Heart", system)
    source = str(described("llama-3.1-8b"))
    block = replace(config.model.token_block, kind="random", source=source, layer=-1)
    return replace(config, model=replace(config.model, token_block=block))


def step_cost(device: str, released: str | None, shrink: int, part: str) -> Facts:
    """Item 5: one training step: seconds, GFLOP as the planner counts them, share of the card's own
    matrix product, memory."""
    workload, precision, mode = part.split(", ")
    config = workload_config(workload.replace("released", "paper"))
    img_size = tuple(size // shrink for size in config.data.img_size)
    config = replace(config, data=replace(config.data, img_size=img_size))
    if refusal := refused(precision, device):
        return {"state": "refused", "error": refusal}
    set_flags(precision)
    clone = released if workload.startswith("released") else None
    step = training_step(config, device, precision, mode, clone)
    seconds = seconds_of(step, device)
    held = peak_mb(step, device)
    gflop = work_of(config).trained * config.train.batch_size
    peak = matmul_gflops(precision, device)
    return {
        "workload": workload,
        "precision": precision,
        "mode": mode,
        "seconds": seconds,
        "gflop": gflop,
        "share": gflop / seconds / peak,
        "mb": held,
    }


def training_step(
    config: Config, device: str, precision: str, mode: str, released: str | None
) -> Callable[[], object]:
    """Forward, loss, backward, clipping and optimiser on one random batch on the device."""
    task = find_task(config.task)
    channels, classes = len(task.channels), num_classes(config, task)
    if released:
        network = released_vit(released, config)
    else:
        network = build_system(config, channels, classes)
    network = network.to(device).train()
    loss = build_loss(classes, config.train.loss)
    optimizer = build_optimizer(config, network)
    model = torch.compile(network) if mode == "compiled" else network
    image = torch.randn(config.train.batch_size, channels, *config.data.img_size, device=device)
    label = torch.empty_like(image[:, :1]).bernoulli_(0.3)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, torch.device(device)):
            logits = model(image)
        loss((logits[0] if released else logits).float(), label).backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.train.grad_clip or float("inf"))
        optimizer.step()

    return captured(step, optimizer) if mode == "graph" else step


def captured(step: Callable[[], object], optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The step as one CUDA graph, recorded on a side stream after three warm-ups."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            # The count of Adam's steps must lie on the device, or the graph would read the host.
            group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def released_vit(clone: str, config: Config) -> nn.Module:
    """The released ViT-Baseline at the same sizes, from the reader's own clone of the paper's
    repository."""
    sys.path.insert(0, clone)
    from src.models.vit_baseline import ViT_Baseline

    return ViT_Baseline(
        config.data.img_size, config.model.patch_size, 1, 1, 64, 16, 4, config.model.dropout_rate
    )
