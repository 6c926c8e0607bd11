"""Writing the planned bytes of a checkpoint as one safetensors file that a killed fetch goes on
with."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvl.core.files import write_json
from mvl.weights.families import SourceError
from mvl.weights.hub_checkpoint import Checkpoint, Plan
from mvl.weights.hub_client import HubClient
from mvl.weights.safetensors_ranges import cut_front, header

RECORD_EVERY = 2**24
"Bytes after which a fetch notes how far it is, so that a killed one goes on from there."


def write_planned(hub: HubClient, checkpoint: Checkpoint, plan: Plan, path: Path) -> str:
    """Write the planned bytes as `path`, which may hold the beginning that an earlier, killed fetch
    left; returns the file's sha256.

    Raises:
        SourceError: refused, the line stays broken, or no room; what came is kept.
    """
    from tqdm import tqdm

    beginning = header(plan.tensors)
    done, digest = _resumed(path, beginning, checkpoint.commit)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path.parent).free) < plan.size - done:
        raise SourceError(
            f"{path.parent}: {plan.size - done} bytes needed, {free} free; free space, or set"
            " MVL_WEIGHTS to a folder with room"
        )
    noted = done
    with (
        open(path, "r+b" if done else "wb") as file,
        tqdm(total=plan.size, initial=done, unit="B", unit_scale=True, disable=None) as bar,
    ):
        file.seek(len(beginning) + done) if done else _write(file, beginning, path)
        file.truncate()
        try:
            for chunk in _chunks(hub, checkpoint, plan, done):
                _write(file, chunk, path)
                digest.update(chunk)
                done += len(chunk)
                bar.update(len(chunk))
                noted = (
                    noted
                    if done - noted < RECORD_EVERY
                    else _note(file, path, done, digest, checkpoint.commit)
                )
        except BaseException:
            with suppress(SourceError):
                _note(file, path, done, digest, checkpoint.commit)
            raise
        _note(file, path, done, digest, checkpoint.commit)
    _progress(path).unlink()
    return digest.hexdigest()


def _chunks(hub: HubClient, checkpoint: Checkpoint, plan: Plan, done: int) -> Iterator[bytes]:
    """The planned bytes after the first `done`."""
    for file, pieces in itertools.groupby(plan.pieces, lambda piece: piece[0]):
        spans = [(start, end) for _, start, end in pieces]
        size = sum(end - start for start, end in spans)
        yield from hub.spans(checkpoint.commit, file, cut_front(spans, done))
        done = max(0, done - size)


def _write(file: Any, data: bytes, path: Path) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise SourceError(
            f"{path}: could not be written ({error.strerror}); free space, then run the same"
            " command again"
        ) from error


def _progress(path: Path) -> Path:
    return path.with_name("progress.json")


def _note(file: Any, path: Path, done: int, digest: Any, commit: str) -> int:
    """Write down that `done` bytes of tensors are on disk, and their hash with the header's."""
    _write(file, b"", path)
    os.fsync(file.fileno())
    write_json(_progress(path), {"bytes": done, "sha256": digest.hexdigest(), "commit": commit})
    return done


def _resumed(path: Path, beginning: bytes, commit: str) -> tuple[int, Any]:
    """(bytes of tensors that lie there just as they were noted, running sha256); (0, the header's)
    to start anew."""
    fresh, digest = hashlib.sha256(beginning), hashlib.sha256()
    try:
        noted = json.loads(_progress(path).read_text())
        with open(path, "rb") as file:
            left = len(beginning) + int(noted["bytes"])
            same = file.read(len(beginning)) == beginning and noted["commit"] == commit
            file.seek(0)
            while left and (chunk := file.read(min(2**20, left))):
                digest.update(chunk)
                left -= len(chunk)
        return (
            (int(noted["bytes"]), digest)
            if same and not left and digest.hexdigest() == noted["sha256"]
            else (0, fresh)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return 0, fresh
