"""The table of faults shows what was run, and a figure that nobody measured as not measured."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from mvl.evidence import faults
from tests.faults.figures import PLACE, record_figure


def test_without_a_record_nothing_is_measured(tmp_path: Path) -> None:
    text = faults.table(tmp_path / "absent.json")
    assert text.count("not measured") == len(faults.FIGURES)
    assert (
        faults.facts(tmp_path / "absent.json")["faults_measured"]
        == f"0 of {len(faults.FIGURES)} figures are measured"
    )
    (tmp_path / "half.json").write_text('{"figures": {')
    assert faults.read_figures(tmp_path / "half.json") == {}


def test_a_figure_stands_with_its_own_n_and_never_with_the_target(tmp_path: Path) -> None:
    faults.keep_figure(tmp_path / "f.json", "kills", 31.0, 32, "2 runs, seed 7")
    faults.keep_figure(tmp_path / "f.json", "false_positive_rate", 0.049, 2000, "")
    lines = faults.table(tmp_path / "f.json").splitlines()
    assert any("| 31 of 32 | 1,000 kills over 20 runs | 2 runs, seed 7 |" in line for line in lines)
    assert any("| 0.049 (n = 2,000) |" in line for line in lines)
    assert faults.facts(tmp_path / "f.json")["faults_measured"].startswith(
        f"2 of {len(faults.FIGURES)} figures are measured, on 20"
    )


def test_two_processes_keep_both_their_figures(tmp_path: Path) -> None:
    def write(key: str) -> None:
        for n in range(10):
            faults.keep_figure(tmp_path / "f.json", key, float(n), 10, "")

    writers = [
        multiprocessing.get_context("fork").Process(target=write, args=(key,))
        for key in ("kills", "archives")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert {key: row["value"] for key, row in faults.read_figures(tmp_path / "f.json").items()} == {
        "kills": 9,
        "archives": 9,
    }


def test_figures_are_kept_only_where_make_faults_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PLACE, raising=False)
    record_figure("kills", 1, 1)
    monkeypatch.setenv(PLACE, str(tmp_path / "f.json"))
    record_figure("archives", 12, 12, "12 kinds")
    assert list(faults.read_figures(tmp_path / "f.json")) == ["archives"]
    with pytest.raises(KeyError, match="no row"):
        record_figure("unknown", 1, 1)
