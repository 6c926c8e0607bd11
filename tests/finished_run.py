"""Finished runs as training leaves them, made without training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvl.core import files, run_folder
from mvl.core.columns import CASE_COLUMNS, HISTORY_COLUMNS, run_columns
from mvl.core.config import Config
from mvl.study import grid


def write_run(results: Path, config: Config, cases: Iterable[dict[str, Any]], **facts: Any) -> Path:
    """A sealed run that says `facts`, with a row for each of the cases; a score that is not given
    is 0.5."""
    folder = run_folder.run_dir(results, config)
    run_folder.write_config(folder, config)
    files.write_json(folder / "environment.json", {})
    epoch = dict(zip(HISTORY_COLUMNS, (1, 1e-3, 0.5, 0.5, 0.5)))
    files.write_csv(folder / "history.csv", [epoch], HISTORY_COLUMNS)
    same = dict.fromkeys(CASE_COLUMNS, 0.5) | run_columns(config)
    same |= {"label": "foreground", "status": "ok"}
    files.write_csv(folder / "cases.csv", [same | case for case in cases], CASE_COLUMNS)
    files.atomic_write(folder / "weights.safetensors", run_folder.run_name(config))
    run_folder.seal(folder, facts)
    return folder


def pretend_done(folder: Path) -> None:
    """A sealed run of `quick`: its config and files without content."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*run_folder.RECORD_FILES, "weights.safetensors"):
        (folder / name).write_text("x")
    [config] = [c for c in grid.study_runs("quick") if folder.match(run_folder.run_name(c))]
    (folder / "config.yaml").unlink()
    run_folder.write_config(folder, config)
    run_folder.seal(folder, {"runtime_s": 10.0})
