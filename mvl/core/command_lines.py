"""The commands that messages tell their reader to type: every one is made here, and can be pasted
into a shell in any folder."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from mvl.core.config import Config
from mvl.core.files import RunError, write_json
from mvl.core.run_folder import (
    default_results_dir,
    is_done,
    is_records,
    read_config,
    results_dir_of,
)

GIVEN = ".given.json"
"""File of a run's folder that keeps, on this machine alone, what its command was given: the study,
which may be a path, and the folder of the data."""


def command_line(
    *words: str | Path, results_dir: Path | None = None, data_dir: Path | None = None
) -> str:
    """Return the command `mvl` of these words, with each path in full and quoted for a shell.

    A study that is a YAML file counts as a path; the default folder of runs is left out.
    """
    typed = [*words]
    if results_dir and os.path.abspath(results_dir) != str(default_results_dir()):
        typed += ["--results-dir", Path(results_dir)]
    if data_dir:
        typed += ["--data-dir", Path(data_dir)]
    return shlex.join(["mvl", *map(_in_full, typed)])


def _in_full(word: str | Path) -> str:
    is_path = isinstance(word, Path) or word.endswith((".yaml", ".yml"))
    return os.path.abspath(os.path.expanduser(word)) if is_path else str(word)


def train_command(
    config: Config,
    results_dir: Path,
    data_dir: Path | None = None,
    study: str = "",
    more: tuple[str, ...] = (),
) -> str:
    """Return the command that trains, or goes on with, a run; `study` is the study as it was
    given."""
    words = ["train", "--study", study or config.study, "--task", config.task]
    words += ["--system", config.system, "--fraction", repr(config.fraction)]
    words += ["--fold", str(config.fold), "--seed", str(config.seed), *more]
    return command_line(*words, results_dir=results_dir, data_dir=data_dir)


def keep_given(folder: Path, study: str, data_dir: Path | None) -> None:
    """Keep in a run's folder what its command was given, for messages that a later command
    prints."""
    given = {"study": _in_full(study), "data_dir": _in_full(Path(data_dir)) if data_dir else None}
    write_json(folder / GIVEN, given)


def evaluation_command(folder: Path) -> str:
    """Return the command that scores a trained run again."""
    return command_line("evaluate", folder, data_dir=_given(folder).get("data_dir"))


def command_of(folder: Path, *more: str) -> str:
    """Return the command that trains, or goes on with, the run of a folder, wherever the folder
    lies now."""
    config, given = read_config(folder), _given(folder)
    results_dir, study = results_dir_of(folder, config), given.get("study", "")
    if is_records(results_dir):  # nothing is trained into them
        results_dir = default_results_dir()
    return train_command(config, results_dir, given.get("data_dir"), study, more)


def require_finished(folder: Path) -> None:
    """Return where a run is finished and its weights are there and whole.

    Raises:
        RunError: it is not; names the command that trains it.
    """
    if not is_done(folder, need_weights=True):
        raise RunError(
            f"{folder} is not a finished run with whole weights; run `{command_of(folder)}` first"
        )


def _given(folder: Path) -> dict[str, Any]:
    try:
        given = dict(json.loads((folder / GIVEN).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
    return {"study": given.get("study") or "", "data_dir": _path(given.get("data_dir"))}


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
