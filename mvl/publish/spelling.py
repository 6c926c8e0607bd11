"""How the book writes the names of systems and models, and what is written otherwise."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache

from mvl.core.config import CONFIG_DIR, ROOT, named, system_names

NAMES = (
    "MedVisionLlama",
    "LLM4Seg",
    "CMUNeXt",
    "SmolLM2",
    "SmolLM2-135M",
    "SmolLM2-135M-Instruct",
    "MiniLM",
    "U-Net",
    "UNet++",
    "UNETR",
    "Swin UNETR",
    "DynUNet",
    "nnU-Net",
    "ViT-Baseline",
    "ViT-Depth",
    "ViT-MLP",
    "LoRA",
    "TransUNet",
    "Swin-UNet",
    "MissFormer",
    "LLaMA-1",
    "Llama-3.1-8B",
    "Llama-3.2-1B",
    "DeepSeek-R1-Distill-Qwen-1.5B",
    "BUSI",
    "MONAI",
    "SwinUNETR",
    "V-Net",
    "LM4VisualEncoding",
)
"""Every name as it is written; whatever differs from one of them in case, spaces, hyphens or
underscores alone is misspelt."""


@cache
def spelling(name: str) -> re.Pattern[str]:
    """A pattern of the name in any case, with any or no space, hyphen or underscore between its
    parts."""
    parts = re.findall(
        r"[A-Z]+(?![a-z])\d*|[A-Z][a-z]*\d*|\d+(?:\.\d+)?[A-Za-z]*|[a-z]+\d*|\++", name
    )
    return re.compile(
        r"(?<![\w./-])" + r"[\s_-]?".join(map(re.escape, parts)) + r"(?![\w+]|-\w)", re.IGNORECASE
    )


@cache
def identifiers() -> frozenset[str]:
    """What systems, sources of layers, and blocks of studies are called in the project's files."""
    plans = [named("studies", path.stem) for path in (CONFIG_DIR / "studies").glob("*.yaml")]
    blocks = {str(block["name"]) for plan in plans for block in plan.get("grid", ())}
    return frozenset(
        {*system_names(), *tomllib.loads((ROOT / "data" / "sources.toml").read_text()), *blocks}
    )


def misspelt(words: Iterable[str]) -> Iterator[str]:
    """Names of systems and models that are written neither as in `NAMES` nor as the project's files
    call them."""
    known = {*NAMES, *identifiers()}
    for text in words:
        for name in NAMES:
            yield from (
                f"{found} should be {name}"
                for found in (m[0] for m in spelling(name).finditer(text))
                if found not in known
            )
