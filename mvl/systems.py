"""The table of systems: what `mvl systems`, the head of each system's YAML and the book's list of systems print."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from mvl import runs
from mvl.config import CONFIG_DIR, ROOT, Config, build, check, load_config, named, system_names
from mvl.studies import study_runs

BENCH = ROOT / "data" / "bench.json"
"Cost of a training step of every system, written by `mvl bench --record`."
NEVER_TRAINED = ("vit_depth_released", "vit_mlp_released")
"Released sizes of two controls: counted, not run (253 million and 5.7 billion trained parameters)."
MINILM: dict[str, Any] = {"family": "bert", "hidden": 384, "layers": 6, "intermediate": 1536, "heads": 12, "kv_heads": 12}
SMOLLM2: dict[str, Any] = {"family": "llama", "hidden": 576, "layers": 30, "intermediate": 1536, "heads": 9, "kv_heads": 3}
SIZES = {"minilm-l6": MINILM, "smollm2-135m": SMOLLM2}
"Sizes of the models that packages carry; hub models have theirs in `data/sources.toml`."
BATCH = {2: 8, 3: 4}
"Cases per step of that bench, by spatial dims: LLM4Seg's and MedVisionLlama's."
COUNTS = ("trainable", "frozen", "total")
SIZE_3D = (64, 64, 64)
"Grid of the bench for 3-D systems; 2-D ones are measured at their own."


def system_config(name: str, study: str | None = None) -> Config:
    """The config of a system at its own defaults, the released sizes, or on the first task of a study, with what the study changes.

    Raises:
        ConfigError: unknown system or study.
    """
    if study:
        return load_config(study, named("studies", study)["tasks"][0], name)
    parts = {key: value for key, value in named("systems", name).items() if key in ("data", "model", "train")}
    return check(build(Config, {"study": "defaults", "system": name, **parts}, f"systems/{name}.yaml"))


def describe_systems() -> list[dict[str, Any]]:
    """Per system: name, title, source, spatial dims, and trainable, frozen and total parameters for one channel and one class."""
    return [describe_system(name) for name in system_names()]


def describe_system(name: str) -> dict[str, Any]:
    """One row of the table."""
    from mvl.models import count_parameters
    from mvl.models.hub import is_hub_source

    config, text = system_config(name), named("systems", name)
    block = config.model.token_block
    if is_hub_source(block.source) or block.source == "minilm-l6":
        config = replace(config, model=replace(config.model, token_block=replace(block, kind="random", source=str(described(block.source)))))
    facts = {"name": name, "title": text.get("title", name), "source": text.get("source", ""), "spatial_dims": len(config.data.img_size)}
    return facts | count_parameters(config, 1, 1)


def has_listed_sizes(name: str) -> bool:
    """Whether a model's layer can be built without any file of it."""
    from mvl.models.hub import is_hub_source

    return name in SIZES or is_hub_source(name)


