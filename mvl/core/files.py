"""Files that are whole or not there: atomic writes, hashes, locks, and what to do about a full
disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mvl.core.errors import MvlError

STALE_S = 3600
"Age from which a temporary file is no live writer's: a write takes seconds."
FULL = (errno.ENOSPC, errno.EDQUOT)
"Error numbers of a full disk and of a spent quota."


def swap(partial: Path, folder: Path) -> None:
    """Put the whole folder `partial` in the place of `folder`, and remove what was there."""
    old = partial.with_name(f"{folder.name}.partial-{uuid.uuid4().hex}")
    if folder.exists():
        folder.replace(old)
    partial.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (a folder, or a lock file made when absent), waiting for whoever has
    it.

    The kernel frees it when the process ends, however it ends.

    Raises:
        RunError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot write there ({error.strerror}); choose a writable folder with"
            " --data-dir"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class RunError(MvlError, RuntimeError):
    """A run cannot start, go on or be trusted; the message names the folder and the remedy."""


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` under `path` so that the file is, at any moment and after a power cut, either
    the old one or the whole new one.

    What writers of `path` that were killed more than an hour ago left beside it is removed.

    Raises:
        OSError: e.g. no space; the old file is kept and the temporary one removed. The message
            names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
            # the file system's clock, not this machine's
            written = os.fstat(file.fileno()).st_mtime
        os.replace(temporary, path)
        sync_folder(path.parent)
        with suppress(OSError):
            sweep(path.parent, path.name, written - STALE_S)
    except OSError as error:
        what = remedy(error, path, len(data), temporary.exists())
        raise OSError(error.errno, f"could not write {path}: {error.strerror} ({what})") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remedy(error: OSError, path: Path, size: int, kept: bool) -> str:
    """What became of the file that could not be written, and what to do."""
    what, space = (
        (
            "the previous file is kept"
            if kept
            else "the new file is there, but a power cut may still undo it"
        ),
        "",
    )
    if error.errno in FULL:
        with suppress(OSError):
            space = (
                f"; needs {size / 1e6:.1f} MB, free"
                f" {shutil.disk_usage(path.parent).free / 1e6:.1f} MB"
            )
    return f"{what}{space}; free space or fix permissions, then run again"


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*", before: float | None = None) -> int:
    """Remove temporary files that killed writers of `name` left in `folder`, all of them (under the
    folder's lock) or those last written `before`.

    Returns how many.
    """
    removed = 0
    for path in Path(folder).glob(f".{name}.*.tmp"):
        with suppress(FileNotFoundError):
            if before is None or path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Rows as CSV, atomically; floats in the shortest form that reads back the same."""
    atomic_write(path, csv_text(rows, columns))


def csv_text(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """The text of rows as CSV, as `write_csv` writes it."""
    import csv

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the kernel frees it when the process ends, however it ends. `wait`:
    until another that holds it is done.

    Raises:
        RunError: another live process holds it (names its pid and start), or nothing can be written
            there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115  (closed by the `with` below)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror}); choose a writable folder with"
            " --results-dir"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder} is held by {file.read().strip() or 'another process'}; wait for it or"
                " stop it"
            ) from None
        except OSError as error:
            raise RunError(
                f"{folder}: the file system has no locks ({error.strerror}); choose a local disk"
                " with --results-dir"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} since {now()}")
        file.flush()
        yield


def now() -> str:
    """UTC time, to the second, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
