"""The table of systems: what `mvl systems`, the head of each system's YAML and the book's list of
systems print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvl.core import files
from mvl.core.config import CONFIG_DIR, ROOT, Config, system_names
from mvl.models.describe import describe_system, system_config
from mvl.study.grid import study_runs

BENCH = ROOT / "data" / "bench.json"
"Cost of a training step of every system, written by `mvl bench --record`."
NEVER_TRAINED = ("vit_depth_released", "vit_mlp_released")
"Released sizes of two controls: counted, not run (253 million and 5.7 billion trained parameters)."
BATCH = {2: 8, 3: 4}
"Cases per step of that bench, by spatial dims: LLM4Seg's and MedVisionLlama's."
COUNTS = ("trainable", "frozen", "total")
SIZE_3D = (64, 64, 64)
"Grid of the bench for 3-D systems; 2-D ones are measured at their own."


def measured_size(config: Config) -> tuple[int, ...]:
    """Grid at which the bench measures a system."""
    return SIZE_3D if len(config.data.img_size) == 3 else config.data.img_size


def measurable(study: str | None = None) -> list[str]:
    """Systems that `mvl bench all` measures: those of a study, or all that are ever trained."""
    return (
        list(dict.fromkeys(run.system for run in study_runs(study)))
        if study
        else [name for name in system_names() if name not in NEVER_TRAINED]
    )


def measure_systems(
    names: list[str], study: str | None = None, progress: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Any]]:
    """A training step of each system in a process of its own, one thread: parameters, seconds, peak
    memory, GFLOP counted, share of peak.

    With `study`, grid, batch and widths are that study's, and the parameters are left out.
    """
    from mvl.bench.measure import child

    out: dict[str, dict[str, Any]] = {}
    for name in names:
        config = system_config(name, study)
        size = config.data.img_size if study else measured_size(config)
        batch = config.train.batch_size if study else BATCH[len(size)]
        counts = {} if study else {key: describe_system(name)[key] for key in COUNTS}
        out[name] = {
            "img_size": list(size),
            "batch_size": batch,
            **counts,
            **child("system", name, study, list(size), batch),
        }
        progress(f"{name}: {cost(out[name])}, {out[name]['share']:.2f} of the matmul peak")
    return out


def record_bench(
    rows: list[dict[str, Any]], measured: dict[str, dict[str, Any]], study: str | None = None
) -> None:
    """Write `data/bench.json` and the head of every system's YAML; what was not measured, or on
    another machine, keeps its row."""
    from mvl.bench.record import machine, with_bars, with_row

    record, here = whole_record(), machine()
    group = record["studies"].setdefault(Path(study).stem, {}) if study else record["systems"]
    for name, row in measured.items():
        group[name] = with_row(group.get(name, []), {**row, "machine": here})
    order = [name for name in system_names() if name in record["systems"]]
    files.write_json(
        BENCH,
        {
            "bars": with_bars(record["bars"], rows, here),
            "systems": {n: record["systems"][n] for n in order},
            "studies": record["studies"],
        },
    )
    for name in system_names():
        write_header(name)


def whole_record() -> dict[str, Any]:
    """`data/bench.json`, a list of rows for each system, one for each machine; or the same with
    nothing in it."""
    return {"bars": [], "systems": {}, "studies": {}} | (
        json.loads(BENCH.read_text()) if BENCH.is_file() else {}
    )


def read_bench() -> dict[str, Any]:
    """The record with one row a system: that of the machine which measured it first, as the
    recorded runs were made there."""
    from mvl.bench.record import first_rows

    record = whole_record()
    return record | {
        "systems": first_rows(record["systems"]),
        "studies": {name: first_rows(rows) for name, rows in record["studies"].items()},
    }


def cost(row: dict[str, Any] | None) -> str:
    """A measured training step in words."""
    if not row:
        return "a training step was not measured"
    size = "x".join(map(str, row["img_size"]))
    return (
        f"{row['seconds']:.2f} s and {row['peak_memory_mb'] / 1000:.1f} GB per training step"
        f" ({row['batch_size']} of {size}, one thread)"
    )


def header(name: str) -> list[str]:
    """First lines of a system's YAML: the command that runs it for a few steps, its parameters and
    its measured cost."""
    from mvl.weights.hub import is_hub_source

    row = describe_system(name)
    task = "phantoms" if row["spatial_dims"] == 3 else "shapes"
    stand_in = (
        " with SmolLM2's layer"
        if is_hub_source(system_config(name).model.token_block.source)
        else ""
    )
    return [
        f"# mvl train --study smoke --task {task} --system {name} --fraction 0.1",
        (
            f"# {row['trainable']:,} parameters trained, {row['frozen']:,} frozen;"
            f" {cost(read_bench()['systems'].get(name))}{stand_in}"
        ),
    ]


def write_header(name: str) -> None:
    """Put the header in place of the comment lines at the top of a system's YAML."""
    path = CONFIG_DIR / "systems" / f"{name}.yaml"
    lines = path.read_text().splitlines()
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    files.atomic_write(path, "\n".join([*header(name), *lines, ""]).encode())
