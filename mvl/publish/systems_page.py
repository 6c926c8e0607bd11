"""The book's table of systems."""

from __future__ import annotations

import re

from mvl.bench.systems import read_bench
from mvl.core.config import named, system_names
from mvl.core.markdown import markdown_table
from mvl.models.describe import listed_parameters, switches


def systems_table() -> str:
    """Markdown table of every system: source, switches, what differs from the paper, parameters and
    measured step."""
    bench = read_bench()["systems"]
    rows = []
    for name in system_names():
        text, measured = named("systems", name), ["", "", ""]
        if step := bench.get(name):
            memory = f"{step['peak_memory_mb'] / 1000:.1f}"
            measured = [f"{step['seconds']:.2f}", memory, f"{step['share']:.2f}"]
        changed = "<br>".join(f"`{line}`" for line in switches(name))
        # else the two dashes become one long one
        source = re.sub("(--[a-z_]+)", r"`\1`", text["source"])
        sizes = listed_parameters(name)
        rows.append([f"`{name}`", source, changed, text["differs"], *sizes, *measured])
    head = (
        "system | source | switches | differs from the paper | trained | frozen | step, s |"
        " memory, GB | share of peak"
    )
    return markdown_table(head, "llllrrrrr", rows)
