"""Values and options that several commands share, each with its check and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[argparse.Namespace], int]


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


def share(text: str) -> float:
    """A number in [0, 1); nan and infinities are refused."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def task_or_weights(text: str) -> str:
    """A task's full name, or `weights`."""
    return text if text == "weights" else task_name(text)


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
