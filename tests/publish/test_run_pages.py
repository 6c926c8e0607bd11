"""A number leads to its run in the book: rows for every planned run, holes marked, links to copies
that are there."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from mvl.core import run_folder
from mvl.core.command_lines import train_command
from mvl.publish import run_links, run_pages
from mvl.study.grid import study_runs

RECORDS = run_folder.records_dir()
RUN = "Task04_Hippocampus_40/vit_baseline/fraction-1.0_fold-0_seed-1"


@pytest.fixture
def results(tmp_path):
    """The records of `quick` with one run taken out."""
    shutil.copytree(RECORDS / "quick", tmp_path / "results" / "quick")
    table = tmp_path / "results" / "quick" / "runs.csv"
    lines = [line for line in table.read_text().splitlines() if "vit_baseline,1.0,0,2," not in line]
    table.write_text("\n".join(lines) + "\n")
    shutil.rmtree(
        tmp_path
        / "results"
        / "quick"
        / "runs"
        / "Task04_Hippocampus_40"
        / "vit_baseline"
        / "fraction-1.0_fold-0_seed-2"
    )
    return tmp_path / "results"


def test_every_planned_run_has_a_row_and_what_it_links_to_is_there(tmp_path, results):
    staging = tmp_path / "book"
    staging.mkdir()
    assert run_pages.write_pages(staging, ["quick"], results) == ["runs_quick"]
    text = (staging / "runs_quick.md").read_text()
    rows = re.findall(r'<tr id="([^"]+)" class="(\w+)"[^>]*>(.*?)</tr>', text)
    planned = study_runs("quick")
    assert len(rows) == len(planned) and len({name for name, _, _ in rows}) == len(rows)
    assert [state for _, state, _ in rows].count(
        "missing"
    ) == 1 and "22 of 23 runs are recorded" in text
    for _, state, row in rows:
        assert "mvl train --study quick" in row
        files = 5 + ("/medvisionllama" in row) if state == "done" else 0
        assert len(re.findall(r'href="(records/[^"]+)"', row)) == files
    links = re.findall(r'href="(records/[^"]+)"', text)
    assert [
        link for link in links if not (staging / link).is_file()
    ] == [] and "records/splits/Task04_Hippocampus_40.json.txt" in links
    assert "shows that the pipeline works; not evidence" in text
    copy = staging / run_links.copied("quick", RUN, "config.yaml")
    assert copy.read_bytes() == (RECORDS / "quick" / "runs" / RUN / "config.yaml").read_bytes()


def test_numbers_of_a_row_are_those_of_the_record(results):
    row = next(row for row in run_pages.study_rows("quick", results) if row.name == RUN)
    html = run_pages.run_row("quick", row, results)
    assert (
        f"<td>{float(row.facts['dice']):.3f}</td>" in html
        and train_command(row.config, run_folder.default_results_dir()) in html
    )
    commit = json.loads((RECORDS / "quick" / "runs" / RUN / "environment.json").read_text())["mvl"][
        "commit"
    ]
    assert f"<td>{commit[:7]}" in html


def test_a_recorded_run_outside_the_grid_keeps_a_row(results):
    table = results / "quick" / "runs.csv"
    line = next(line for line in table.read_text().splitlines() if RUN in line)
    table.write_text(table.read_text() + line.replace("vit_baseline", "elsewhere") + "\n")
    last = run_pages.study_rows("quick", results)[-1]
    assert last.system == "elsewhere" and last.config is None and "grid" in last.block
    assert "mvl train" not in run_pages.run_row("quick", last, results)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        (
            f"https://github.com/o/r/tree/main/data/results/quick/runs/{RUN}",
            "runs_quick.html#Task04_Hippocampus_40-vit_baseline-1-fold-0_seed-1",
        ),
        (
            "../data/runs/quick/runs/Task04_Hippocampus_40/vit_baseline#fraction-0.1",
            "runs_quick.html#Task04_Hippocampus_40-vit_baseline-0-1",
        ),
        (f"data/results/quick/runs/{RUN}/cases.csv", f"records/quick/runs/{RUN}/cases.csv.txt"),
        ("data/results/quick/history.csv", "records/quick/history.csv.txt"),
    ],
)
def test_links_lead_into_the_book(address, place):
    text = f"a [`x` y]({address}), [z](https://x.example)"
    assert (
        run_links.book_links(text, ["quick"], "../")
        == f'a <a href="../{place}"><code>x</code> y</a>, [z](https://x.example)'
    )
    assert run_links.book_links(text, ["busi"]) == text


def test_the_place_of_a_link_has_an_anchor(tmp_path, results):
    text = run_pages.study_page("quick", run_pages.study_rows("quick", results), results)
    ids = set(re.findall(r' id="([^"]+)"', text))
    for address in (
        f"quick/runs/{RUN}",
        "quick/runs/Task04_Hippocampus_40/vit_baseline#fraction-0.1",
        "quick/runs/Task04_Hippocampus_40/vit_baseline#fraction-1.0",
    ):
        assert run_links.book_links(f"[x]({address})", ["quick"]).split("#")[1].split('"')[0] in ids


def test_notebooks_and_pages_are_linked_on_the_way(tmp_path, results):
    staging = tmp_path / "book"
    (staging / "notebooks").mkdir(parents=True)
    cell = {
        "cell_type": "code",
        "outputs": [
            {"output_type": "display_data", "data": {"text/markdown": [f"[r](quick/runs/{RUN})"]}}
        ],
    }
    (staging / "notebooks" / "01_a.ipynb").write_text(
        json.dumps({"cells": [cell, {"cell_type": "markdown"}]})
    )
    (staging / "intro.md").write_text(f"[r](quick/runs/{RUN})")
    (staging / "statistics.md").write_text("numbers")
    (staging / "glossary.md").write_text("words")
    assert run_pages.add_runs(staging, ["quick"], results) == ["runs_quick"]
    shown = json.loads((staging / "notebooks" / "01_a.ipynb").read_text())["cells"][0]["outputs"][
        0
    ]["data"]["text/markdown"]
    assert (
        shown.startswith('<a href="../runs_quick.html#')
        and (staging / "intro.md").read_text() == f"{shown.replace('../', '')}"
    )
    assert 'href="runs_quick.html#runs-table"' in (staging / "statistics.md").read_text()
    assert (staging / "glossary.md").read_text() == "words" and 'id="runs-table"' in (
        staging / "runs_quick.md"
    ).read_text()


def test_the_published_book_shows_every_recorded_study_of_scans(tmp_path, monkeypatch):
    for study in ("hippocampus", "busi", "quick", "smoke"):
        (tmp_path / study).mkdir()
        (tmp_path / study / "runs.csv").touch()
    assert run_pages.shown_studies(("hippocampus",), tmp_path) == ["hippocampus"]
    monkeypatch.setattr(run_folder, "records_dir", lambda: tmp_path)
    assert run_pages.shown_studies(("hippocampus",), tmp_path) == ["hippocampus", "busi", "quick"]
