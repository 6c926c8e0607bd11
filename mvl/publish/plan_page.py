"""The plan that the book shows: recorded once for three devices, because counting every system
takes longer than building a page."""

from __future__ import annotations

import json
from pathlib import Path

from mvl.bench import plan
from mvl.core import files
from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table

RECORD, SHOWN = ROOT / "data" / "plan.json", ("h100", "8xh100", "t4")
"Written by `mvl plan --record`, and the devices in it."
HERE = ("disk_free_bytes", "disk_fits")
"What a plan says of the machine that it was made on: no part of the record."


def record(
    study: str, epochs: int | None = None, every_system: bool = False, path: Path = RECORD
) -> None:
    """Write the plan on each of the shown devices, as it is where no data are yet; what this
    machine's disk holds is no part of it."""
    configs = plan.chosen(study, epochs, every_system)
    plans = {
        name: plan.price(configs, plan.find_device(name), data_dir=ROOT / "book") for name in SHOWN
    }
    words = f"mvl plan {study}"
    words += f" --epochs {epochs}" if epochs else ""
    words += " --every-system" if every_system else ""
    shown = {
        name: {key: fact for key, fact in p.items() if key not in HERE} for name, p in plans.items()
    }
    files.write_json(path, {"command": words, "plans": shown})


def page(path: Path = RECORD) -> dict[str, str]:
    """What the book shows: the recorded plan on each device, and its systems on the first.

    Raises:
        PlanError: nothing is recorded.
    """
    if not path.is_file():
        raise plan.PlanError(
            f"{path}: no plan is recorded; run `mvl plan paper --epochs 200 --every-system"
            " --record`"
        )
    made = json.loads(path.read_text())
    plans = [made["plans"][name] for name in SHOWN]
    head = (
        "device | runs | GPU-hours | hours | memory per run, GB | fits | to download, GB | to"
        " keep, GB"
    )
    rows = [
        (
            f"{p['devices']} x {p['device'].upper()}",
            f"{p['runs']:,}",
            f"{p['hours']:,.0f}",
            f"{p['wall_hours']:,.0f}",
            f"{p['peak_memory_mb'] / 1e3:.1f}",
            "yes" if p["memory_fits"] else "no: raise `train.accumulate`",
            f"{p['download_bytes'] / 1e9:.1f}",
            f"{p['keep_bytes'] / 1e9:.1f}",
        )
        for p in plans
    ]
    first = made["plans"][SHOWN[0]]
    each = [
        (f"`{s['system']}`", s["runs"], f"{s['hours']:,.1f}", f"{s['peak_memory_mb'] / 1e3:.1f}")
        for s in first["systems"]
    ]
    said = dict.fromkeys(
        f"- {p['device'].upper()}: {line}" for p in plans for line in p["assumptions"]
    )
    return {
        "plan": markdown_table(head, "lrrrrlrr", rows),
        "plan_systems": markdown_table("system | runs | GPU-hours | memory, GB", "lrrr", each),
        "plan_assumptions": "\n".join(said),
        "plan_study": first["study"],
        "plan_command": made["command"],
        "plan_epochs": " or ".join(map(str, first["epochs"])),
        "plan_arms": str(len(first["systems"])),
    }
