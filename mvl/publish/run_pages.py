"""Every number back to its run, offline: one page per study with a row for each planned run, and
its record copied into the book as text."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mvl.core import run_folder
from mvl.core.command_lines import train_command
from mvl.core.config import ROOT, Config
from mvl.datasets.registry import find_task
from mvl.datasets.task import MADE
from mvl.evidence.arms import caveat, title
from mvl.publish.notebooks import write_notebook
from mvl.publish.run_links import SUFFIX, anchor, book_links, copied, link, link_outputs, page_name
from mvl.study.grid import load_study, study_runs

NUMBERED = ("intro", "claims", "audit", "statistics", "reproduce", "model_card")
"""Pages beside the chapters that show numbers of runs; one that leads to no run gets a line that
does."""
ALWAYS = (*run_folder.RECORD_FILES, "status.json")
"Files that every finished run has."
FILES = (*ALWAYS, *run_folder.EXTRA_FILES)
"Files of a run that its row leads to, where they are there."
PUBLISHED_FILES = (
    "paper_reported.csv",
    "registry.toml",
    "claims.toml",
    "bench.json",
    "plan.json",
    "faults.json",
)
"Files of `data/` that pages draw numbers from."
TABLES = (
    "runs.csv",
    "cases.csv",
    "history.csv",
    "tuning.csv",
    "activations.csv",
    "masks.csv",
    "external.csv",
)
"Tables of a study, those of them that it has."


@dataclass(frozen=True)
class Row:
    """One planned, or formerly planned, run of a study."""

    block: str
    "Block of the study's grid."
    config: Config | None
    "None for a recorded run that the grid no longer has."
    task: str
    system: str
    fraction: float
    fold: int
    seed: int
    facts: dict[str, Any]
    "Its row of `runs.csv`; a run that is not in it is missing."

    @property
    def name(self) -> str:
        """`<task>/<system>/fraction-<f>_fold-<k>_seed-<n>`."""
        place = f"fraction-{self.fraction!r}_fold-{self.fold}_seed-{self.seed}"
        return f"{self.task}/{self.system}/{place}"

    @property
    def arm(self) -> tuple[str, str, str, float]:
        """What the rows of one arm share."""
        return self.block, self.task, self.system, self.fraction


def shown_studies(studies: Sequence[str], results: Path) -> list[str]:
    """The book's studies; for the published book, every further recorded study of scans or pictures
    as well."""
    named = [Path(study).stem for study in studies]
    if not run_folder.is_records(results):
        return list(studies)
    found = [
        path.parent.name
        for path in sorted(results.glob("*/runs.csv"))
        if path.parent.name not in named
    ]
    return [*studies, *(study for study in found if not set(load_study(study).tasks) <= set(MADE))]


def study_rows(study: str, results: Path) -> list[Row]:
    """A row for each run of the study's grid in its order, then for each recorded run that the grid
    no longer has."""
    stem = Path(study).stem
    table = results / stem / "runs.csv"
    recorded = csv.DictReader(table.read_text().splitlines()) if table.is_file() else ()
    facts: dict[str, dict[str, Any]] = {
        row["run"].removeprefix(f"{stem}/runs/"): row for row in recorded
    }
    rows: dict[str, Row] = {}
    for block in load_study(study).grid:
        for config in study_runs(study, str(block["name"])):
            name = run_folder.run_name(config)
            place = (config.task, config.system, config.fraction, config.fold, config.seed)
            rows.setdefault(
                name, Row(str(block["name"]), config, *place, facts.get(name, {"state": "missing"}))
            )
    for name, row in facts.items():
        if name not in rows and row["state"] == "done":
            place = (
                row["task"],
                row["system"],
                float(row["fraction"]),
                int(row["fold"]),
                int(row["seed"]),
            )
            rows[name] = Row("not in the grid any more", None, *place, row)
    return list(rows.values())


def add_runs(staging: Path, studies: Sequence[str], results: Path) -> list[str]:
    """Add the pages of runs and their records to a book's sources, and lead every link to a run
    there; returns the pages' names."""
    shown = shown_studies(studies, results)
    every = ", ".join(
        link(load_study(study).title, f"{page_name(study)}.html#runs-table") for study in shown
    )
    for page in staging.glob("*.md"):
        text = book_links(page.read_text(), shown)
        if page.stem in NUMBERED and not re.search(r"runs_[\w-]+\.html#", text):
            text += f"\n\nThe runs behind the numbers of this page: {every}.\n"
        page.write_text(text)
    for path in sorted((staging / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        link_outputs(notebook, shown)
        write_notebook(path, notebook)
    return write_pages(staging, shown, results)


def write_pages(staging: Path, studies: Sequence[str], results: Path) -> list[str]:
    """Write each study's page into the book's sources, and what the pages link to under `records/`;
    returns the pages' names."""
    copy_files(
        {ROOT / "data" / name: staging / f"records/{name}{SUFFIX}" for name in PUBLISHED_FILES}
    )
    for study in studies:
        rows = study_rows(study, results)
        text = book_links(study_page(study, rows, results), [study])
        (staging / f"{page_name(study)}.md").write_text(text)
        copy_files(
            {source: staging / place for source, place in records(study, rows, results).items()}
        )
    return [page_name(study) for study in studies]


def study_page(study: str, rows: Sequence[Row], results: Path) -> str:
    """A study's page: what the columns are, and the table of its runs in raw HTML with an id for
    each arm and run."""
    plan = load_study(study)
    done = sum(row.facts["state"] == "done" for row in rows)
    splits = ", ".join(
        f'<a href="{quote(place)}">{html.escape(task)}</a>'
        for task, place in split_files(rows).items()
    )
    made = f"**{words}.** " if (words := caveat(plan.tasks)) else ""
    tables = ", ".join(
        f"[{name}]({plan.name}/{name})" for name in TABLES if (results / plan.name / name).is_file()
    )
    units = " and ".join(dict.fromkeys(find_task(row.task).unit for row in rows))
    return f"""# Runs: {plan.title}

{made}Study `{plan.name}`: {done} of {len(rows)} runs are recorded; a run that is not there keeps
its row. Each arm opens to its runs. A row leads to the run's settings (*config*), its machine, code
and versions (*environment*), its scores by case, its training history, and the sha256 of each
(*status*); where they were measured, to what a hybrid loses when its layer is replaced (*usage*)
and how far cases agree on the gradient (*gradients*). The command in the last column repeats the
run and prints its folder. Dice and HD95 ({units}) are means over the test cases on the
native grid.

Splits: {splits or "made on demand"}. Fold *k* tests block *k*, validates on the next two and trains
on the other seven; a share of the data is a prefix of each training set. Tables of the study:
{tables or "none yet"}.

```{{raw}} html
{runs_table(plan.name, rows, results)}
```
"""


def runs_table(study: str, rows: Sequence[Row], results: Path) -> str:
    """The runs by arm, each arm folded under its name with an id; one row with an id for each
    run."""
    arms: dict[tuple[str, str, str, float], list[Row]] = {}
    for row in rows:
        arms.setdefault(row.arm, []).append(row)
    body, block = list[str](), None
    for arm, own in arms.items():
        if arm[0] != block:
            block = arm[0]
            body.append(f'<p class="block">Block <code>{html.escape(block)}</code></p>')
        body.append(arm_table(study, own, results))
    return '<div id="runs-table" class="runs">\n' + "\n".join(body) + "\n</div>"


def arm_table(study: str, rows: Sequence[Row], results: Path) -> str:
    """One arm: its name, share of the data, number of runs and mean Dice, and its rows below."""
    first = rows[0]
    scores = [float(row.facts["dice"]) for row in rows if row.facts.get("dice")]
    mean = f", mean Dice {sum(scores) / len(scores):.3f}" if scores else ""
    done = sum(row.facts["state"] == "done" for row in rows)
    name = f"{html.escape(title(first.system))}, {first.fraction:.0%} of the data"
    count = f"{done} of {len(rows)} runs{mean}"
    words = f"{name} <small><code>{html.escape(first.system)}</code>: {count}</small>"
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("fold, seed", "Dice", "HD95", "record", "code", "command")
    )
    body = "\n".join(run_row(study, row, results) for row in rows)
    return (
        f'<details class="arm" id="{anchor(*first.arm[1:])}"><summary>{words}</summary>'
        '<div class="pst-scrollable-table-container"><table class="table">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div></details>"
    )


def run_row(study: str, row: Row, results: Path) -> str:
    """One run's row."""
    place, folder = f"fold-{row.fold}_seed-{row.seed}", results / study / "runs" / row.name
    links = " ".join(
        f'<a href="{quote(copied(study, row.name, name))}">{name.split(".")[0]}</a>'
        for name in FILES
        if (folder / name).is_file()
    )

    def number(key: str, digits: int) -> str:
        return f"{float(row.facts[key]):.{digits}f}" if row.facts.get(key) else ""

    command = ""
    if row.config:
        words = train_command(row.config, run_folder.default_results_dir())
        command = f"<details><summary>repeat</summary><code>{html.escape(words)}</code></details>"

    cells = [f'<th scope="row">fold {row.fold}, seed {row.seed}</th>']
    for text in (
        number("dice", 3),
        number("hd95_mm", 2),
        links or row.facts["state"],
        code_version(folder),
        command,
    ):
        cells.append(f"<td>{text}</td>")

    where = anchor(row.task, row.system, row.fraction, place)
    state = f'class="{row.facts["state"]}" data-fold="{row.fold}" data-seed="{row.seed}"'
    return f'<tr id="{where}" {state}>{"".join(cells)}</tr>'


def code_version(folder: Path) -> str:
    """The commit that the run was made with, short; `+` where the package had changes on top."""
    if not (folder / "environment.json").is_file():
        return ""
    made = json.loads((folder / "environment.json").read_text()).get("mvl", {})
    if not made.get("commit"):
        return "not known"
    return made["commit"][:7] + ("+" if made.get("dirty") else "")


def split_files(rows: Sequence[Row]) -> dict[str, str]:
    """Map the name of each committed split of the rows to the address of its file's copy."""
    names = dict.fromkeys(split_name(row) for row in rows)
    return {
        name: f"records/splits/{name}.json{SUFFIX}"
        for name in names
        if split_source(name).is_file()
    }


def split_name(row: Row) -> str:
    """The task, with `_persons` behind it where the run's split keeps persons together."""
    by_person = row.config is not None and row.config.data.split == "persons"
    return f"{row.task}_persons" if by_person else row.task


def split_source(name: str) -> Path:
    """The committed split file of this name."""
    return ROOT / "data" / "splits" / f"{name}.json"


def records(study: str, rows: Sequence[Row], results: Path) -> dict[Path, str]:
    """File -> address of its copy: the study's tables, its splits, and the record of each of its
    runs."""
    stem = Path(study).stem
    wanted = {split_source(name): place for name, place in split_files(rows).items()}
    wanted |= {results / stem / name: f"records/{stem}/{name}{SUFFIX}" for name in TABLES}
    return wanted | {
        results / stem / "runs" / row.name / name: copied(stem, row.name, name)
        for row in rows
        for name in FILES
    }


def copy_files(wanted: dict[Path, Path]) -> None:
    """Copy those of the files that are there."""
    for source, target in wanted.items():
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
