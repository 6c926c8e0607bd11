"""The page `Your rerun`: numbers beside the record, the machine, and its place in the book."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mvl.core import files, run_folder
from mvl.core.config import ROOT
from mvl.publish import rerun_page


@pytest.fixture
def rerun(tmp_path: Path) -> tuple[Path, Path]:
    """Staged sources, and the committed runs of `quick` as if this machine had made them."""
    staging, results = tmp_path / "staging", tmp_path / "runs"
    staging.mkdir()
    for name in ("intro.md", "_toc.yml"):
        shutil.copy(ROOT / "book" / name, staging)
    shutil.copytree(run_folder.records_dir() / "quick", results / "quick")
    return staging, results


def test_the_page_shows_the_rerun_beside_the_record(rerun: tuple[Path, Path]) -> None:
    staging, results = rerun
    rerun_page.add(staging, "quick", results)
    text = (staging / "rerun.md").read_text()
    assert "40 scans, small network: shows that the pipeline works; not evidence." in text
    assert "23 of 23 runs are trained" in text and "<svg" in (staging / "rerun.svg").read_text()
    dice, every = text.split("Every quantity")[0], text.split("Every quantity")[1]
    assert dice.count(" dice (n = ") == 13 and "hd95" not in dice and "hd95_mm" in every
    assert dice.count("| bitwise |") >= 13, "the same runs have the same bytes"
    [run] = list(results.glob("quick/runs/*/vit_baseline/fraction-1.0_fold-0_seed-0"))
    facts = json.loads((run / "environment.json").read_text())
    assert f"| `processor` | {facts['platform']['processor']} |" in text
    assert f"| `torch` | {facts['packages']['torch']} |" in text


def test_it_comes_first_and_the_landing_page_leads_there(rerun: tuple[Path, Path]) -> None:
    staging, results = rerun
    before = yaml.safe_load((staging / "_toc.yml").read_text())["parts"]
    rerun_page.add(staging, "quick", results)
    first, *others = yaml.safe_load((staging / "_toc.yml").read_text())["parts"]
    assert first["chapters"] == [{"file": "rerun"}] and others == before
    lines = (staging / "intro.md").read_text().splitlines()
    assert lines[0].startswith("# ") and "[your rerun](rerun.md)" in "\n".join(lines[:8])


def test_another_machines_numbers_stand_beside_a_tolerance(rerun: tuple[Path, Path]) -> None:
    staging, results = rerun
    for path in results.rglob("environment.json"):
        facts = json.loads(path.read_text())
        facts["platform"]["processor"] = "another"
        path.write_text(json.dumps(facts))
        status = json.loads(path.with_name("status.json").read_text())
        status["files"][path.name] = files.sha256_file(path)
        path.with_name("status.json").write_text(json.dumps(status))
    text = rerun_page.page(staging, "quick", results)
    assert "| `processor` | another |" in text and "| within |" in text
