"""The command line `mvl`: parsing only; `mvl/cli/commands.py` does what it says."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mvl.cli import commands as do
from mvl.core.config import ConfigError
from mvl.core.errors import BAD, NO_SPACE, MvlError
from mvl.core.extras import lacking
from mvl.core.files import FULL

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with one message on standard error if it is not 0."""
    top = parser()
    args = top.parse_args(argv)
    try:
        settle_task(top, args)
        return args.handler(args)
    except KeyboardInterrupt:
        return say("interrupted; the same command goes on from here", 130)
    except SystemExit as error:
        if not hasattr(error, "command"):
            raise
        return say(f"interrupted; go on with: {error.command}", int(error.code or 0))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BAD
    except ModuleNotFoundError as error:
        if (error.name or "mvl").split(".")[0] == "mvl":
            raise
        return say(lacking(error.name or ""), BAD)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        return say(str(error), code)


def exit_code(error: Exception) -> int | None:
    """Exit code of an error that the package raises on purpose, None for a fault of the package
    itself (which keeps its traceback)."""
    if isinstance(error, OSError) and error.errno in FULL:
        return NO_SPACE
    if isinstance(error, MvlError):
        return error.exit_code
    return BAD if isinstance(error, OSError) else None


def say(text: str, code: int) -> int:
    """Print `mvl: <text>` on standard error and return `code`."""
    print(f"mvl: {text}", file=sys.stderr)
    return code


def fraction(text: str) -> float:
    """A number in (0, 1]; nan and infinities are refused."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low}-{high}")
        return value

    parse.__name__ = "whole number"
    return parse


def task_name(text: str) -> str:
    """A task's full name from `Task04_Hippocampus`, `hippocampus` or `phantoms`; your own data's
    stay as given until `settle_task`."""
    from mvl.datasets.registry import find_task
    from mvl.datasets.task import TaskError

    try:
        return find_task(text).name
    except TaskError:
        return text


def settle_task(top: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Put the full name of the task and the folder of its data into `args`; an unknown task is
    wrong usage."""
    if args.handler is do.plan and not args.power:
        for name in ("variances", "sd", "designs", "families", "against"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name} belongs to --power: mvl plan {args.study} --power")
    if getattr(args, "task", "weights") == "weights":
        return
    from mvl.datasets.registry import settle
    from mvl.datasets.task import UnknownTask

    try:
        args.task, args.data_dir = settle(args.task, args.data_dir)
    except UnknownTask as error:
        top.error(f"argument {'--task' if args.handler is do.train else 'TASK'}: {error}")


def share(text: str) -> float:
    """A number in [0, 1); nan and infinities are refused."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def task_or_weights(text: str) -> str:
    """A task's full name, or `weights`."""
    return text if text == "weights" else task_name(text)


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


def add(
    commands: Any, name: str, handler: Handler, *options: Callable[[argparse.ArgumentParser], Any]
) -> argparse.ArgumentParser:
    """One command whose help is its handler's docstring."""
    text = (handler.__doc__ or "").split("`: ", 1)[-1]
    command = commands.add_parser(
        name, help=text.rstrip("."), description=text[:1].upper() + text[1:], allow_abbrev=False
    )
    command.set_defaults(handler=handler)
    for option in options:
        option(command)
    return command


def data_dir(command: argparse.ArgumentParser) -> None:
    """--data-dir."""
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="folder of the task folders (default: $MVL_DATA, else data/raw)",
    )


def results_dir(command: argparse.ArgumentParser) -> None:
    """--results-dir."""
    from mvl.core.run_folder import default_results_dir

    command.add_argument(
        "--results-dir",
        type=Path,
        metavar="D",
        default=default_results_dir(),
        help="folder of runs (default: data/runs)",
    )


def allow_drift(command: argparse.ArgumentParser) -> None:
    """--allow-drift."""
    command.add_argument(
        "--allow-drift",
        action="store_true",
        help="go on although packages or processor changed; the run is marked",
    )


