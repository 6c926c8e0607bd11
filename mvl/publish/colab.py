"""A notebook on Colab: its machine's set-up, the study that fits it, and results that outlive it.

`python -m mvl.publish.colab` runs in a fresh clone and imports nothing outside the standard library
before it has installed it.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTOUCHED = ("torch", "numpy", "matplotlib")
"What Colab brings and the set-up cell never replaces."
OWNERS = ("quick", "hippocampus", "busi")
"Studies that a notebook may show by itself; the first that names it is its own."
WITH_GPU, WITHOUT = "colab", "quick"
"On Colab with a GPU the first takes the place of the second."
DRIVE = Path("/content/drive")
"Where Google Drive is mounted on Colab."
COPY_S = 30.0
"Seconds between two copies of the results to Drive."


def kept_versions() -> list[str]:
    """`name==version` of the packages that the set-up must leave as the machine brought them."""
    import importlib.metadata

    kept = []
    for name in UNTOUCHED:
        with suppress(importlib.metadata.PackageNotFoundError):
            kept.append(f"{name}=={importlib.metadata.version(name)}")
    return kept


def set_up() -> None:
    """Install what is missing or too old, never touching torch, numpy or matplotlib; get block and
    scans; say which device there is.

    Each line is flushed, for the commands in between print by themselves.
    """
    print("setting up, 1 to 3 minutes: packages first, which are installed in silence", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "keep.txt"
        constraints.write_text("\n".join(kept_versions()) + "\n")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), "-e", str(ROOT)],
            check=True,
        )
    print(f"installed; kept: {', '.join(kept_versions())}", flush=True)
    for what in ("weights", "Task04_Hippocampus"):
        done = subprocess.run([sys.executable, "-m", "mvl", "fetch", what], cwd=ROOT)
        word = "fetched"
        if done.returncode:
            word = (
                "NOT fetched; hybrids need them, run this cell again"
                if what == "weights"
                else "NOT fetched; the study quick brings its scans, run this cell again for others"
            )
        print(f"{what}: {word}", flush=True)
    subprocess.run(
        [sys.executable, "-c", "from mvl.publish import colab; print(colab.device_text())"],
        cwd=ROOT,
        check=True,
    )


def on_colab() -> bool:
    """True in a notebook of Colab."""
    return (
        importlib.util.find_spec("google") is not None
        and importlib.util.find_spec("google.colab") is not None
    )


def card() -> str:
    """The name of the machine's GPU; empty where there is none that PyTorch can use."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def device_text() -> str:
    """The machine's device, and which study `auto` therefore is."""
    gpu = card()
    if gpu:
        return f"device: {gpu}; the study `auto` is `{WITH_GPU}` where it has what a notebook shows"
    return (
        f"device: CPU only; the study `auto` is `{WITHOUT}`, on 40 scans. For more: Runtime >"
        " Change runtime type > GPU"
    )


def ready(
    notebook: str, study: str, results_dir: str, drive: bool = False, allow_drift: bool = False
) -> tuple[str, str]:
    """The study and the folder of results that a notebook shall use; on Colab it says first what
    will be trained, and how long it takes.

    `study` may be `auto`: the notebook's own, on Colab with a GPU `colab` in place of `quick`.
    With `drive` results lie on Google Drive too, from where another machine goes on; a run that
    this machine did not begin needs `allow_drift`, and is marked.

    Raises:
        TaskError: the study's data are absent and cannot be fetched; names the remedy.
    """
    from mvl.core.run_folder import results_folder
    from mvl.study.launch import ensure_data

    here = on_colab()
    gpu = card() if here else ""
    if study == "auto":
        study = chosen_study(notebook, gpu)
    if drive and here:
        on_drive = mounted() / "mvl" / "runs"
        print(
            f"results: {keep_on_drive(results_folder(results_dir), on_drive)} files taken from"
            f" {on_drive}, which is kept up to date; after a disconnect run every cell again, and"
            " runs that another machine began go on with `allow_drift = True` above"
        )
    elif here:
        print(
            f"results: {results_folder(results_dir)}, which ends with this machine; `drive = True`"
            " above keeps them in your Google Drive too"
        )
    if here:
        ensure_data(study)
        print(plan_text(notebook, study, results_folder(results_dir), gpu))
        if allow_drift:
            print("runs that another machine began go on here and are marked (allow_drift)")
    return study, results_dir


