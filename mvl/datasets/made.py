"""Data that mvl makes itself: a folder that is a function of its recipe, whole or not there."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvl.core.files import swap, waiting_lock
from mvl.datasets.task import TaskError


def ensure_made(
    folder: Path,
    name: str,
    file: str,
    recipe: dict[str, int],
    write_all: Callable[[Path], None],
) -> Path:
    """Return `folder` with what the recipe makes, made now unless it lies there; safe when several
    processes ask at once. What another recipe of the same name made there is replaced.

    name: what is made, which is also where `file`, of JSON, holds the recipe.
    write_all: writes the whole data into a folder that is not there yet, `file` included.

    Raises:
        TaskError: something else lies there, or the place cannot be written.
    """
    if _recipe(folder / file, name) == recipe:
        return folder
    with waiting_lock(folder.parent / f".{folder.name}.lock"):
        for stale in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(stale)
        if (found := _recipe(folder / file, name)) == recipe:
            return folder
        if folder.exists() and found is None:
            raise TaskError(
                f"{folder}: holds something other than {name}; move it away or choose another"
                " --data-dir"
            )
        partial = folder.parent / f"{folder.name}.partial-{uuid.uuid4().hex}"
        try:
            write_all(partial)
            swap(partial, folder)
        except OSError as error:
            raise TaskError(
                f"{folder}: could not write the {name} ({error.strerror}); choose a writable folder"
                " with --data-dir"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _recipe(path: Path, name: str) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