def as_json(command: argparse.ArgumentParser) -> None:
    """--json."""
    command.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document and nothing else on standard output",
    )


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
    """train, evaluate, usage, predict."""
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
        help="evaluate every case of another task, e.g. PH2_256, into cases_on_TASK.csv",
    )
    add(commands, "usage", do.usage, data_dir, as_json).add_argument(
        "run", type=Path, metavar="RUN", help="folder of a trained hybrid's run"
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


def add_plan(commands: Any) -> None:
    """plan, with its options of cost and of power."""
    command = add(commands, "plan", do.plan, results_dir, data_dir, as_json)
    command.add_argument("study", metavar="S", help="name in mvl/configs/studies")
    command.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (one core), h100, h200, a100, t4, or several: 8xh100 (default: cpu)",
    )
    command.add_argument(
        "--epochs",
        type=whole(1, 10**6),
        metavar="N",
        help="for so many epochs (default: the study's)",
    )
    command.add_argument(
        "--every-system",
        action="store_true",
        help="with every system of the study's dims, on all its tasks and folds",
    )
    command.add_argument(
        "--record",
        action="store_true",
        help="write data/plan.json, the plan that the book shows (one and eight H100, one T4)",
    )
    command.add_argument(
        "--power",
        action="store_true",
        help="say instead what each contrast can decide, from variances measured before",
    )
    command.add_argument(
        "--variances",
        nargs="+",
        metavar="S",
        help="recorded studies to take variances from, in order (default: S itself)",
    )
    command.add_argument(
        "--sd",
        type=float,
        metavar="POINTS",
        help="standard deviation of a fold's mean difference where none is measured",
    )
    command.add_argument(
        "--designs",
        nargs="+",
        metavar="FxS",
        help="folds x seeds, such as 5x1 5x2 10x1 (default: the study's own)",
    )
    command.add_argument(
        "--families",
        nargs="+",
        type=whole(1, 1000),
        metavar="N",
        help="sizes of Holm's family (default: 1 and the contrast's own)",
    )
    command.add_argument(
        "--against",
        metavar="ARM",
        help="compare every arm with this one (default: the chapters' contrasts)",
    )


def add_study(commands: Any) -> None:
    """plan, study run|status|tune|maps|check|collect|record."""
    add_plan(commands)
    top = commands.add_parser(
        "study",
        help="run a study, show how far it is, check and record its results",
        allow_abbrev=False,
    )
    actions = top.add_subparsers(title="actions", required=True, metavar="ACTION")
    command = add(actions, "run", do.study_run, results_dir, data_dir)
    command.add_argument(
        "--jobs",
        type=whole(1, 4096),
        default=2,
        metavar="N",
        help="runs at a time, one thread each (default: 2)",
    )
    command.add_argument(
        "--engine",
        choices=("snakemake", "inline", "workers"),
        default="snakemake",
        help=(
            "inline: one after another in this process; workers: so in each of --jobs processes,"
            " without Snakemake"
        ),
    )
    command.add_argument(
        "--profile",
        default="local",
        metavar="P",
        help="folder of workflow/profiles: local, slurm, kubernetes (default: local)",
    )
    command.add_argument(
        "--runs-per-gpu",
        type=whole(1, 64),
        default=1,
        metavar="N",
        help="runs that share a card of this machine (default: 1)",
    )
    command.add_argument(
        "--device",
        default="",
        metavar="NAME",
        help=(
            "with a cluster's profile: what its runs are planned for and ask for, such as h100"
            " (default: the profile's, else cpu)"
        ),
    )
    allow_drift(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs that would start and what each asks for; train nothing",
    )
    status = add(actions, "status", do.study_status, results_dir, as_json)
    status.add_argument("--complete", action="store_true", help="exit 1 unless every run is done")
    trials = add(actions, "tune", do.study_tune, results_dir, data_dir)
    trials.add_argument(
        "--systems", nargs="+", metavar="NAME", help="only these systems' trials (default: all)"
    )
    maps = add(actions, "maps", do.study_maps, results_dir, data_dir)
    maps.add_argument(
        "--cases",
        type=whole(1, 10**6),
        default=24,
        metavar="N",
        help="test cases per run, evenly spaced (default: 24)",
    )
    rest = [
        add(actions, "check", do.study_check, results_dir),
        add(actions, "collect", do.study_collect, results_dir),
        add(actions, "record", do.study_record, results_dir),
    ]
    for each in (command, status, trials, maps, *rest):
        each.add_argument("study", metavar="S", help="name in mvl/configs/studies")


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
    command.add_argument(
        "--study", metavar="S", help="show this study's runs (default: the published records)"
    )
    add(commands, "figures", do.figures)
    add(commands, "doctor", do.doctor, data_dir, as_json)
