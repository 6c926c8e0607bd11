"""What a run began with against what it would go on with: packages, processor, code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mvl.core import files, machine, run_folder
from mvl.core.command_lines import command_of
from mvl.training import checkpoints, devices

COMPARED = ("python", "packages", "platform", "gpu")
"Parts of `environment.json` that bitwise repetition depends on."


def environment(folder: Path, allow: bool = False) -> dict[str, Any]:
    """Provenance of a run that starts or goes on now.

    A run that goes on under another commit keeps both in `commits`; one that was allowed to go on
    elsewhere keeps what changed in `drift`, and is not comparable bit by bit.

    Raises:
        RunError: a checkpoint is there that other packages or another processor made, and that was
            not allowed; names what differs.
    """
    now, begun = machine.environment(), before(folder)
    if gpu := devices.gpu_facts():
        now["gpu"] = gpu
    changed = [
        line for part in COMPARED for line in differences(begun.get(part), now.get(part), part)
    ]
    if changed and not allow:
        raise files.RunError(
            f"{folder / 'environment.json'}: the run was begun elsewhere: {'; '.join(changed)}. Go"
            f" on there, or with `{command_of(folder, '--allow-drift')}` (the run is then marked),"
            " or delete the folder to start anew"
        )
    kept = {"drift": [*begun.get("drift", []), *changed], "commits": begun.get("commits", [])}
    if begun and begun.get("mvl") != now["mvl"]:
        kept["commits"] = [*kept["commits"], begun.get("mvl")]
    return now | {key: value for key, value in kept.items() if value}


def before(folder: Path) -> dict[str, Any]:
    """`environment.json` of the start that made the folder's checkpoints; empty where there are
    none."""
    if not checkpoints.found(folder):
        return {}
    try:
        return dict(json.loads((folder / "environment.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def differences(old: Any, new: Any, name: str) -> list[str]:
    """`name.key: old -> new` of what both know."""
    if isinstance(old, dict) and isinstance(new, dict):
        return run_folder.differences(
            {k: v for k, v in old.items() if k in new},
            {k: v for k, v in new.items() if k in old},
            f"{name}.",
        )
    return [] if old is None or new is None or old == new else [f"{name}: {old!r} -> {new!r}"]
