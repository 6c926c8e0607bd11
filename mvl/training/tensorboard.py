"""TensorBoard event files of a run, by switch: `mvl train --tensorboard`, or MVL_TENSORBOARD=1 for
every run of a study.

All values stand at optimiser steps, an epoch's at its last one. An epoch is written before its
checkpoint; a run that goes on writes first at which step it does so, and readers drop what an
earlier process wrote from that step on: no step is shown twice.

Differs: torch's SummaryWriter puts the machine's name into the name of its file; here the files are
numbered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SWITCH = "MVL_TENSORBOARD"
PER_EPOCH = ("lr", "train_loss", "val_loss", "val_dice")
Tell = Callable[[dict[str, Any], list[float]], None]


def wanted() -> bool:
    """Whether the switch is on."""
    return os.environ.get(SWITCH, "") not in ("", "0")


@contextmanager
def opened(folder: Path, first_step: int, writes: bool = True) -> Iterator[Tell]:
    """A function that takes the row and the step losses of each epoch that ends; it does nothing
    where the switch is off or `writes` is False.

    `first_step`: number of the first step of the epoch that the run starts or goes on with. Where
    the package is not installed, one line on stderr says so, and the run goes on without.
    """
    tools = _tools() if wanted() and writes else None
    if tools is None:
        yield lambda row, losses: None
        return
    Event, SessionLog, RecordWriter = tools
    place = folder / "tensorboard"
    place.mkdir(parents=True, exist_ok=True)
    with open(place / f"events.out.tfevents.{len(list(place.iterdir())):06d}", "xb") as file:
        out, now = RecordWriter(file), lambda: datetime.now(UTC).timestamp()
        out.write(Event(wall_time=now(), file_version="brain.Event:2").SerializeToString())
        out.write(
            Event(
                wall_time=now(), step=first_step, session_log=SessionLog(status=SessionLog.START)
            ).SerializeToString()
        )

        def tell(row: dict[str, Any], losses: list[float]) -> None:
            for step, values in scalars(row, losses):
                out.write(
                    Event(wall_time=now(), step=step, summary=summary(values)).SerializeToString()
                )
            file.flush()

        yield tell


def _tools() -> tuple[Any, Any, Any] | None:
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ModuleNotFoundError as error:
        from mvl.core.extras import lacking

        print(f"no event files: {lacking(error.name or 'tensorboard')}", file=sys.stderr)
        return None
    return Event, SessionLog, RecordWriter


def scalars(row: dict[str, Any], losses: list[float]) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values by tag: `step/train_loss` of each step of an epoch, then `epoch/...` at its
    last step."""
    first = row["epoch"] * len(losses)
    yield from ((first + number, {"step/train_loss": loss}) for number, loss in enumerate(losses))
    yield first + len(losses) - 1, {f"epoch/{name}": row[name] for name in PER_EPOCH if name in row}


def summary(values: dict[str, float]) -> Any:
    """TensorBoard's message of some scalars."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(
        value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    )
