"""A run is one folder: its path is its identity, every file in it is whole, and `status.json` is
written last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from mvl.core.config import ROOT, Config, ConfigError, build, merge, read_yaml, to_dict
from mvl.core.files import (
    RunError,
    atomic_write,
    locked,
    now,
    sha256_bytes,
    sha256_file,
    write_json,
)

RECORD_FILES = ("config.yaml", "environment.json", "history.csv", "cases.csv")
"""What a finished run's record holds beside `status.json`; `weights.safetensors` stays with the
working copy."""
GRADIENTS_FILE = "gradients.csv"
"Where a run keeps how far the gradients of its training cases agree."
EXTRA_FILES = ("usage.csv", GRADIENTS_FILE)
"""What the record of some runs holds besides: how a hybrid uses its block, how far cases agree on
the encoder's gradient."""
NEUTRAL = ("data.cache_gb", "data.num_workers", "train.checkpoint_s")
"Settings that change no result: a run made with others is still the run that was asked for."
EXTERNAL = "cases_on_"
"Beginning of the names of external tests' rows, which a record holds too."


def run_name(config: Config) -> str:
    """`<task>/<system>/fraction-<f>_fold-<k>_seed-<n>`: differs between any two runs of a study."""
    place = f"fraction-{config.fraction!r}_fold-{config.fold}_seed-{config.seed}"
    return f"{config.task}/{config.system}/{place}"


def run_dir(results_dir: Path, config: Config) -> Path:
    """Folder of a run: `<results_dir>/<study>/runs/<run_name>`."""
    return Path(results_dir) / config.study / "runs" / run_name(config)


def results_dir_of(folder: Path, config: Config) -> Path:
    """Return the results folder that a run's folder lies in, as `run_dir` lays it out."""
    parents = Path(os.path.abspath(folder)).parents
    depth = len(run_dir(Path(), config).parts) - 1
    home = parents[depth] if len(parents) > depth else default_results_dir()
    return home if run_dir(home, config) == Path(os.path.abspath(folder)) else default_results_dir()


def results_folder(given: str | Path) -> Path:
    """Return the folder that a notebook's `results_dir` means, wherever its kernel was started.

    A relative one starts at the clone's top folder; one that leads out of the clone from there was
    written for a kernel in `notebooks/`, and starts there.

    Raises:
        ConfigError: it leads out of the clone from both.
    """
    if Path(given).expanduser().is_absolute():
        return Path(given).expanduser()
    for start in (ROOT, ROOT / "notebooks"):
        folder = Path(os.path.normpath(start / given))
        if folder.is_relative_to(ROOT):
            return folder
    raise ConfigError(
        f"results_dir {str(given)!r} leads out of {ROOT}; give it from the clone's top folder, such"
        " as data/runs, or in full"
    )


def default_results_dir() -> Path:
    """Where runs of this clone go (`data/runs`, ignored by git); published records are in
    `data/results`."""
    return ROOT / "data" / "runs"


def records_dir() -> Path:
    """Published records, committed: `data/results`."""
    return ROOT / "data" / "results"


def is_records(folder: Path) -> bool:
    """Return whether a folder of runs is that of the published records."""
    return Path(folder).resolve() == records_dir().resolve()


def read_status(folder: Path) -> dict[str, Any]:
    """The run's `status.json`; `{"state": "new"}` where there is none or it is not JSON.

    A file that `write_sealed` was writing when it was stopped counts as sealed where the new one is
    in its place.
    """
    try:
        status = json.loads((folder / "status.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {"state": "new"}
    for name, digest in status.pop("coming", {}).items():
        if (folder / name).is_file() and sha256_file(folder / name) == digest:
            status["files"][name] = digest
    return status


def is_done(folder: Path, need_weights: bool = False) -> bool:
    """True when the run says done and every recorded file is there with its hash."""
    status = read_status(folder)
    files = {n: h for n, h in status.get("files", {}).items() if need_weights or is_record(n)}
    whole = all((folder / n).is_file() and sha256_file(folder / n) == h for n, h in files.items())
    return status["state"] == "done" and set(RECORD_FILES) <= set(files) and whole


def recorded_files(folder: Path) -> tuple[str, ...]:
    """Names of a finished run's sealed files, but for its weights."""
    sealed = read_status(folder).get("files", {})
    return (
        *RECORD_FILES,
        *(name for name in EXTRA_FILES if name in sealed),
        *external_files(folder),
    )


def is_record(name: str) -> bool:
    """Return whether a sealed file of this name belongs into a run's record, as all do but the
    weights."""
    return name in (*RECORD_FILES, *EXTRA_FILES) or name.startswith(EXTERNAL)


def external_file(task_name: str) -> str:
    """Return the name of the file in which a run's external test on a task is kept."""
    return f"{EXTERNAL}{task_name}.csv"


def external_files(folder: Path) -> tuple[str, ...]:
    """Return the names of a finished run's sealed external tests, sorted."""
    return tuple(
        sorted(name for name in read_status(folder).get("files", {}) if name.startswith(EXTERNAL))
    )


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write `status.json` with state done, `facts` and the sha256 of every artefact. The last write
    of a run."""
    extra = [name for name in EXTRA_FILES if (folder / name).is_file()]
    names = [*RECORD_FILES, *extra, "weights.safetensors"]
    files = {name: sha256_file(folder / name) for name in names}
    write_json(
        folder / "status.json", {"state": "done", "finished": now(), "files": files, **facts}
    )


def write_sealed(folder: Path, name: str, text: str) -> None:
    """Write a file into a sealed run, which at any moment is done with the old file or the new one.

    Raises:
        RunError: another process holds the run.
        OSError: e.g. no space.
    """
    digest = sha256_bytes(text.encode())
    with locked(folder):
        status = read_status(folder)
        write_json(folder / "status.json", status | {"coming": {name: digest}})
        atomic_write(folder / name, text)
        status["files"][name] = digest
        write_json(folder / "status.json", status)


def write_config(folder: Path, config: Config) -> None:
    """Write `config.yaml`, or check that the one there says the same (a setting that it does not
    name has its default) of all that can change a result.

    Raises:
        RunError: the folder was begun with another config; names the keys that differ and the
            remedy.
    """
    path = folder / "config.yaml"
    if changed := changed_settings(folder, config):
        raise RunError(
            f"{path} was begun with other settings: {'; '.join(changed)}. Restore them, or delete"
            f" {folder} to start anew"
        )
    atomic_write(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def changed_settings(folder: Path, config: Config) -> list[str]:
    """Return `key: old -> new` for each setting of a run's folder that is not the config's and can
    change a result; nothing where the folder has no config yet.

    A run is done only for the settings that it was made with: whoever asks whether it is done asks
    this too.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return []
    try:
        made_with = merge(to_dict(Config()), read_yaml(path))
    except ConfigError as error:
        return [str(error)]  # what cannot be read was not made with these settings
    lines = differences(made_with, to_dict(config))
    return [line for line in lines if line.partition(":")[0] not in NEUTRAL]


def read_config(folder: Path) -> Config:
    """The config that a run folder was made with.

    Raises:
        ConfigError: the folder is no run's, or its config cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no run's folder: one holds config.yaml, status.json and, where it was"
            " trained, weights.safetensors; give the folder that `mvl train` prints"
        )
    return build(Config, read_yaml(path), str(path))


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
