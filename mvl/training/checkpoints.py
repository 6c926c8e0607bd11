"""Checkpoints and weights that are whole or not there: the hash is part of the name, and the last
two are kept."""

from __future__ import annotations

import io
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvl.core import files, run_folder
from mvl.core.command_lines import command_of

PATTERN = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.pt")
KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `checkpoint-<step>-<hash>.pt` atomically, then drop all but the newest two."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"checkpoint-{step:09d}-{files.sha256_bytes(data)[:16]}.pt"
    files.atomic_write(path, data)
    for old in found(folder)[KEEP:]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints in a run folder, newest first."""
    return sorted(
        (p for p in folder.glob("checkpoint-*.pt") if PATTERN.fullmatch(p.name)), reverse=True
    )


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint whose bytes have the hash in its name, with a word on stderr about it
    and each damaged one; None when there is none.

    Raises:
        RunError: there are checkpoints and none is whole.
    """
    for path in found(folder):
        data = path.read_bytes()
        if path.stem.endswith(files.sha256_bytes(data)[:16]):
            print(f"{path}: going on from here", file=sys.stderr)
            return _opened(path, data)
        print(
            f"{path}: bytes differ from the hash in its name; going on from the one before",
            file=sys.stderr,
        )
    if found(folder):
        raise files.RunError(
            f"{folder}: no checkpoint is whole; delete the checkpoint-*.pt files there to start the"
            " run anew"
        )
    return None


def _opened(path: Path, data: bytes) -> dict[str, Any]:
    """What a checkpoint holds; `weights_only` is said outright, which no environment variable
    overrides."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise files.RunError(
            f"{path}: is no checkpoint of mvl (it holds more than tensors and plain values, or is"
            " no archive) and was not opened; delete it, and start the run anew if no other is"
            " left"
        ) from error


def remove(folder: Path) -> None:
    """Delete the checkpoints of a finished run."""
    for path in found(folder):
        path.unlink(missing_ok=True)


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Tensors as safetensors, atomically; the same tensors give the same bytes."""
    from safetensors.torch import save as to_bytes

    files.atomic_write(
        path, to_bytes({name: tensor.contiguous().cpu() for name, tensor in sorted(state.items())})
    )


def load_weights(run_dir: Path) -> dict[str, Tensor]:
    """A finished run's tensors, hash checked.

    Raises:
        RunError: the file is missing or its hash is not the one in `status.json`.
    """
    from safetensors.torch import load as from_bytes

    path, wanted = (
        run_dir / "weights.safetensors",
        run_folder.read_status(run_dir).get("files", {}).get("weights.safetensors"),
    )
    if not path.is_file():
        raise files.RunError(
            f"{path}: no weights; published records carry none: train the run with"
            f" `{command_of(run_dir)}`"
        )
    data = path.read_bytes()
    if wanted is not None and files.sha256_bytes(data) != wanted:
        raise files.RunError(
            f"{path}: sha256 differs from status.json; delete the run's folder and train again"
        )
    return from_bytes(data)
