"""The book's table of systems."""

from __future__ import annotations

import re

from mvl.bench.systems import read_bench
from mvl.core.config import named, system_names
from mvl.models.describe import listed_parameters, switches


def systems_table() -> str:
    """Markdown table of every system: source, switches, what differs from the paper, parameters and
    measured step."""
    bench = read_bench()["systems"]
    lines = [
        (
            "| system | source | switches | differs from the paper | trained | frozen | step, s |"
            " memory, GB | share of peak |"
        ),
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in system_names():
        text, step, (trained, frozen) = (
            named("systems", name),
            bench.get(name),
            listed_parameters(name),
        )
        measured = (
            f"{step['seconds']:.2f} | {step['peak_memory_mb'] / 1000:.1f} | {step['share']:.2f}"
            if step
            else "| |"
        )
        changed = "<br>".join(f"`{line}`" for line in switches(name))
        # else the two dashes become one long one
        source = re.sub("(--[a-z_]+)", r"`\1`", text["source"])
        lines.append(
            f"| `{name}` | {source} | {changed} | {text['differs']} | {trained} | {frozen} |"
            f" {measured} |"
        )
    return "\n".join(lines)
