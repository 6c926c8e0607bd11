"""Fetch a Decathlon task: download with resume, md5, safe extraction, manifest; the task's folder
appears whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mvl.core.files import sha256_file, waiting_lock, write_json
from mvl.datasets.decathlon import read_cases
from mvl.datasets.task import Task, TaskError, data_root
from mvl.datasets.task_data import TaskData
from mvl.datasets.unpack import extract

ATTEMPTS = 5
TIMEOUT_S = 30.0
CHUNK = 2**20
Report = Callable[[int, int], Any]
"Told (bytes so far, bytes in all or 0) as they come."
HINTS = {
    401: "the server wants a login",
    403: "the server refuses; its licence page may have to be accepted first",
    404: "the address has moved; correct data/registry.toml",
    410: "the address has moved; correct data/registry.toml",
}


def fetch(data: TaskData, progress: bool = True) -> Path:
    """The task's folder, downloaded and unpacked unless it is there already; of two processes one
    fetches and the other waits.

    Raises:
        TaskError: no address, server or network trouble after retries, wrong md5, unsafe or damaged
            archive, no space; says what to do.
    """
    data = data.whole
    task, folder = data.task, data.place
    if not task.url:
        return data.folder
    if is_whole(data):
        return folder
    root = data_root(data.data_dir)
    with waiting_lock(root / f".{task.name}.lock"):
        if is_whole(data):
            return folder
        if folder.exists():
            raise TaskError(
                f"{folder}: there, but not whole; move it away, then run"
                f" `{data.task_command('fetch')}` again"
            )
        for stale in root.glob(f"{task.name}.partial-*"):
            shutil.rmtree(stale)
        archive = root / f"{task.name}.tar"
        with _bar(task, progress) as report:
            download(task.url, archive, task.md5, task.bytes, report)
        _unpack(task, archive, folder)
        archive.unlink()
    return folder


def is_whole(data: TaskData) -> bool:
    """True when every file that the task's `dataset.json` and manifest list lies in its folder
    (bytes are `verify`'s matter)."""
    data = replace(data)  # looked up anew: another process may have fetched it meanwhile
    try:
        return len(data.cases) == data.task.num_cases and all(
            (data.folder / name).is_file() for name in data.manifest
        )
    except TaskError:
        return False


def _unpack(task: Task, archive: Path, folder: Path) -> None:
    """Archive to `<name>.partial-<uuid>`, manifest, then one rename."""
    partial = folder.parent / f"{task.name}.partial-{uuid.uuid4().hex}"
    try:
        extract(archive, partial)
        inner = partial / task.name
        write_manifest(task, inner)
        inner.replace(folder)
    except OSError as error:
        raise TaskError(
            f"{folder}: could not unpack ({error.strerror}); free space or fix permissions, then"
            " fetch again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(task: Task, folder: Path) -> None:
    """Write `manifest.json`: the sha256 of each labelled case's two files.

    Raises:
        TaskError: the folder does not hold all of the task's cases.
    """
    cases = read_cases(folder)
    paths = [path for case in cases for path in (case.image, case.label)]
    absent = [path.name for path in paths if not path.is_file()]
    if absent or len(cases) != task.num_cases:
        lack = f", {absent[0]} is absent" if absent else ""
        raise TaskError(
            f"{task.name}: the archive lists {len(cases)} cases, expected {task.num_cases}{lack}; "
            "compare data/registry.toml with its source"
        )
    write_json(
        folder / "manifest.json",
        {
            "task": task.name,
            "files": {p.relative_to(folder).as_posix(): sha256_file(p) for p in paths},
        },
    )


def download(
    url: str, target: Path, md5: str, size: int = 0, report: Report = lambda done, total: None
) -> Path:
    """`url` as `target`, which is there only once its md5 agrees; the beginning is kept as `.part`
    and gone on with.

    Raises:
        TaskError: names URL, bytes got and expected, and what to do.
    """
    if target.is_file() and file_md5(target) == md5:
        return target
    part = target.with_name(target.name + ".part")
    resumed = part.is_file() and part.stat().st_size > 0
    found = _complete(url, part, size, report)
    if found != md5 and resumed:
        part.unlink()
        found = _complete(url, part, size, report)
    if found != md5:
        part.unlink()
        raise TaskError(
            f"{url}: what arrived has md5 {found}, expected {md5}, and was deleted; fetch again. "
            "If it repeats, the published file has changed"
        )
    try:
        part.replace(target)
    except OSError as error:
        raise TaskError(
            f"{target}: what arrived is whole but could not be moved there from {part.name}"
            f" ({error.strerror}); free that name or fix the folder's permissions, then run the"
            " same command again"
        ) from error
    return target


def _complete(url: str, part: Path, size: int, report: Report) -> str:
    """Bring `.part` to its full length, trying again where the line breaks; its md5."""
    problem: Exception | None = None
    for attempt in range(ATTEMPTS):
        try:
            time.sleep(min(8.0, 0.5 * 2**attempt) if problem else 0)
            _continue(url, part, size, report)
            return file_md5(part)
        except urllib.error.HTTPError as error:
            problem = error
            if error.code < 500 and error.code not in (408, 429):
                break
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            problem = error
    have = part.stat().st_size if part.is_file() else 0
    hint = HINTS.get(getattr(problem, "code", 0), "check the network")
    wanted = f" of {size}" if size else ""
    raise TaskError(
        f"{url}: {problem} after {have} bytes{wanted} ({hint}); run the same command again to go on"
    ) from problem


def _continue(url: str, part: Path, size: int, report: Report) -> None:
    """One request for what `.part` lacks, appended; from the start when the server does not do
    ranges."""
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have and have == _total(error):
            return
        if error.code != 416:
            raise
        part.unlink(missing_ok=True)
        raise ConnectionError(
            "the kept beginning does not fit the server's file, starting anew"
        ) from error
    with reply:
        goes_on = reply.status == 206 and (reply.headers.get("Content-Range") or "").startswith(
            f"bytes {have}-"
        )
        start = have if goes_on else 0
        total = start + int(reply.headers.get("Content-Length") or 0)
        _check_reply(url, reply, size, total, part, total - start)
        _copy(reply, part, start, total, report)


def _total(error: urllib.error.HTTPError) -> int:
    text = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(text) if text.isdigit() else -1


def _check_reply(url: str, reply: Any, size: int, total: int, part: Path, need: int) -> None:
    kind = reply.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise TaskError(
            f"{url}: expected a tar archive, got {kind} ({reply.read(60)!r}); "
            "log in to the network's portal, or check the address"
        )
    if size and total and total != size:
        raise TaskError(
            f"{url}: the server offers {total} bytes, expected {size}; the published file has"
            " changed"
        )
    if (free := shutil.disk_usage(part.parent).free) < need:
        raise TaskError(
            f"{part.parent}: {need} bytes needed, {free} free; free space or choose another"
            " --data-dir"
        )


def _copy(reply: Any, part: Path, start: int, total: int, report: Report) -> None:
    done = start
    with open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        while block := reply.read(CHUNK):
            try:
                file.write(block)
            except OSError as error:
                raise TaskError(
                    f"{part}: could not be written ({error.strerror}); free space, then run the"
                    " same command again"
                ) from error
            done += len(block)
            report(done, total)
    if total > start and done < total:
        raise ConnectionError(f"connection closed at byte {done} of {total}")


def file_md5(path: Path) -> str:
    """Hex md5 of a file: what the Decathlon publishes, a guard against accidents and not against
    forgery."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class _bar:
    """A progress bar on standard error for a `with` block, which gets the function to report to."""

    def __init__(self, task: Task, show: bool) -> None:
        from tqdm import tqdm

        self.bar = tqdm(
            desc=task.name, unit="B", unit_scale=True, unit_divisor=1024, disable=not show
        )

    def __enter__(self) -> Report:
        return self.report

    def report(self, done: int, total: int) -> None:
        self.bar.total = total or None
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()
