"""The command line `mvl`: one command is parsed and called; its exit code says how it went."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from mvl.core.errors import BAD, INTERRUPTED, NO_SPACE, MvlError

if TYPE_CHECKING:
    import argparse

STOPPED = "interrupted; the same command goes on from here"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, with one message on standard error if it is not 0."""
    with interrupts() as caught:
        try:
            code = run(argv)
        except KeyboardInterrupt:
            return say(STOPPED, INTERRUPTED)
    # An interrupt that a library swallowed is one all the same.
    return say(STOPPED, INTERRUPTED) if caught and code != INTERRUPTED else code


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Let SIGINT end the process at once while a module is being imported, and raise
    KeyboardInterrupt at any other time; gives the list of those that came.

    Libraries swallow an exception that is raised in the midst of their import, or print it; and
    what a program has only begun to load, it has not begun to write.
    """
    caught: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                say(STOPPED, INTERRUPTED)
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, where signals do not arrive
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


def run(argv: Sequence[str] | None) -> int:
    """Parse and call one command; returns its exit code. What it needs is imported here, when
    `interrupts` stands already."""
    from mvl.cli.parser import parser
    from mvl.core.extras import lacking

    top = parser()
    args = top.parse_args(argv)
    try:
        settle_task(top, args)
        return args.handler(args)
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
    from mvl.core.files import FULL

    if isinstance(error, OSError) and error.errno in FULL:
        return NO_SPACE
    if isinstance(error, MvlError):
        return error.exit_code
    return BAD if isinstance(error, OSError) else None


def say(text: str, code: int) -> int:
    """Print `mvl: <text>` on standard error and return `code`."""
    print(f"mvl: {text}", file=sys.stderr)
    return code


def settle_task(top: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Put the full name of the task and the folder of its data into `args`; an unknown task is
    wrong usage."""
    from mvl.cli import commands as do
    from mvl.cli import study_commands
    from mvl.core.command_lines import command_line
    from mvl.core.config import ConfigError

    if args.handler is study_commands.plan and not args.power:
        for name in ("variances", "sd", "designs", "families", "against"):
            if getattr(args, name) is not None:
                asked = command_line("plan", args.study, "--power")
                raise ConfigError(f"--{name} belongs to --power: `{asked}`")
    if getattr(args, "task", "weights") == "weights":
        return
    from mvl.datasets.registry import settle
    from mvl.datasets.task import UnknownTask

    try:
        args.task, args.data_dir = settle(args.task, args.data_dir)
    except UnknownTask as error:
        top.error(f"argument {'--task' if args.handler is do.train else 'TASK'}: {error}")