@cache
def described(name: str) -> Path:
    """A folder with a `config.json` of a model from its listed sizes: enough to count its layer without fetching it."""
    from mvl.models.hub import HubSource, find_source

    hub = HubSource(name, "", "", **SIZES[name]) if name in SIZES else find_source(name)
    facts = {"model_type": hub.family, "hidden_size": hub.hidden, "intermediate_size": hub.intermediate, "num_hidden_layers": hub.layers,
             "num_attention_heads": hub.heads, "num_key_value_heads": hub.kv_heads}
    folder = Path(tempfile.mkdtemp(prefix="mvl-config-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    runs.write_json(folder / "config.json", facts)
    return folder


def switches(name: str) -> list[str]:
    """What a system's YAML changes in the model and in the labels, in its own words: `token_block.kind: random`."""
    def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
        lines: list[str] = []
        for key, value in values.items():
            words = json.dumps(value).replace('"', "")
            lines += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}: {words}"]
        return lines

    text = named("systems", name)
    return flat(text.get("model", {})) + flat({k: v for k, v in text.get("data", {}).items() if k.startswith("label_noise")})


def measured_size(config: Config) -> tuple[int, ...]:
    """Grid at which the bench measures a system."""
    return SIZE_3D if len(config.data.img_size) == 3 else config.data.img_size


def measurable(study: str | None = None) -> list[str]:
    """Systems that `mvl bench all` measures: those of a study, or all that are ever trained."""
    return list(dict.fromkeys(run.system for run in study_runs(study))) if study else [name for name in system_names() if name not in NEVER_TRAINED]


def measure_systems(names: list[str], study: str | None = None, progress: Callable[[str], None] = lambda text: None) -> dict[str, dict[str, Any]]:
    """A training step of each system in a process of its own, one thread: parameters, seconds, peak memory, GFLOP counted, share of peak.

    With `study`, grid, batch and widths are that study's, and the parameters are left out.
    """
    from mvl.bench import child

    out: dict[str, dict[str, Any]] = {}
    for name in names:
        config = system_config(name, study)
        size = config.data.img_size if study else measured_size(config)
        batch = config.train.batch_size if study else BATCH[len(size)]
        counts = {} if study else {key: describe_system(name)[key] for key in COUNTS}
        out[name] = {"img_size": list(size), "batch_size": batch, **counts, **child("system", name, study, list(size), batch)}
        progress(f"{name}: {cost(out[name])}, {out[name]['share']:.2f} of the matmul peak")
    return out


def record_bench(rows: list[dict[str, Any]], measured: dict[str, dict[str, Any]], study: str | None = None) -> None:
    """Write `data/bench.json` and the head of every system's YAML; what was not measured, or on another machine, keeps its row."""
    from mvl import bench_record

    record, here = whole_record(), bench_record.machine()
    group = record["studies"].setdefault(Path(study).stem, {}) if study else record["systems"]
    for name, row in measured.items():
        group[name] = bench_record.with_row(group.get(name, []), {**row, "machine": here})
    order = [name for name in system_names() if name in record["systems"]]
    runs.write_json(BENCH, {"bars": bench_record.with_bars(record["bars"], rows, here), "systems": {n: record["systems"][n] for n in order},
                            "studies": record["studies"]})
    for name in system_names():
        write_header(name)


def whole_record() -> dict[str, Any]:
    """`data/bench.json`, a list of rows for each system, one for each machine; or the same with nothing in it."""
    return {"bars": [], "systems": {}, "studies": {}} | (json.loads(BENCH.read_text()) if BENCH.is_file() else {})


def read_bench() -> dict[str, Any]:
    """The record with one row a system: that of the machine which measured it first, as the recorded runs were made there."""
    from mvl.bench_record import first_rows

    record = whole_record()
    return record | {"systems": first_rows(record["systems"]), "studies": {name: first_rows(rows) for name, rows in record["studies"].items()}}


def cost(row: dict[str, Any] | None) -> str:
    """A measured training step in words."""
    if not row:
        return "a training step was not measured"
    size = "x".join(map(str, row["img_size"]))
    return f"{row['seconds']:.2f} s and {row['peak_memory_mb'] / 1000:.1f} GB per training step ({row['batch_size']} of {size}, one thread)"


def header(name: str) -> list[str]:
    """First lines of a system's YAML: the command that runs it for a few steps, its parameters and its measured cost."""
    from mvl.models.hub import is_hub_source

    row = describe_system(name)
    task = "phantoms" if row["spatial_dims"] == 3 else "shapes"
    stand_in = " with SmolLM2's layer" if is_hub_source(system_config(name).model.token_block.source) else ""
    return [f"# mvl train --study smoke --task {task} --system {name} --fraction 0.1",
            f"# {row['trainable']:,} parameters trained, {row['frozen']:,} frozen; {cost(read_bench()['systems'].get(name))}{stand_in}"]


def write_header(name: str) -> None:
    """Put the header in place of the comment lines at the top of a system's YAML."""
    path = CONFIG_DIR / "systems" / f"{name}.yaml"
    lines = path.read_text().splitlines()
    while lines and lines[0].startswith("#"):
        lines.pop(0)
    runs.atomic_write(path, "\n".join([*header(name), *lines, ""]).encode())


def listed_parameters(name: str) -> tuple[str, str]:
    """Trained and frozen parameters as the head of a system's YAML gives them, which a test compares with the network."""
    line = (CONFIG_DIR / "systems" / f"{name}.yaml").read_text().splitlines()[1]
    trained, frozen = re.findall(r"([\d,]+) (?:parameters trained|frozen)", line)
    return trained, frozen


def systems_table() -> str:
    """Markdown table of every system: source, switches, what differs from the paper, parameters and measured step."""
    bench = read_bench()["systems"]
    lines = ["| system | source | switches | differs from the paper | trained | frozen | step, s | memory, GB | share of peak |",
             "|---|---|---|---|---:|---:|---:|---:|---:|"]
    for name in system_names():
        text, step, (trained, frozen) = named("systems", name), bench.get(name), listed_parameters(name)
        measured = f"{step['seconds']:.2f} | {step['peak_memory_mb'] / 1000:.1f} | {step['share']:.2f}" if step else "| |"
        changed = "<br>".join(f"`{line}`" for line in switches(name))
        source = re.sub("(--[a-z_]+)", r"`\1`", text["source"])  # else the two dashes become one long one
        lines.append(f"| `{name}` | {source} | {changed} | {text['differs']} | {trained} | {frozen} | {measured} |")
    return "\n".join(lines)
