"""G: full, read-only and spent disks. Every write, fsync and rename of every writer fails once:
each file is the old or the new one, whole."""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mvl.cli import main
from mvl.core import files, run_folder
from mvl.core.config import ROOT, Config, load_config
from mvl.datasets.new_scans import nifti_like
from mvl.datasets.phantoms import ensure_phantoms
from mvl.datasets.splits import write_split_file
from mvl.datasets.task_data import open_task
from mvl.evidence.faults import keep_figure
from mvl.publish.notebooks import write_notebook
from mvl.study.tables import record
from mvl.training import checkpoints
from tests.faults.figures import record_figure
from tests.faults.injection import KINDS, layer

ROWS = ("G1", "G2", "G3")
NOT_HERE: dict[str, str] = {}
TENSORS = {"a": torch.arange(64.0), "b": torch.ones(3, 5)}
STUDY = "title: t\ntasks: [phantoms]\ngrid: [{name: main, systems: [vit_baseline]}]\n"


def finished_run(results: Path, study: str) -> Config:
    """A run of `study` that is done, with one scored case; every byte is the same each time but the
    time it was finished."""
    from mvl.core.columns import CASE_COLUMNS, DECATHLON, HISTORY_COLUMNS, METRICS

    config = load_config(study, "phantoms", "vit_baseline")
    folder = run_folder.run_dir(results, config)
    row = (
        {key: getattr(config, key, "") for key in CASE_COLUMNS}
        | dict.fromkeys((*METRICS, *DECATHLON), 0.5)
        | {"case": "a", "label": "foreground", "status": "ok"}
    )
    run_folder.write_config(folder, config)
    files.write_json(folder / "environment.json", {})
    files.write_csv(folder / "cases.csv", [row], CASE_COLUMNS)
    files.write_csv(folder / "history.csv", [dict.fromkeys(HISTORY_COLUMNS, 1)], HISTORY_COLUMNS)
    checkpoints.save_weights(folder / "weights.safetensors", TENSORS)
    run_folder.seal(folder, {"parameters": {}})
    return config


def writers(outside: Path, case_folder: Path) -> dict[str, Callable[[Path], object]]:
    """Name -> a call that writes into a folder, for every module that writes results."""
    study = outside / "tiny.yaml"
    study.write_text(STUDY)
    finished_run(outside / "results", str(study))
    scan = open_task("Toy", case_folder.parent).cases[0].image
    mask = np.ones((16, 16, 16), np.uint8)
    return {
        "bytes": lambda to: files.atomic_write(to / "x.bin", b"new" * 1000),
        "json": lambda to: files.write_json(to / "x.json", {"new": 1}),
        "csv": lambda to: files.write_csv(to / "x.csv", [{"a": 1}], ["a"]),
        "config": lambda to: run_folder.write_config(to, Config()),
        "checkpoint": lambda to: checkpoints.save(to, 3, {"step": 3, **TENSORS}),
        "weights": lambda to: checkpoints.save_weights(to / "weights.safetensors", TENSORS),
        "records": lambda to: record(str(study), outside / "results", to),
        "notebook": lambda to: write_notebook(to / "n.ipynb", {"cells": []}),
        "split": lambda to: write_split_file("Toy", [f"c{i}" for i in range(12)], to / "Toy.json"),
        "prediction": lambda to: files.atomic_write(to / "mask.nii.gz", nifti_like(mask, scan)),
        "phantoms": lambda to: ensure_phantoms(to / "phantoms", 1),
        "figures": lambda to: keep_figure(to / "faults.json", "kills", 1.0, 1, ""),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes by relative path, locks and the time of a figure left out."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.endswith("lock")
    }


def fail_everywhere(
    name: str, write: Callable[[Path], object], place: Path, kinds: tuple[str, ...] = KINDS
) -> tuple[int, int, list[str]]:
    """(points that kept every file whole, points, words on the others) of one writer, with an older
    file under each of its names."""
    place.mkdir()
    fresh, old = place / "fresh", place / "old"
    fresh.mkdir()
    with layer(fresh) as seen:
        write(fresh)
    shutil.copytree(fresh, old)
    for path in old.rglob("*"):
        if path.is_file() and name not in ("config", "split", "phantoms", "records"):
            path.write_bytes(b"old " + path.name.encode())
    good, points, words = 0, 0, []
    for kind in kinds:
        for at in range(seen.count(kind)):
            for start in (old, None):
                target = place / f"{kind}-{at}-{start is None}"
                shutil.copytree(start, target) if start else target.mkdir()
                before = contents(target)
                said = failing(write, target, kind, at)
                after, wanted = contents(target), contents(fresh)
                whole = all(
                    data in (before.get(n), wanted.get(n))
                    or (name == "figures" and data[-2:] == b"}\n")
                    for n, data in after.items()
                )
                kept = set(before) <= set(after) and not [
                    n for n in after if n.endswith(".tmp") or ".partial-" in n
                ]
                told = said is None or any(Path(n).name in said for n in [*wanted, "phantoms"])
                good, points = good + (whole and kept and told), points + 1
                words += (
                    []
                    if whole and kept and told
                    else [f"{name} {kind} {at}: whole {whole}, kept {kept}, said {said}"]
                )
    return good, points, words


