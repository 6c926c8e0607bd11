"""The book: each notebook executed with the study that owns it, facts inserted by rule, HTML that
needs no network.

A book of one study has nothing of another; the published book has each notebook from the published
study that names it.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from mvl.bench.determinism import determinism_table
from mvl.core import run_folder
from mvl.core.config import ROOT
from mvl.core.errors import MvlError
from mvl.evidence.chapter import Chapter, covered, open_chapter
from mvl.publish import run_pages
from mvl.publish.notebooks import FOLDER, list_notebooks, run_notebook, write_notebook
from mvl.study import tables
from mvl.study.grid import load_study
from mvl.study.status import missing_runs

SOURCES = ROOT / "book"
PUBLISHED = ("hippocampus", "busi")
"Studies of the published book, the landing page's first; shown from the committed records alone."
COPIED = ("*.md", "_config.yml", "_toc.yml", "references.bib")
COLAB_BADGE = re.compile(
    r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/[^)]*\)\]\(([^)]*)\)"
)


class BookError(MvlError, RuntimeError):
    """The book could not be built, or would ask for something from the network; the message names
    the page."""


def repository_url() -> str:
    """The repository's public address, from pyproject.toml."""
    from mvl.study.links import repository_url as read

    return read()


def build_book(
    study: str | None = None, results_dir: Path | None = None, out_dir: Path | None = None
) -> Path:
    """Build the book of a study's results; returns its `index.html`.

    Without a study: the published ones, from the committed records, into `book/_build/html`. With
    one: its notebooks alone, from `results_dir` (default `data/runs`) into `book/_build/<study>`.

    Raises:
        BookError: the book builder warns, or a page would ask the network for something.
        NotebookError: a notebook does not run to its end.
    """
    results = (
        run_folder.records_dir()
        if study is None
        else Path(results_dir or run_folder.default_results_dir()).absolute()
    )
    name = Path(study).stem if study else None
    target = Path(out_dir) if out_dir else SOURCES / "_build" / (name or "html")
    staging = SOURCES / "_build" / f"{name or 'published'}-src"
    stage(staging, (study,) if study else PUBLISHED, results)
    html = run_jupyter_book(staging)
    if asked := sorted(set(network_requests(html))):
        raise BookError("the built pages would ask the network: " + "; ".join(asked[:10]))
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(staging / "records", html / "records")
    shutil.move(html, target)
    return target / "index.html"


def owned_notebooks(study: str) -> list[str]:
    """Notebooks that the study's YAML names, in the book's order; of a study that names none, those
    whose block is in its grid.

    Raises:
        BookError: it names one that there is not.
    """
    known, named = list_notebooks(), load_study(study).notebooks
    if unknown := sorted(set(named) - set(known)):
        raise BookError(
            f"study {study}: no notebook {unknown[0]!r}; its `notebooks` are some of"
            f" {', '.join(known)}"
        )
    return [name for name in known if (name in named if named else name[3:] in covered(study))]


def plan(studies: Sequence[str]) -> dict[str, str]:
    """Notebook -> the first of the studies that owns it, in the book's order."""
    owners = {name: study for study in reversed(studies) for name in owned_notebooks(study)}
    return dict(sorted(owners.items()))


