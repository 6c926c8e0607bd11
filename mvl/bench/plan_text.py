"""What `mvl plan` says: a plan in words, and why a study cannot start here."""

from __future__ import annotations

from typing import Any


def plan_as_text(value: dict[str, Any]) -> str:
    """The plan as text."""
    unit = "core-hours" if value["device"] == "cpu" else "GPU-hours"
    device_gb = (value["device_memory_mb"] or 0) / 1e3
    too_large = f"; a {value['device']} has {device_gb:.0f} GB: raise train.accumulate"
    lines = [
        f"{row['system']:<34}{row['runs']:>4} runs {row['hours']:>10.2f} {unit}"
        f" {row['peak_memory_mb'] / 1e3:>7.1f} GB"
        for row in value["systems"]
    ]
    epochs = " or ".join(map(str, value["epochs"]))
    lines += [
        f"{value['study']}: {value['runs']} runs of {epochs} epochs, {value['hours']:.1f} {unit},"
        f" {value['wall_hours']:.1f} hours on {value['devices']} {value['device']}",
        f"memory: {value['peak_memory_mb'] / 1e3:.1f} GB at most per run"
        + ("" if value["memory_fits"] else too_large),
        f"disk: {size(value['download_bytes'])} to download, {size(value['keep_bytes'])} to keep;"
        f" {size(value['disk_need_bytes'])} needed at most, {size(value['disk_free_bytes'])} free",
    ]
    return "\n".join([*lines, *(f"assumed: {line}" for line in value["assumptions"])])


def size(number: float | int) -> str:
    """Bytes in GB, or in MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def refusal(value: dict[str, Any]) -> str:
    """Why the study cannot start here; empty: it can."""
    if value["disk_fits"]:
        return ""
    return (
        f"{value['study']} needs {value['disk_need_bytes'] / 1e9:.1f} GB of disk and"
        f" {value['disk_free_bytes'] / 1e9:.1f} GB are free; free space, or name a larger disk by"
        " --results-dir and --data-dir"
    )