def failing(write: Callable[[Path], object], target: Path, kind: str, at: int) -> str | None:
    """What a writer says when its k-th event of a kind fails; None when it did not come so far (its
    file was there already)."""
    try:
        with layer(target, kind, at):
            write(target)
    except Exception as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "name", ["bytes", "config", "checkpoint", "weights", "notebook", "prediction", "split"]
)
def test_every_failing_call_keeps_the_old_file(
    name: str, tmp_path: Path, case_folder: Path
) -> None:
    good, points, words = fail_everywhere(
        name, writers(tmp_path, case_folder)[name], tmp_path / "place"
    )
    assert words == [] and good == points >= 8


@pytest.mark.faults
def test_all_points_of_all_writers(tmp_path: Path, case_folder: Path) -> None:
    every = writers(tmp_path, case_folder)
    found = [
        fail_everywhere(name, write, tmp_path / f"place-{name}") for name, write in every.items()
    ]
    record_figure(
        "disk_full",
        sum(f[0] for f in found),
        sum(f[1] for f in found),
        f"{len(every)} writers, every write, fsync and rename once, over an older file and into an"
        " empty folder",
    )
    assert [word for f in found for word in f[2]] == []


@pytest.mark.parametrize("row", [pytest.param(row, id=row) for row in ROWS])
def test_row(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    globals()[f"row_{row}"](tmp_path, monkeypatch, capsys)


def row_G1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full while a checkpoint is written: the one before stays, nothing is left behind, the message
    says how much is needed; exit code 28."""
    checkpoints.save(folder, 1, {"step": 1})
    before = contents(folder)
    said = r"checkpoint-000000002-\w+\.pt: No space left.*needs 0\.\d MB, free [\d.]+ MB"
    with layer(folder, "write", 0), pytest.raises(OSError, match=said) as full:
        checkpoints.save(folder, 2, {"step": 2, "x": torch.ones(50_000)})
    assert contents(folder) == before and checkpoints.load(folder) == {"step": 1}
    monkeypatch.setattr(
        "mvl.training.run.train_run", lambda *_, **__: (_ for _ in ()).throw(full.value)
    )
    assert main.main("train --study quick --task phantoms --system vit_baseline".split()) == 28
    assert "the previous file is kept" in capsys.readouterr().err


def row_G2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full while anything else is written: every writer of the package ends in atomic_write, but
    for what is made aside and swapped in whole."""
    staged = {
        "book.py",
        "book_facts.py",
        "second_study_page.py",
        "run_pages.py",
        "claims_page.py",
        "phantoms.py",
        "shapes2d.py",
        "new_scans.py",
        "unpack.py",
        "notebooks.py",
        "inline_figures.py",
        "records_archive.py",
        "rerun_page.py",
        "page_figures.py",
        "glossary_links.py",
        "article.py",
        "article_jats.py",
    }
    others = {
        "files.py": "atomic_write itself",
        "faults.py": "a lock",
        "gpu_record.py": "a lock",
        "launch.py": "a log",
        "workers.py": "a log",
        "browser.py": "a picture for a person",
        "layer_read.py": "a model of no value, made for a measurement",
        "loader.py": "scans of no value",
        "tensorboard.py": "a log, made of whole records",
        "mutants.py": "a copy of the tree, made anew when its stamp is missing",
        "colab.py": "constraints for one call of pip",
        "persons.py": "a text that atomic_write gets",
        "gpu_bundle.py": "a folder that is packed and removed",
    }
    found = {
        path.name
        for path in (ROOT / "mvl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if writes(node)
    }
    assert found <= {*staged, *others}, "writes to a final name without runs.atomic_write"


def writes(node: ast.AST) -> bool:
    """True for a call that opens a file for writing or saves one by itself."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    modes = (
        [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name == "open"
        else []
    )
    return name in ("write_text", "write_bytes", "to_csv", "to_json", "to_parquet") or any(
        set(m) & set("wax+") and len(m) < 4 for m in modes
    )


def row_G3(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spent quota, a read-only place, no inode left: the file, the cause and the remedy are
    named, and the old file stays."""
    (folder / "cases.csv").write_text("old")
    for number, words in (
        (errno.EDQUOT, "Disk quota exceeded.*needs"),
        (errno.EROFS, "Read-only file system.*permissions"),
        (errno.ENOSPC, "No space left"),
    ):
        with (
            layer(folder, "replace", 0, number),
            pytest.raises(OSError, match=rf"cases\.csv: {words}"),
        ):
            files.atomic_write(folder / "cases.csv", "new")
    real = os.open
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system")),
    )
    with pytest.raises(OSError, match=r"cases\.csv.*permissions"):
        files.atomic_write(folder / "cases.csv", "new")
    assert os.open is real and contents(folder) == {"cases.csv": b"old"}


def test_every_row_is_here() -> None:
    assert set(ROWS) | set(NOT_HERE) == {"G1", "G2", "G3"}