def stage(staging: Path, studies: Sequence[str], results: Path) -> None:
    """Make the sources that Jupyter Book builds: pages with their facts, executed notebooks,
    configuration."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for pattern in COPIED:
        for path in SOURCES.glob(pattern):
            shutil.copy(path, staging)
    for folder in ("_static", "_vendor"):
        shutil.copytree(SOURCES / folder, staging / folder)
    shown = plan(studies)
    execute_notebooks(staging / "notebooks", shown, results)
    if results.resolve() != run_folder.records_dir().resolve():
        for study in studies:
            tables.collect(study, results)
    fill_pages(staging, facts(staging, studies, results))
    keep_contents(staging / "_toc.yml", list(shown), run_pages.add_runs(staging, studies, results))
    config = yaml.safe_load((staging / "_config.yml").read_text())
    config["repository"]["url"] = repository_url()
    (staging / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def keep_contents(path: Path, notebooks: Sequence[str], added: Sequence[str] = ()) -> None:
    """Leave only these notebooks in a table of contents, and put the added pages (of runs) at its
    end; a part without any page goes."""
    contents = yaml.safe_load(path.read_text())

    kept = {f"notebooks/{name}" for name in notebooks}
    for part in contents["parts"]:
        part["chapters"] = [
            chapter
            for chapter in part["chapters"]
            if not chapter["file"].startswith("notebooks/") or chapter["file"] in kept
        ]
    contents["parts"].append(
        {"caption": "Every run", "chapters": [{"file": name} for name in added]}
    )
    contents["parts"] = [part for part in contents["parts"] if part["chapters"]]
    path.write_text(yaml.safe_dump(contents, sort_keys=False))


def execute_notebooks(target: Path, shown: dict[str, str], results: Path) -> None:
    """Execute notebooks, each with its study, into `target`: two at a time when no run is left to
    train, else one after another."""
    target.mkdir(parents=True)
    published = results.resolve() == run_folder.records_dir().resolve()
    workers = (
        2
        if published or not any(missing_runs(study, results) for study in set(shown.values()))
        else 1
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [
            pool.submit(execute_one, name, target, study, results) for name, study in shown.items()
        ]
        for job in jobs:
            job.result()


def execute_one(name: str, target: Path, study: str, results: Path) -> None:
    """Execute one notebook for the book, without its set-up cells; its badge, an image from the
    network, becomes a plain link."""
    place = str(results.relative_to(ROOT)) if results.is_relative_to(ROOT) else str(results)
    path = run_notebook(
        name, {"study": study, "results_dir": place}, target / f"{name}.ipynb", FOLDER
    )
    notebook = json.loads(COLAB_BADGE.sub(r"[Open in Colab](\1)", path.read_text()))
    for tags in (cell["metadata"].get("tags", []) for cell in notebook["cells"]):
        tags += ["remove-cell"] if {"setup", "parameters"} & set(tags) else []
    write_notebook(path, notebook)


def facts(staging: Path, studies: Sequence[str], results: Path) -> dict[str, Any]:
    """What the pages say by rule: the first study's main chapter, a summary of each further one;
    writes the landing page's figure."""
    from mvl.bench import gpu_record, loader, overhead
    from mvl.evidence import differences, faults, learning_rates, mutants, rounding, yardsticks
    from mvl.publish import (
        audit_page,
        cards,
        chapter_page,
        claims_page,
        figures_differences,
        paper_words,
        plan_page,
        reported_page,
        second_study_page,
        systems_page,
    )
    from mvl.publish.style import svg
    from mvl.study import links

    name = main_notebook(studies[0])
    chapter = open_notebook(name, studies[0], results)
    hero = figures_differences.paired_differences(differences.differences(chapter), chapter.holes)
    (staging / "landing.svg").write_text(svg(hero))
    return {
        "repository": repository_url(),
        "study": studies[0],
        "title": load_study(studies[0]).title,
        "tasks": ", ".join(chapter.tasks),
        "smoke": chapter.smoke,
        "published": chapter.published,
        "answer": chapter_page.answer(chapter),
        "chapter": name,
        "chapters": list(plan(studies)),
        "results": chapter_page.results_table(chapter),
        "colab": links.colab_url(name),
        "arms": chapter_page.arm_links(chapter),
        "caution": learning_rates.caution(results),
        "margin": yardsticks.margin(chapter),
        "claim": paper_words.claim(chapter.topic),
        "others": [f for s in studies[1:] if (f := further(s, results))],
        "holes": chapter.holes,
        "check": "\n\n".join(reproduction(s, results, chapter.published) for s in studies),
        "systems": systems_page.systems_table(),
        "determinism": determinism_table(),
        "bench_machine": bench_machine(),
        "bf16_steps": bf16_steps(),
        "runs_page": run_pages.page_name(studies[0]),
        "statistics": statistics(studies, results),
        **faults.facts(),
        **rounding.facts(),
        **plan_page.page(),
        **gpu_record.page(),
        **overhead.facts(),
        **loader.facts(),
        **reported_page.facts(studies, results),
        **second_study_page.facts(run_folder.records_dir(), staging),
        **mutants.facts(),
        **audit_page.facts(studies, results, repository_url()),
        "claims": claims_page.facts(studies, results, list(plan(studies)), staging),
        **cards.facts([task for study in studies for task in load_study(study).tasks]),
    }


def statistics(studies: Sequence[str], results: Path) -> dict[str, str]:
    """Say how often each procedure errs at the variances of each study's runs; every test."""
    from mvl.evidence import calibration, differences, yardsticks

    tests = {s: differences.all_differences(s, results) for s in studies}
    power = "\n\n".join(
        f"### Power of `{s}`\n\n{p}"
        for s, t in tests.items()
        if not t.empty and (p := yardsticks.power_table(t))
    )
    return {
        "power": power or "No contrast has two folds yet.",
        "calibration": "\n\n".join(
            calibration.page(open_notebook(main_notebook(s), s, results)) for s in studies
        ),
        "tests": "\n\n".join(
            f"### Tests of `{s}`\n\n{calibration.tests_table(t)}"
            for s, t in tests.items()
            if not t.empty
        ),
    }


def main_notebook(study: str) -> str:
    """The notebook that the landing page shows: the hybrid's where the study owns it, else its
    first, else the hybrid's with its holes."""
    owned = owned_notebooks(study)
    return "02_llm_hybrid" if "02_llm_hybrid" in owned or not owned else owned[0]


