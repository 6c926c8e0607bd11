"""How a run that does not finish is recorded, and what it tells its reader: diverged, oom, killed
or failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from mvl.core import device_faults, files, machine, run_folder
from mvl.core.config import Config
from mvl.core.errors import MvlError
from mvl.core.privacy import redact
from mvl.datasets.case_store import CaseStore
from mvl.datasets.loaders import epoch_order
from mvl.training import devices

LOADER = re.compile(r"DataLoader worker \(pid|DataLoader timed out")
PREFETCH = 2
"Batches that each loader process reads ahead (the default of torch)."


@runtime_checkable
class Place(Protocol):
    """Where a run is; `core.progress.Progress` is one."""

    epoch: int
    step: int


class Diverged(MvlError, RuntimeError):
    """A loss, gradient or validation metric is not finite; names step and cases."""


class OutOfMemory(files.RunError):
    """A step needs more memory than there is; names the sizes and what to lower."""


class DeviceLost(files.RunError):
    """The GPU answers this process no more; a new one goes on."""


class WorkerLost(files.RunError):
    """A process that reads cases died or answers nothing; names the cases that were being read."""


def state_of(error: Exception) -> str:
    """The state of a run that an error ended."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, WorkerLost):
        return "killed"
    return "oom" if device_faults.is_out_of_memory(error) else "failed"


def close(error: Exception, folder: Path, config: Config) -> None:
    """Record in `status.json` how a run ended; its checkpoints stay. A status that cannot be
    written hides no error.

    Raises:
        OutOfMemory, DeviceLost: in place of an error that says less.
    """
    state = state_of(error)
    clearer: files.RunError | None = None
    if state == "oom" and not isinstance(error, OutOfMemory):
        clearer = OutOfMemory(memory_words(folder, config, error))
    elif device_faults.loses_device(error) and not isinstance(error, DeviceLost):
        clearer = DeviceLost(
            f"{folder}: {error}. The GPU answers this process no more; the same command, started"
            " anew, goes on"
        )
    told = str(clearer) if clearer else f"{type(error).__name__}: {error}"
    if run_folder.read_status(folder)["state"] != "done":  # a sealed run stays what it is
        with suppress(OSError):
            status = {"state": state, "error": redact(told), "updated": files.now()}
            files.write_json(folder / "status.json", status)
    if clearer:
        raise clearer from error


def memory_words(folder: Path, config: Config, error: Exception) -> str:
    """What was asked for, and which settings to lower."""
    peak = devices.gpu_peak_mb() or machine.peak_memory_mb()
    size, patch = (
        "x".join(map(str, sizes)) for sizes in (config.data.img_size, config.model.patch_size)
    )
    said, train = str(error).splitlines()[0] if str(error) else type(error).__name__, config.train
    return (
        f"{folder}: out of memory at batch_size {train.batch_size}, img_size {size}, patch_size"
        f" {patch}, precision {train.precision}, peak {peak:,.0f} MB ({said}); use a larger device,"
        f" or in the study set train.accumulate above {train.accumulate} (smaller parts, same step)"
        " or a smaller train.batch_size, and delete the folder. Nothing is tried again with other"
        " settings by itself"
    )


@contextmanager
def cases_named(config: Config, store: CaseStore, place: Place) -> Iterator[None]:
    """Turn the loss of a loader process while the block runs into an error that names the cases
    that were being read.

    Raises:
        WorkerLost: a loader process died, or none answered in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not LOADER.search(str(error)):
            raise
        workers, size = config.data.num_workers, config.train.batch_size
        ahead = epoch_order(store.case_ids, config.seed, place.epoch)[place.step * size :][
            : max(1, workers * PREFETCH) * size
        ]
        cases = ", ".join(store.case_ids[index] for index in ahead)
        raise WorkerLost(
            f"epoch {place.epoch}, step {place.step}: {error} Being read: {cases}. If memory or"
            " /dev/shm is full, lower data.num_workers (0 reads in the run's own process) or"
            " data.cache_gb; else look at these cases with"
            f" `{store.task_data.task_command('verify')}`. The same command goes on"
        ) from error
