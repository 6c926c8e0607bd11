"""What `data/bench.json` holds: rows of measurements, each with the machine that it was made on,
several machines side by side."""

from __future__ import annotations

from functools import cache
from typing import Any

from mvl.core.machine import cpu_fields, platform_facts
from mvl.core.markdown import markdown_table
from mvl.training import precision

Row = dict[str, Any]


def cpu_model() -> str:
    """The processor's name, family and model, as Linux gives them: hypervisors shorten the name."""
    found = cpu_fields()
    if not found:
        return platform_facts()["processor"]
    family, model = found.get("cpu family", ""), found.get("model", "")
    name = found.get("model name", "")
    return f"{name}, family {family}, model {model}{architecture(name, family)}"


def architecture(name: str, family: str) -> str:
    """The name of AMD's cores of a family, where the family and the vector units tell it."""
    wide = "avx512f" in precision.processor_flags()
    if name.startswith("AMD") and family == "25" and wide:
        return " (Zen 4)"
    if name.startswith("AMD") and family == "26":
        return " (Zen 5)"
    return ""


@cache
def machine() -> Row:
    """This machine as a row names it, with the peaks of one thread in GFLOP/s.

    The peak in bf16 is None where the processor has no units for it.
    """
    from mvl.bench.measure import child

    facts = platform_facts()
    peaks = child("peaks")
    return {
        "model": cpu_model(),
        "processor": facts["processor"],
        "cpu_capability": facts["cpu_capability"],
        "fp32_gflops": peaks["fp32_gflops"],
        "bf16_gflops": peaks["bf16_gflops"],
        "torch": facts["torch"],
        "device": facts["device"],
    }


def place(row: Row) -> tuple[str, str]:
    """What tells a row's machine from others: its processor and its GPU."""
    return row["machine"]["processor"], row["machine"]["device"]


def with_row(rows: list[Row], row: Row) -> list[Row]:
    """The rows with a new one: in place of its own machine's, else after the others'."""
    if any(place(old) == place(row) for old in rows):
        return [row if place(old) == place(row) else old for old in rows]
    return [*rows, row]


def with_bars(old: list[Row], new: list[Row], here: Row) -> list[Row]:
    """The bars' rows, in which this machine's own are replaced by the new ones.

    A bar that needs what was not at hand, as the released code, keeps its old row.
    """
    fresh = [{**row, "machine": here} for row in new]
    replaced = {(place(row), row["what"]) for row in fresh}
    return [*(row for row in old if (place(row), row["what"]) not in replaced), *fresh]


def first_rows(listed: dict[str, list[Row]]) -> dict[str, Row]:
    """One row of each system: the first machine's, which the other records were made on."""
    return {name: rows[0] for name, rows in listed.items()}


def machines(record: dict[str, Any]) -> list[Row]:
    """Each machine of a record once, in order."""
    groups = [record["bars"], *record["systems"].values()]
    groups += [rows for study in record["studies"].values() for rows in study.values()]
    found: dict[tuple[str, str], Row] = {}
    for rows in groups:
        for row in rows:
            found.setdefault(place(row), row["machine"])
    return list(found.values())


def machine_words(here: Row) -> str:
    """A machine's model, the width of its vectors, and its peaks where they were measured, in
    words."""
    peaks = [
        f"{here[f'{kind}_gflops']:.0f} GFLOP/s in {kind}"
        for kind in ("fp32", "bf16")
        if here.get(f"{kind}_gflops")
    ]
    of_product = f", a matrix product of {' and '.join(peaks)}" if peaks else ""
    return f"{here['model']}, {here['cpu_capability']}{of_product}"


def bf16_table(record: dict[str, Any]) -> str:
    """Markdown: a training step in bf16 over the same in fp32, beside its bar, on each machine."""
    ending = ": bf16 / fp32"
    lines = []
    for row in record["bars"]:
        if row["what"].endswith(ending):
            took = row["measured"]
            words = [
                row["what"].removesuffix(ending),
                machine_words(row["machine"]),
                f"{took['fp32_seconds']:.3f}",
                f"{took['bf16_seconds']:.3f}",
                f"{row['value']:.2f}",
                f"{row['bar']:g} ({'met' if row['met'] else 'missed'})",
            ]
            lines.append(words)
    head = ["step", "machine", "fp32, s", "bf16, s", "ratio", "at most"]
    return markdown_table(head, "llrrrr", lines)
