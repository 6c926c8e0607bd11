"""What one child process of `make gpu` measures of the card itself: rates, attention, agreement
with the CPU, training steps.

`python -m mvl.bench.gpu_probes ITEM SETTINGS` prints a line for each part: first that it begins,
then what was found.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mvl.bench.work import work_of
from mvl.core.config import Config, load_config
from mvl.core.files import RunError
from mvl.datasets.registry import find_task
from mvl.models.build import build_system
from mvl.study import gpu_slots
from mvl.study.grid import study_runs
from mvl.study.inline import GPU_LOST
from mvl.training.devices import driver
from mvl.training.objective import build_loss, build_optimizer, num_classes
from mvl.training.precision import SIXTEEN_BITS, autocast, check_precision, set_flags
from mvl.weights.families import SourceError
from mvl.weights.listed_sizes import described

MARK = "@mvl "
"Before each line that the parent reads: libraries print lines of their own."
PRECISIONS = ("fp32", "tf32", "bf16")
MODES = ("eager", "graph", "compiled")
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of logits between CPU and GPU, as a share of the largest logit; bf16 keeps 8
bits of a number."""
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
HEADS = {"16": (4, 4, 16), "grouped 64": (9, 3, 64), "grouped 128": (32, 8, 128)}
"""Attention: heads, heads of keys and values, width of a head, as in the ViT, SmolLM2-135M and
Llama-3.1-8B."""
MATRIX = {"cuda": 8192, "cpu": 256}
"Rows of the matrices whose product is a device's peak."
BACKENDS = ("flash", "efficient", "cudnn", "math")
Facts = dict[str, Any]


def tell(value: Facts) -> None:
    """Print one line for the parent."""
    print(MARK + json.dumps(value), flush=True)


def each_part(parts: list[str], measure: Callable[[str], Facts]) -> None:
    """Measure part after part; one that fails is told as failed, and ends the process when it took
    the GPU with it."""
    for part in parts:
        tell({"begin": part})
        try:
            facts = measure(part)
        except SourceError as error:
            tell(
                {
                    "part": part,
                    "state": "skipped: its weights are not here",
                    "facts": {"error": str(error)[:300]},
                }
            )
        except Exception as error:
            words = (str(error).strip() or type(error).__name__).splitlines()[0]
            tell(
                {
                    "part": part,
                    "state": "failed",
                    "facts": {"error": f"{type(error).__name__}: {words}"[:300]},
                }
            )
            if gpu_slots.gpu_is_lost():
                sys.exit(GPU_LOST)
        else:
            tell({"part": part, "state": facts.pop("state", "done"), "facts": facts})


