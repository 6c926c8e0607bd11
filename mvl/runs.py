"""A run is one folder: its path is its identity, every file in it is whole, and `status.json` is written last."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from mvl.config import ROOT, Config, build, merge, read_yaml, to_dict
from mvl.errors import MvlError

RECORD_FILES = ("config.yaml", "environment.json", "history.csv", "cases.csv")
"What a finished run's record holds beside `status.json`; `weights.safetensors` stays with the working copy."
EXTRA_FILES = ("usage.csv",)
"What the record of some runs holds besides: how a hybrid uses its block."
EXTERNAL = "cases_on_"
"Beginning of the names of external tests' rows, which a record holds too."
PACKAGES = ("torch", "numpy", "monai", "transformers", "peft", "accelerate", "safetensors", "nibabel", "scipy", "pandas")
STALE_S = 3600
"Age from which a temporary file is no live writer's: a write takes seconds."
FULL = (errno.ENOSPC, errno.EDQUOT)
"Error numbers of a full disk and of a spent quota."


class RunError(MvlError, RuntimeError):
    """A run cannot start, go on or be trusted; the message names the folder and the remedy."""


def run_name(config: Config) -> str:
    """`<task>/<system>/fraction-<f>_fold-<k>_seed-<n>`: differs between any two runs of a study."""
    return f"{config.task}/{config.system}/fraction-{config.fraction!r}_fold-{config.fold}_seed-{config.seed}"


def run_dir(results_dir: Path, config: Config) -> Path:
    """Folder of a run: `<results_dir>/<study>/runs/<run_name>`."""
    return Path(results_dir) / config.study / "runs" / run_name(config)


def command(config: Config, results_dir: Path, data_dir: Path | None = None) -> str:
    """The command that trains, or goes on with, this run."""
    where = "" if Path(results_dir) == default_results_dir() else f" --results-dir {results_dir}"
    where += f" --data-dir {data_dir}" if data_dir else ""
    return (f"mvl train --study {config.study} --task {config.task} --system {config.system} "
            f"--fraction {config.fraction!r} --fold {config.fold} --seed {config.seed}{where}")


def default_results_dir() -> Path:
    """Where runs of this clone go (`data/runs`, ignored by git); published records are in `data/results`."""
    return ROOT / "data" / "runs"


def records_dir() -> Path:
    """Published records, committed: `data/results`."""
    return ROOT / "data" / "results"


def draw_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that is a function of (seed, purpose...) alone: no generator state to save."""
    text = json.dumps([seed, *map(str, purpose)]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` under `path` so that the file is, at any moment and after a power cut, either the old one or the whole new one.

    What writers of `path` that were killed more than an hour ago left beside it is removed.

    Raises:
        OSError: e.g. no space; the old file is kept and the temporary one removed. The message names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
            written = os.fstat(file.fileno()).st_mtime  # the file system's clock, not this machine's
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
    what, space = "the previous file is kept" if kept else "the new file is there, but a power cut may still undo it", ""
    if error.errno in FULL:
        with suppress(OSError):
            space = f"; needs {size / 1e6:.1f} MB, free {shutil.disk_usage(path.parent).free / 1e6:.1f} MB"
    return f"{what}{space}; free space or fix permissions, then run again"


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*", before: float | None = None) -> int:
    """Remove temporary files that killed writers of `name` left in `folder`, all of them (under the folder's lock) or those last written `before`.

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
    """Hold the folder's lock; the kernel frees it when the process ends, however it ends. `wait`: until another that holds it is done.

    Raises:
        RunError: another live process holds it (names its pid and start), or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); choose a writable folder with --results-dir") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise RunError(f"{folder} is held by {file.read().strip() or 'another process'}; wait for it or stop it") from None
        except OSError as error:
            raise RunError(f"{folder}: the file system has no locks ({error.strerror}); choose a local disk with --results-dir") from error
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} since {now()}")
        file.flush()
        yield


def now() -> str:
    """UTC time, to the second, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read_status(folder: Path) -> dict[str, Any]:
    """The run's `status.json`; `{"state": "new"}` where there is none or it is not JSON."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {"state": "new"}


def is_done(folder: Path, need_weights: bool = False) -> bool:
    """True when the run says done and every recorded file is there with its hash."""
    status = read_status(folder)
    files = {n: h for n, h in status.get("files", {}).items() if need_weights or is_record(n)}
    whole = all((folder / n).is_file() and sha256_file(folder / n) == h for n, h in files.items())
    return status["state"] == "done" and set(RECORD_FILES) <= set(files) and whole


def recorded_files(folder: Path) -> tuple[str, ...]:
    """Names of a finished run's sealed files, but for its weights."""
    sealed = read_status(folder).get("files", {})
    return (*RECORD_FILES, *(name for name in EXTRA_FILES if name in sealed), *external_files(folder))


def is_record(name: str) -> bool:
    """Return whether a sealed file of this name belongs into a run's record, as all do but the weights."""
    return name in (*RECORD_FILES, *EXTRA_FILES) or name.startswith(EXTERNAL)


def external_file(task_name: str) -> str:
    """Return the name of the file in which a run's external test on a task is kept."""
    return f"{EXTERNAL}{task_name}.csv"


def external_files(folder: Path) -> tuple[str, ...]:
    """Return the names of a finished run's sealed external tests, sorted."""
    return tuple(sorted(name for name in read_status(folder).get("files", {}) if name.startswith(EXTERNAL)))


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write `status.json` with state done, `facts` and the sha256 of every artefact. The last write of a run."""
    extra = [name for name in EXTRA_FILES if (folder / name).is_file()]
    names = [*RECORD_FILES, *extra, "weights.safetensors"]
    files = {name: sha256_file(folder / name) for name in names}
    write_json(folder / "status.json", {"state": "done", "finished": now(), "files": files, **facts})


def write_config(folder: Path, config: Config) -> None:
    """Write `config.yaml`, or check that the one there says the same (a setting that it does not name has its default).

    Raises:
        RunError: the folder was begun with another config; names the keys that differ and the remedy.
    """
    path, wanted = folder / "config.yaml", to_dict(config)
    if path.is_file() and (changed := differences(merge(to_dict(Config()), yaml.safe_load(path.read_text()) or {}), wanted)):
        raise RunError(f"{path} was begun with other settings: {'; '.join(changed)}. Restore them, or delete {folder} to start anew")
    atomic_write(path, yaml.safe_dump(wanted, sort_keys=False))


def read_config(folder: Path) -> Config:
    """The config that a run folder was made with."""
    return build(Config, read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf that differs between two nested dicts."""
    out: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return out


def environment() -> dict[str, Any]:
    """Provenance of a run: code, versions, processor. Holds no host name, user name or path."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"mvl": _git(), "python": platform.python_version(), "packages": versions, "platform": platform_facts(), "started": now()}


def platform_facts() -> dict[str, Any]:
    """What bitwise repetition depends on beside the code: OS, processor and its vector units, torch build, threads."""
    import torch

    return {"system": platform.system(), "machine": platform.machine(), "processor": _processor(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
            "threads": torch.get_num_threads(), "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    ask: Callable[..., str] = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", "mvl"))}
    except (OSError, subprocess.CalledProcessError):
        return _bundled()


def _bundled() -> dict[str, Any]:
    """The commit that a bundle without git was made from (see gpu_bundle.py), else None."""
    try:
        return dict(json.loads((ROOT / "commit.json").read_text()))
    except (OSError, ValueError):
        return {"commit": None, "dirty": None}


def _processor() -> str:
    """Model name and a hash of the feature flags (Linux), else what platform says."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    pick = lambda key: next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(key)), "")
    return f"{pick('model name') or platform.processor()} flags-{sha256_bytes(pick('flags').encode())[:12]}"


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed tensors' memory for the next step: saves the page faults, 8 % of a hybrid step on one CPU core."""
    import ctypes

    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
            libc.mallopt(option, 2**30)
