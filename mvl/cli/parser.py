"""Every command of `mvl` with its options; what they do is in the modules of commands."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mvl.cli import commands as do
from mvl.cli.arguments import (
    add,
    allow_drift,
    as_json,
    data_dir,
    fraction,
    results_dir,
    share,
    task_name,
    task_or_weights,
    whole,
)
from mvl.cli.study_parser import add_study


def parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    from mvl import __doc__ as about
    from mvl import __version__

    top = argparse.ArgumentParser(
        "mvl", description=(about or "").splitlines()[0], allow_abbrev=False
    )
    top.add_argument("--version", action="version", version=f"mvl {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_data(commands)
    add_run(commands)
    add_study(commands)
    add_shown(commands)
    return top


def add_data(commands: Any) -> None:
    """fetch, verify, cache."""
    command = add(commands, "fetch", do.fetch, data_dir)
    command.add_argument(
        "task",
        type=task_or_weights,
        metavar="TASK",
        help="Task04_Hippocampus, hippocampus, phantoms, ..., or weights",
    )
    command.add_argument(
        "--source",
        default="smollm2-135m",
        help=(
            "with weights: smollm2-135m, minilm-l6, a name of data/sources.toml such as "
            "llama-3.1-8b, or OWNER/NAME@COMMIT on the hub (default: %(default)s)"
        ),
    )
    command.add_argument(
        "--layer",
        type=whole(-999, 999),
        default=-1,
        metavar="L",
        help=(
            "with weights of a hub model: which layer travels, negative from the end (default: -1)"
        ),
    )
    add(commands, "verify", do.verify, data_dir, as_json).add_argument(
        "task", type=task_name, metavar="TASK", help="as for fetch"
    )
    add(commands, "cache", do.cache, as_json).add_argument(
        "--clear", action="store_true", help="delete every decoded case there"
    )


def add_run(commands: Any) -> None:
    """train, evaluate, usage, export, predict."""
    command = add(commands, "train", do.train, results_dir, data_dir)
    command.add_argument("--study", required=True, metavar="S", help="name in mvl/configs/studies")
    command.add_argument(
        "--task",
        required=True,
        type=task_name,
        metavar="T",
        help="as for fetch, or the folder of your own data",
    )
    command.add_argument(
        "--system", required=True, metavar="Y", help="name in mvl/configs/systems (see mvl systems)"
    )
    command.add_argument(
        "--fraction",
        type=fraction,
        default=1.0,
        metavar="F",
        help="share of training cases, in (0, 1] (default: 1.0)",
    )
    command.add_argument(
        "--fold", type=whole(0, 9), default=0, metavar="K", help="test block, 0-9 (default: 0)"
    )
    command.add_argument(
        "--seed",
        type=whole(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="seed of the run (default: 0)",
    )
    allow_drift(command)
    command.add_argument(
        "--runs-per-gpu",
        type=whole(0, 64),
        default=0,
        metavar="N",
        help=(
            "wait for a card that fewer than N such runs hold, and use it alone; 0: what CUDA shows"
            " first (default: 0)"
        ),
    )
    command.add_argument(
        "--tensorboard",
        action="store_true",
        help="write event files into the run's folder (MVL_TENSORBOARD=1: every run does)",
    )
    command = add(commands, "evaluate", do.evaluate, data_dir)
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    command.add_argument(
        "--on",
        type=task_name,
        metavar="TASK",
        help=(
            "evaluate every case of another task, e.g. PH2_256 or the folder of your own data, into"
            " cases_on_TASK.csv"
        ),
    )
    add(commands, "usage", do.usage, data_dir, as_json).add_argument(
        "run", type=Path, metavar="RUN", help="folder of a trained hybrid's run"
    )
    command = add(commands, "export", do.export, data_dir, as_json)
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a trained run")
    command.add_argument("folder", type=Path, metavar="DIR", help="folder to make")
    command.add_argument(
        "--no-onnx",
        action="store_true",
        help="leave model.onnx out; it needs the packages of the extra `export` and the run's data",
    )
    command = add(commands, "predict", do.predict, as_json)
    command.add_argument(
        "run", type=Path, metavar="RUN", help="folder of a trained run, with its weights"
    )
    command.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="INPUT",
        help=".nii, .nii.gz, a folder of them or of a DICOM series; 2-D: pictures",
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the masks"
    )
    command.add_argument(
        "--probabilities", action="store_true", help="write the classes' probabilities too"
    )
    command.add_argument(
        "--overlays",
        action="store_true",
        help="draw each mask's outline too, on the picture or the axial plane with most of it",
    )
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is one"
    )
    command.add_argument(
        "--overlap",
        type=share,
        default=0.5,
        metavar="O",
        help="share of a window that the next covers again (default: 0.5)",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace masks that are there already"
    )
    command.add_argument(
        "--series",
        metavar="UID",
        help="SeriesInstanceUID to take from DICOM folders that hold several",
    )


def add_shown(commands: Any) -> None:
    """claims, audit, systems, bench, notebook, book, figures, doctor."""
    command = add(commands, "claims", do.claims, as_json)
    command.add_argument(
        "--study",
        metavar="S",
        help=(
            "the claims that this study can speak of (default: all, each by its own published"
            " study)"
        ),
    )
    command.add_argument(
        "--results-dir",
        type=Path,
        metavar="D",
        help="folder of collected results (default: data/results, the published records)",
    )
    command = add(commands, "audit", do.audit, as_json, data_dir)
    command.add_argument(
        "--released",
        type=Path,
        metavar="CLONE",
        help="clone of a paper's code: its text is read, never executed",
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="measure the surfaces of scans again (data/audit.json)",
    )
    add(commands, "systems", do.systems, as_json)
    command = add(commands, "bench", do.bench, as_json, data_dir)
    which = command.add_mutually_exclusive_group()
    for part, text in (
        ("loader", "volumes per second of the loader beside what a planned GPU asks for"),
        ("overhead", "processor time of a run with and without its checks, locks and checkpoints"),
    ):
        which.add_argument(
            f"--{part}", dest="part", action="store_const", const=part, help=f"measure {text}"
        )
    command.add_argument(
        "system",
        nargs="*",
        metavar="SYSTEM",
        help="measure a training step of these systems (`all`) in place of the bars",
    )
    command.add_argument(
        "--study",
        metavar="S",
        help="measure them at this study's grid, batch and widths (default: their own)",
    )
    command.add_argument(
        "--record",
        action="store_true",
        help=(
            "write what was measured: data/bench.json and the heads of the systems' YAML,"
            " data/loader.json or data/overhead.json"
        ),
    )
    command.add_argument(
        "--released",
        type=Path,
        metavar="CLONE",
        help="clone of MedVisionLlama's released code, measured beside ours",
    )
    command = add(commands, "notebook", do.notebook)
    command.add_argument("name", metavar="NAME", help="e.g. 01_baseline")
    command.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="study, results_dir, run (false: read what there is)",
    )
    command = add(commands, "book", do.book, results_dir)
    shown = command.add_mutually_exclusive_group()
    shown.add_argument(
        "--study", metavar="S", help="show this study's runs (default: the published records)"
    )
    shown.add_argument(
        "--rerun", metavar="S", help="the published records, and a page on this study's runs here"
    )
    shown.add_argument(
        "--record",
        action="store_true",
        help="keep the hashes of the published figures' data (data/figures.csv)",
    )
    command = add(commands, "figures", do.figures)
    command.add_argument(
        "--check",
        type=Path,
        metavar="BOOK",
        help="compare the figures of this built book with the published ones, by their data",
    )
    add(commands, "doctor", do.doctor, data_dir, as_json)
