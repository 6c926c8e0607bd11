"""A file layer that fails, or ends the process, at its k-th write, fsync or rename below one
folder; it also lists what happened in which order."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = ("write", "fsync", "replace")


class Layer:
    """What was done below `root` so far, as (kind, path), and when to fail: at event number `at` of
    `kind`, with `number` or by SIGKILL."""

    def __init__(
        self,
        root: Path,
        kind: str = "",
        at: int = -1,
        number: int = errno.ENOSPC,
        die: bool = False,
    ) -> None:
        self.root, self.kind, self.at, self.number, self.die = (
            os.path.abspath(root),
            kind,
            at,
            number,
            die,
        )
        self.events: list[tuple[str, str]] = []

    def note(self, kind: str, path: str) -> bool:
        """Note an event below the root; True when it is the one that fails."""
        if not os.path.abspath(path).startswith(self.root):
            return False
        self.events.append((kind, path))
        return kind == self.kind and self.count(kind) == self.at + 1

    def count(self, kind: str) -> int:
        """How many events of a kind there were."""
        return sum(seen == kind for seen, _ in self.events)

    def fail(self, path: str) -> None:
        """End this process, or raise what the kernel says of a full disk."""
        if self.die:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.number, os.strerror(self.number), path)


class Watched:
    """An open file whose failing write leaves half of its bytes, as a full disk does."""

    def __init__(self, file: Any, path: str, layer: Layer) -> None:
        self._file, self._path, self._layer = file, path, layer

    def write(self, data: Any) -> int:
        """Write, or write half and fail."""
        if self._layer.note("write", self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._layer.fail(self._path)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


def opener(layer: Layer, real: Callable[..., Any]) -> Callable[..., Any]:
    """`open` that watches files opened for writing below the root."""

    def watched(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        opened = real(file, mode, *args, **more)
        ours = isinstance(file, str | os.PathLike) and os.path.abspath(file).startswith(layer.root)
        return (
            Watched(opened, os.fspath(file), layer)
            if ours and set(mode) & set("wax+") and "lock" not in Path(file).name
            else opened
        )

    return watched


@contextmanager
def layer(
    root: Path, kind: str = "", at: int = -1, number: int = errno.ENOSPC, die: bool = False
) -> Iterator[Layer]:
    """Watch, and where asked fail, what the block writes below `root`."""
    seen, real = Layer(root, kind, at, number, die), (builtins.open, io.open, os.fsync, os.replace)

    def fsync(handle: int) -> None:
        path = os.readlink(
            f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}"
        )
        if seen.note("fsync", path):
            seen.fail(path)
        real[2](handle)

    def replace(source: Any, target: Any, **more: Any) -> None:
        if seen.note("replace", os.fspath(target)):
            seen.fail(os.fspath(target))
        real[3](source, target, **more)

    builtins.open, io.open, os.fsync, os.replace = (
        opener(seen, real[0]),
        opener(seen, real[1]),
        fsync,
        replace,
    )
    try:
        yield seen
    finally:
        builtins.open, io.open, os.fsync, os.replace = real
