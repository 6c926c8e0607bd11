"""The card of an exported network: data, metrics, use of the block, limits and licences, all read
from the run's own files."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import yaml

from mvl.core.config import Config
from mvl.core.markdown import markdown_table
from mvl.datasets.task import Task
from mvl.models.exported import ONNX

SHOWN = {"dice": ("Dice", 3), "nsd": ("NSD", 3), "hd95_mm": ("HD95, {unit}", 2)}
"Metric of cases.csv = heading and digits."
KNOCKED_OUT = {
    "zero": "its output set to zero",
    "shuffled_tokens": "its output shuffled over the tokens",
    "shuffled_weights": "its weights shuffled",
    "random_weights": "its weights drawn at random",
}
"Interventions of usage.csv that the card prints, in words."
OPEN = ("Apache-2.0", "MIT")
"Licences of layers that allow passing a copy on with nothing but the notice."


def card(
    run_dir: Path, config: Config, task: Task, status: dict[str, Any], layer: str, onnx: str
) -> str:
    """Return the card in Markdown, with the header that hubs read.

    layer: the sentence on the frozen layer and its licence. onnx: what is said of `model.onnx`.
    """
    parts = [
        header(config, task),
        f"# {config.system} on {task.title}\n\n{purpose(config, task)}",
        f"## Load it\n\n{loading(config, task)}\n\n{onnx}",
        f"## Data\n\n{data_words(config, task, status)}",
        f"## Measured\n\n{measured(run_dir, task)}",
    ]
    if use := use_of_block(run_dir):
        parts.append(f"## Use of the block\n\n{use}")
    parts.append(f"## Limits\n\n{limits(config)}")
    parts.append(f"## Licences\n\n{licences(task, layer)}")
    return "\n\n".join(parts) + "\n"


def header(config: Config, task: Task) -> str:
    """Return the YAML header of a hub's card."""
    facts = {
        "library_name": "mvl",
        "pipeline_tag": "image-segmentation",
        "tags": ["medical-image-segmentation", config.system, task.name, "not-a-medical-device"],
        "license": "other",
        "license_name": f"data: {task.licence}; see the section on licences",
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


def purpose(config: Config, task: Task) -> str:
    """Return what the network is for."""
    return (
        f"A network that segments {', '.join(task.labels.values())} in {task.modality}"
        f" ({task.dims}-D). It was trained to compare networks with and without a frozen layer of a"
        f" language model: run fraction {config.fraction:g}, fold {config.fold}, seed"
        f" {config.seed} of the study `{config.study}`. **It is not a medical device**, and not"
        " made for diagnosis, treatment or any other clinical use."
    )


def loading(config: Config, task: Task) -> str:
    """Return the two lines that load the network from its folder, and what it takes."""
    size = "x".join(map(str, config.data.img_size))
    axes = "its axes turned to RAS, " if task.dims == 3 else ""
    grid = "resized" if config.data.resample == "resize" else "resampled and padded or cropped"
    return (
        "In this folder, with the package `mvl` installed:\n\n```python\nfrom mvl.models.exported"
        ' import load_exported\nnetwork = load_exported(".")\n```\n\n'
        f"It maps an image of shape (batch, {len(task.channels)}, {size.replace('x', ', ')}) to"
        f" logits. The image has the channels {', '.join(task.channels)}, {axes}each channel scaled"
        f" to mean 0 and variance 1, and is then {grid} to {size}"
        ": `preprocessing(config.data)` of mvl.datasets.preprocessing."
    )


def data_words(config: Config, task: Task, status: dict[str, Any]) -> str:
    """Return what the network was trained, watched and tested on."""
    n = status["n"]
    return (
        f"{task.title} (`{task.name}`): {n['train']} cases trained the weights, {n['val']} chose"
        f" the epoch ({status['best_epoch']}), {n['test']} tested them (fold {config.fold})."
        f" Labels: {config.data.labels}."
    )


def measured(run_dir: Path, task: Task) -> str:
    """Return the mean of each metric over the test cases, for each label."""
    rows = read_rows(run_dir / "cases.csv")
    heads = [words.format(unit=task.unit) for words, _ in SHOWN.values()]
    lines = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        cells = [
            f"{sum(float(row[metric]) for row in own) / len(own):.{digits}f}"
            for metric, (_, digits) in SHOWN.items()
        ]
        lines.append([label, len(own), *cells])
    head = ["label", "test cases", *heads]
    return (
        f"{markdown_table(head, 'l' * len(head), lines)}\n\n"
        "Means over the test cases on the native grid; the worst case has Dice"
        f" {min(float(row['dice']) for row in rows):.3f}. This is one run: the spread between folds"
        " and seeds is in the study's records."
    )


def use_of_block(run_dir: Path) -> str:
    """Return what the test Dice loses when the block is disturbed; empty without a block."""
    path = run_dir / "usage.csv"
    if not path.is_file():
        return ""
    changes = {row["intervention"]: float(row["dice_difference"]) for row in read_rows(path)}
    said = [
        f"- {words}: {100 * changes[name]:+.2f} Dice points"
        for name, words in KNOCKED_OUT.items()
        if math.isfinite(changes.get(name, math.nan))
    ]
    return (
        "The change of the mean test Dice, without any training, when the block between the mappers"
        " is disturbed. A change near zero means that the network does not need the block.\n\n"
        + "\n".join(said)
    )


def limits(config: Config) -> str:
    """Return what the numbers above cannot say."""
    return (
        f"- The network saw images of {'x'.join(map(str, config.data.img_size))} for"
        f" {config.train.train_epochs} epochs; the papers train larger ones for longer.\n"
        "- It saw one structure from one source, and was not tested on other scanners, sites, ages"
        " or diseases, nor by group of patients.\n"
        "- Its probabilities were not calibrated."
    )


def licences(task: Task, layer: str) -> str:
    """Return the licences of the code, of the data and of the frozen layer."""
    cite = f" Cite: {task.citation}." if task.citation else ""
    return (
        f"- Code: MIT.\n- Data that trained the weights: {task.licence or 'not stated'}.{cite}\n"
        f"- Frozen layer: {layer}"
    )


def onnx_words(largest: float | None, why_not: str) -> str:
    """Return what the card says of the ONNX file: its largest deviation, or why there is none."""
    if largest is None:
        return f"There is no `{ONNX}`: {why_not}."
    return (
        f"`{ONNX}` is the same network for onnxruntime: input `image`, output `logits`, one"
        f" image of this size at a time. On a test case the logits of both differ by at most"
        f" {largest:.1e}."
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