def open_notebook(name: str, study: str, results: Path) -> Chapter:
    """The chapter that a notebook opens."""
    return open_chapter(name[3:], study, results)


def further(study: str, results: Path) -> dict[str, Any] | None:
    """What the landing page says of a further study, once a run of it is recorded."""
    from mvl.publish import chapter_page, paper_words

    name = main_notebook(study)
    chapter = open_notebook(name, study, results)
    if chapter.done.empty:
        return None
    return {
        "study": study,
        "title": load_study(study).title,
        "notebook": name,
        "claim": paper_words.claim(chapter.topic),
        "answer": chapter_page.answer(chapter),
        "results": chapter_page.results_table(chapter),
    }


def bench_machine() -> str:
    """`, on <machine> (...)` for the page of systems, a machine after the other; nothing where no
    bench is recorded."""
    from mvl.bench.record import machine_words, machines
    from mvl.bench.systems import whole_record

    found = [machine_words(each) for each in machines(whole_record())]
    return (
        f", on {'; or '.join(found)} (each row of data/bench.json names its machine)"
        if found
        else ""
    )


def bf16_steps() -> str:
    """The table of training steps in bf16 on CPUs."""
    from mvl.bench.record import bf16_table
    from mvl.bench.systems import whole_record

    return bf16_table(whole_record())


def reproduction(study: str, results: Path, published: bool) -> str:
    """What was recorded of a study, as Markdown: each arm's mean beside the one shown, with
    tolerance and verdict."""
    from mvl.study.reproduction import check

    what = (
        "the committed records" if published else "this machine's runs beside the committed records"
    )
    rows = [
        c for c in check(study, results, run_folder.records_dir()) if isinstance(c.recorded, float)
    ]
    if not rows:
        return f"Nothing is recorded of the study `{study}` yet."

    def number(value: float | str | None) -> str:
        return f"{value:.5g}" if isinstance(value, float) else ""

    lines = [
        f"| {c.quantity} | {number(c.recorded)} | {number(c.rerun)} |"
        f" {number(c.tolerance) or 'bitwise'} | {c.verdict} |"
        for c in rows
        if not c.quantity.startswith("n_test")
    ]
    head = [
        f"Study `{study}`, {what}:",
        "",
        "| quantity | recorded | shown here | tolerance | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    return "\n".join([*head, *lines])


def fill_pages(staging: Path, values: dict[str, Any]) -> None:
    """Put the facts in place of `{{ name }}` in each page.

    Raises:
        BookError: a page asks for a fact that there is none of.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    for page in staging.glob("*.md"):
        try:
            page.write_text(environment.from_string(page.read_text()).render(values))
        except jinja2.TemplateError as error:
            raise BookError(
                f"book/{page.name}: {error}; known facts: {', '.join(values)}"
            ) from error


def run_jupyter_book(staging: Path) -> Path:
    """Build the staged sources with every warning an error; returns the folder of pages.

    Raises:
        BookError: with the builder's last lines.
    """
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(staging),
        "-W",
        "-n",
        "--keep-going",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=staging)
    html = staging / "_build" / "html"
    if done.returncode or not (html / "index.html").is_file():
        lines = [
            line
            for line in (done.stdout + done.stderr).splitlines()
            if re.search(r"WARNING|ERROR|rror:", line)
        ]
        raise BookError(
            "jupyter-book build failed:\n"
            + "\n".join(lines[-20:] or (done.stdout + done.stderr).splitlines()[-20:])
        )
    return html


class Requests(HTMLParser):
    """Collects the addresses that a browser would fetch for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the source of a script, image, frame or style; a canonical link or a hyperlink is
        not fetched."""
        values = dict(attrs)
        sources = [
            values.get("src"),
            values.get("srcset"),
            values.get("poster"),
            values.get("data") if tag == "object" else None,
        ]
        if tag == "link" and values.get("rel") not in (
            "canonical",
            "search",
            "next",
            "prev",
            "index",
            "author",
        ):
            sources.append(values.get("href"))
        self.asked += [f"<{tag}> {s}" for s in sources if s and re.match(r"(https?:)?//", s)]


def network_requests(html: Path) -> Iterator[str]:
    """`<page>: <tag> <address>` for each thing that the built pages and styles would fetch from the
    network."""
    for page in html.rglob("*.html"):
        parser = Requests()
        parser.feed(page.read_text(errors="replace"))
        yield from (f"{page.relative_to(html)}: {address}" for address in parser.asked)
    for style in html.rglob("*.css"):
        for address in re.findall(
            r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)",
            style.read_text(errors="replace"),
        ):
            yield f"{style.relative_to(html)}: {address}"
