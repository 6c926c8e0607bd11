"""What one child process of `make gpu` measures of the card itself: rates, attention, agreement
with the CPU, and by `gpu_steps` training steps.

`python -m mvl.bench.gpu_probes ITEM SETTINGS` prints a line for each part: first that it begins,
then what was found.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mvl.bench.gpu_parts import (
    MATRIX,
    PRECISIONS,
    Facts,
    each_part,
    matmul_gflops,
    peak_mb,
    refused,
    seconds_of,
    smoke_configs,
)
from mvl.bench.gpu_steps import step_cost
from mvl.datasets.registry import find_task
from mvl.models.build import build_system
from mvl.training.devices import driver
from mvl.training.objective import num_classes
from mvl.training.precision import autocast, set_flags

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of logits between CPU and GPU, as a share of the largest logit; bf16 keeps 8
bits of a number."""
HEADS = {"16": (4, 4, 16), "grouped 64": (9, 3, 64), "grouped 128": (32, 8, 128)}
"""Attention: heads, heads of keys and values, width of a head, as in the ViT, SmolLM2-135M and
Llama-3.1-8B."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


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
    heads, precision, name = part.split(", ")
    number, shared, width = HEADS[heads]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    query, key, value = (
        torch.randn(4, n, tokens, width, device=device, dtype=kind, requires_grad=True)
        for n in (number, shared, shared)
    )

    def step(grouped: bool) -> None:
        k, v = key, value
        if not grouped:
            k, v = (x.repeat_interleave(number // shared, dim=1) for x in (key, value))
        with sdpa_kernel([BACKENDS[name]]):
            out = scaled_dot_product_attention(query, k, v, enable_gqa=grouped)
            out.sum().backward()

    refusal = ""
    for grouped in (True, False) if number > shared else (False,):
        try:
            return {
                "ms": 1e3 * seconds_of(partial(step, grouped), device),
                "mb": peak_mb(partial(step, grouped), device),
                "keys_repeated": number > shared and not grouped,
            }
        except RuntimeError as error:
            refusal = str(error).splitlines()[0]
    return {"state": "refused", "error": refusal}


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
