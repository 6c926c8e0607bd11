"""What a run records of the machine and the software that it ran on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from mvl.core.config import ROOT
from mvl.core.files import now, sha256_bytes

PACKAGES = (
    "torch",
    "numpy",
    "monai",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "nibabel",
    "scipy",
    "pandas",
)


def environment() -> dict[str, Any]:
    """Provenance of a run: code, versions, processor. Holds no host name, user name or path."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "mvl": _git(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform_facts(),
        "started": now(),
    }


def platform_facts() -> dict[str, Any]:
    """What bitwise repetition depends on beside the code: OS, processor and its vector units, torch
    build, threads."""
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    # GIT_DIR and its like would answer for whatever repository a calling hook works on.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # A copy without git may lie inside another project's repository, whose commit is not ours.
        if not os.path.samefile(ask("rev-parse", "--show-toplevel"), ROOT):
            return _bundled()
        return {
            "commit": ask("rev-parse", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--", "mvl")),
        }
    except (OSError, subprocess.CalledProcessError):
        return _bundled()


def _bundled() -> dict[str, Any]:
    """The commit that a bundle without git was made from (see gpu_bundle.py), else None."""
    try:
        return dict(json.loads((ROOT / "commit.json").read_text()))
    except (OSError, ValueError):
        return {"commit": None, "dirty": None}


@cache
def cpu_fields() -> dict[str, str]:
    """Return what Linux says of the first processor, by field; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _processor() -> str:
    """Model name and a hash of the feature flags (Linux), else what platform says."""
    found = cpu_fields()
    if not found:
        return platform.processor()
    flags = sha256_bytes(found.get("flags", "").encode())[:12]
    return f"{found.get('model name') or platform.processor()} flags-{flags}"


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed tensors' memory for the next step: saves the page faults, 8 % of a
    hybrid step on one CPU core."""
    import ctypes

    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(option, 2**30)