def own_study(notebook: str) -> str:
    """The study that a notebook shows by itself: the first of `OWNERS` that names it."""
    from mvl.study.grid import load_study

    return next(study for study in OWNERS if notebook in load_study(study).notebooks)


def chosen_study(notebook: str, gpu: str) -> str:
    """The notebook's own study, or the one sized for a GPU in place of `quick`."""
    from mvl.evidence.chapter import covered

    own = own_study(notebook)
    return WITH_GPU if gpu and own == WITHOUT and notebook[3:] in covered(WITH_GPU) else own


def plan_text(notebook: str, study: str, results_dir: Path, gpu: str) -> str:
    """The runs that the notebook will train, and the minutes that they are planned for on this
    machine."""
    from mvl.bench import plan
    from mvl.bench.gpus import device_of_card
    from mvl.evidence.chapter import planned_runs
    from mvl.evidence.topics import TOPICS
    from mvl.study.status import missing_runs

    missing = missing_runs(study, results_dir, planned_runs(study, TOPICS[notebook[3:]]))
    if not missing:
        return f"{study}: every run of this notebook is done"
    known = device_of_card(gpu)
    device = plan.find_device(known or ("t4" if gpu else "cpu"))
    minutes = sum(plan.seconds(run, device) for run in missing) / 60
    where = gpu or "one core of this machine"
    by = f", planned as a {device.name.upper()}" if gpu and not known else ""
    rests_on = plan.assumptions(missing, device)[0]
    return (
        f"{study}: {len(missing)} runs are left, about {max(1, round(minutes))} minutes on"
        f" {where}{by} ({rests_on}). Interrupting loses nothing: the same cell goes on"
    )


def mounted() -> Path:
    """The folder of the reader's Google Drive, mounted if it is not; Colab asks for leave."""
    from google.colab import drive

    drive.mount(str(DRIVE))
    return DRIVE / "MyDrive"


def keep_on_drive(results: Path, on_drive: Path) -> int:
    """Take from Drive what the results lack; copy to it every `COPY_S` seconds, and at the end.
    Returns the number of files taken.

    Training writes to the machine's own disk: Drive is slow, and its locks are not those of a file
    system.
    """
    taken = copy_newer(on_drive, results)
    ended = threading.Event()

    def copy_on() -> None:
        fault = ""
        while not ended.wait(COPY_S):
            before, fault = fault, ""
            # Drive may be full or away for a while; the next copy brings what this one did not
            try:
                copy_newer(results, on_drive)
                drop_old_checkpoints(results, on_drive)
            except OSError as error:
                fault = str(error)
                if not before:
                    print(f"results are not copied to Google Drive just now: {fault}", flush=True)

    def end() -> None:
        ended.set()
        copy_newer(results, on_drive)

    threading.Thread(target=copy_on, daemon=True).start()
    atexit.register(end)
    return taken


def copy_newer(source: Path, target: Path) -> int:
    """Copy each file that the target lacks or has older, whole or not at all, `status.json` after
    all else; returns how many."""
    files = [
        path
        for path in source.rglob("*")
        if path.is_file() and path.name != ".lock" and path.suffix != ".tmp"
    ]
    copied = 0
    for path in sorted(files, key=lambda path: path.name == "status.json"):
        other = target / path.relative_to(source)
        with suppress(FileNotFoundError):  # a checkpoint that was removed meanwhile
            if other.is_file():
                ahead = other.stat().st_mtime - path.stat().st_mtime
                same = other.stat().st_size == path.stat().st_size
                # a file system may keep two seconds for one
                if ahead > 2 or (same and ahead >= -2):
                    continue
            other.parent.mkdir(parents=True, exist_ok=True)
            part = other.with_name(f".{other.name}.{uuid.uuid4().hex}.tmp")
            try:
                shutil.copy2(path, part)
                os.replace(part, other)
            finally:
                part.unlink(missing_ok=True)  # where Drive is full, half a file stays otherwise
            copied += 1
    return copied


def drop_old_checkpoints(results: Path, on_drive: Path) -> None:
    """Remove from Drive the checkpoints that their run has replaced."""
    for path in on_drive.rglob("checkpoint-*.pt"):
        here = results / path.relative_to(on_drive)
        if here.parent.is_dir() and not here.is_file():
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    set_up()