def wait(device: str) -> None:
    """Until the device has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], object], device: str, repeats: int = 10) -> float:
    """The median duration of `action`, seconds, after three warm-ups."""
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        wait(device)
        begin = time.perf_counter()
        action()
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matmul_gflops(precision: str, device: str) -> float:
    """GFLOP/s of a square matrix product."""
    set_flags(precision)
    size = MATRIX[device]
    a, b = (
        torch.randn(size, size, device=device, dtype=SIXTEEN_BITS.get(precision, torch.float32))
        for _ in range(2)
    )
    return 2 * size**3 / seconds_of(lambda: a @ b, device) / 1e9


def card_facts(device: str, part: str) -> Facts:
    """Item 1: the card, its driver and libraries, copies in GB/s, matrix products in TFLOP/s."""
    found = {
        f"matmul_{kind}_tflops": matmul_gflops(kind, device) / 1e3 for kind in (*PRECISIONS, "fp16")
    }
    size = MATRIX[device] ** 2
    host = torch.empty(size, pin_memory=device == "cuda")
    there = torch.empty(size, device=device)
    giga = host.numel() * 4 / 1e9
    copies = {
        "to_device_gb_s": giga / seconds_of(lambda: there.copy_(host, non_blocking=True), device),
        "from_device_gb_s": giga / seconds_of(lambda: host.copy_(there, non_blocking=True), device),
        "on_device_gb_s": 2 * giga / seconds_of(lambda: there.clone(), device),
    }
    about: Facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "driver": driver(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
        }
    return about | copies | found


def attention_parts() -> list[str]:
    """Heads, precision and backend of each measurement of item 2."""
    return [", ".join(words) for words in itertools.product(HEADS, ("fp32", "bf16"), BACKENDS)]


def attention(device: str, tokens: int, part: str) -> Facts:
    """Item 2: forward and backward of one backend, grouped heads with repeated keys and values
    where it takes them only so."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, precision, name = part.split(", ")
    backend = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }[name]
    number, shared, width = HEADS[heads]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    query, key, value = (
        torch.randn(4, n, tokens, width, device=device, dtype=kind, requires_grad=True)
        for n in (number, shared, shared)
    )

    def step(grouped: bool) -> None:
        k, v = (
            (key, value)
            if grouped
            else (x.repeat_interleave(number // shared, dim=1) for x in (key, value))
        )
        with sdpa_kernel([backend]):
            torch.nn.functional.scaled_dot_product_attention(
                query, k, v, enable_gqa=grouped
            ).sum().backward()

    refused = ""
    for grouped in (True, False) if number > shared else (False,):
        try:
            return {
                "ms": 1e3 * seconds_of(partial(step, grouped), device),
                "mb": peak_mb(partial(step, grouped), device),
                "keys_repeated": number > shared and not grouped,
            }
        except RuntimeError as error:
            refused = str(error).splitlines()[0]
    return {"state": "refused", "error": refused}


def peak_mb(action: Callable[[], object], device: str) -> float:
    """The most memory that `action` holds on the card at once, MB."""
    if device != "cuda":
        action()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6


def smoke_configs() -> dict[str, Config]:
    """Every system of the study `smoke` by name."""
    return {config.system: config for config in study_runs("smoke")}


def agreement(device: str, system: str) -> Facts:
    """Item 4: logits and gradients of one batch, CPU against GPU, fp32 and bf16 against the CPU's
    fp32."""
    config = smoke_configs()[system]
    task = find_task(config.task)
    network = build_system(config, len(task.channels), num_classes(config, task)).eval()
    torch.manual_seed(0)
    image = torch.randn(2, len(task.channels), *config.data.img_size)
    set_flags("fp32")
    wanted = logits_and_gradients(network, image, "fp32", "cpu")
    network.to(device)
    facts: Facts = {}
    for precision, tolerance in TOLERANCE.items():
        if refused(precision, device):
            continue
        found = logits_and_gradients(network, image.to(device), precision, device)
        apart = [difference(a, b) for a, b in zip(wanted, found, strict=True)]
        facts |= {
            f"{precision}_logits": apart[0],
            f"{precision}_gradients": apart[1],
            f"{precision}_within": apart[0] <= tolerance,
        }
    return facts | {
        "state": "done" if facts["fp32_within"] and facts.get("bf16_within", True) else "failed"
    }


def logits_and_gradients(
    network: nn.Module, image: Tensor, precision: str, device: str
) -> tuple[Tensor, Tensor]:
    """The logits of a batch, and every gradient of their mean square in one vector, on the CPU in
    fp32."""
    network.zero_grad(set_to_none=True)
    with autocast(precision, torch.device(device)):
        logits = network(image)
    logits.float().square().mean().backward()
    gradients = [
        p.grad.detach().float().cpu().flatten() for p in network.parameters() if p.grad is not None
    ]
    return logits.detach().float().cpu(), torch.cat(gradients)


def difference(wanted: Tensor, found: Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite where a value is not
    finite."""
    if not torch.isfinite(found).all():
        return float("inf")
    return float((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-30))


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
    block = replace(
        config.model.token_block, kind="random", source=str(described("llama-3.1-8b")), layer=-1
    )
    return replace(config, model=replace(config.model, token_block=block))


def refused(precision: str, device: str) -> str:
    """Why a GPU does not compute in a precision, such as a T4 in bf16; empty where it does, and on
    a CPU, where only tests look."""
    if device == "cpu":
        return ""
    try:
        check_precision(precision, torch.device(device))
    except RunError as error:
        return str(error)
    return ""


def step_cost(device: str, released: str | None, shrink: int, part: str) -> Facts:
    """Item 5: one training step: seconds, GFLOP as the planner counts them, share of the card's own
    matrix product, memory."""
    workload, precision, mode = part.split(", ")
    config = workload_config(workload.replace("released", "paper"))
    config = replace(
        config,
        data=replace(config.data, img_size=tuple(size // shrink for size in config.data.img_size)),
    )
    if refusal := refused(precision, device):
        return {"state": "refused", "error": refusal}
    set_flags(precision)
    step = training_step(
        config, device, precision, mode, released if workload.startswith("released") else None
    )
    seconds, held = seconds_of(step, device), peak_mb(step, device)
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
    """Forward, loss, backward, clipping and optimiser on one random batch that lies on the device."""
    task = find_task(config.task)
    channels, classes = len(task.channels), num_classes(config, task)
    network = (
        (released_vit(released, config) if released else build_system(config, channels, classes))
        .to(device)
        .train()
    )
    loss, optimizer = build_loss(classes, config.train.loss), build_optimizer(config, network)
    model = torch.compile(network) if mode == "compiled" else network
    image = torch.randn(config.train.batch_size, channels, *config.data.img_size, device=device)
    label = torch.empty(
        config.train.batch_size, 1, *config.data.img_size, device=device
    ).bernoulli_(0.3)

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
            # the count of Adam's steps must lie on the device, or the graph would read the host
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


def main(item: str, words: str) -> None:
    """Measure the parts of one item that the parent asks for."""
    asked = json.loads(words)
    device, small = asked["device"], asked["small"]
    torch.manual_seed(0)
    measures: dict[str, Callable[[str], Facts]] = {
        "facts": partial(card_facts, device),
        "attention": partial(attention, device, 64 if small else 4096),
        "agree": partial(agreement, device),
        "steps": partial(step_cost, device, asked["released"], 8 if small else 1),
    }
    each_part(asked["parts"], measures[item])


if __name__ == "__main__":
    main(*sys.argv[1:3])
