"""The book of one study: notebooks executed, facts inserted by rule, HTML that needs no network; nothing of another study gets in."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from mvl import runs
from mvl.config import ROOT
from mvl.notebooks import FOLDER, list_notebooks, run_notebook, write_notebook

SOURCES = ROOT / "book"
PUBLISHED = "hippocampus"
"Study of the published book, shown from the committed records alone."
COPIED = ("*.md", "_config.yml", "_toc.yml", "references.bib")
COLAB_BADGE = re.compile(r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/[^)]*\)\]\(([^)]*)\)")


class BookError(RuntimeError):
    """The book could not be built, or would ask for something from the network; the message names the page."""


def repository_url() -> str:
    """The repository's public address, from pyproject.toml."""
    from mvl.report import repository_url as read

    return read()


def build_book(study: str | None = None, results_dir: Path | None = None, out_dir: Path | None = None) -> Path:
    """Build the book of a study's results; returns its `index.html`.

    Without a study: the published one, from the committed records, into `book/_build/html`.
    With one: from `results_dir` (default `data/runs`) into `book/_build/<study>`.

    Raises:
        BookError: the book builder warns, or a page would ask the network for something.
        NotebookError: a notebook does not run to its end.
    """
    shown = study or PUBLISHED
    results = runs.records_dir() if study is None else Path(results_dir or runs.default_results_dir()).absolute()
    target = Path(out_dir) if out_dir else SOURCES / "_build" / (study or "html")
    staging = SOURCES / "_build" / f"{shown}-src"
    stage(staging, shown, results)
    html = run_jupyter_book(staging)
    if asked := sorted(set(network_requests(html))):
        raise BookError("the built pages would ask the network: " + "; ".join(asked[:10]))
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(html, target)
    return target / "index.html"


def stage(staging: Path, study: str, results: Path) -> None:
    """Make the sources that Jupyter Book builds: pages with their facts, executed notebooks, configuration."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for pattern in COPIED:
        for path in SOURCES.glob(pattern):
            shutil.copy(path, staging)
    for folder in ("_static", "_vendor"):
        shutil.copytree(SOURCES / folder, staging / folder)
    execute_notebooks(staging / "notebooks", study, results)
    fill_pages(staging, facts(staging, study, results))
    config = yaml.safe_load((staging / "_config.yml").read_text())
    config["repository"]["url"] = repository_url()
    (staging / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def execute_notebooks(target: Path, study: str, results: Path) -> None:
    """Execute every notebook into `target`: two at a time when no run is left to train, else one after another."""
    from mvl.studies import missing_runs

    target.mkdir(parents=True)
    published = results.resolve() == runs.records_dir().resolve()
    workers = 2 if published or not missing_runs(study, results) else 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(execute_one, name, target, study, results) for name in list_notebooks()]
        for job in jobs:
            job.result()


def execute_one(name: str, target: Path, study: str, results: Path) -> None:
    """Execute one notebook for the book, without its set-up cells; its badge, an image from the network, becomes a plain link."""
    place = str(results.relative_to(ROOT)) if results.is_relative_to(ROOT) else str(results)
    path = run_notebook(name, {"study": study, "results_dir": place}, target / f"{name}.ipynb", FOLDER)
    notebook = json.loads(COLAB_BADGE.sub(r"[Open in Colab](\1)", path.read_text()))
    for tags in (cell["metadata"].get("tags", []) for cell in notebook["cells"]):
        tags += ["remove-cell"] if {"setup", "parameters"} & set(tags) else []
    write_notebook(path, notebook)


def facts(staging: Path, study: str, results: Path) -> dict[str, Any]:
    """What the pages say by rule; writes the landing page's figure into the staging."""
    from mvl import figures, report

    chapter = report.open_chapter("llm_hybrid", study, results)
    baseline = report.open_chapter("baseline", study, results)
    hero = figures.paired_differences(report.differences(chapter), chapter.holes)
    (staging / "landing.svg").write_text(figures.svg(hero))
    return {"repository": repository_url(), "study": study, "title": report.load_study(study).title, "tasks": ", ".join(chapter.tasks),
            "smoke": chapter.smoke, "published": chapter.published, "answer": report.answer(chapter), "baseline": report.answer(baseline),
            "results": report.results_table(chapter), "colab": report.colab_url("02_llm_hybrid"), "claim": report.claim("llm_hybrid"),
            "check": reproduction(study, results), "holes": chapter.holes}


def reproduction(study: str, results: Path) -> str:
    """Markdown table of the recorded arm means beside those shown, with tolerance and verdict."""
    from mvl.reproduce import check

    rows = [c for c in check(study, results, runs.records_dir()) if isinstance(c.recorded, float)]
    if not rows:
        return f"Nothing is recorded of the study `{study}` yet."
    number = lambda value: "" if value is None else f"{value:.5g}"
    lines = [f"| {c.quantity} | {number(c.recorded)} | {number(c.rerun)} | {number(c.tolerance) or 'bitwise'} | {c.verdict} |"
             for c in rows if not c.quantity.startswith("n_test")]
    return "\n".join(["| quantity | recorded | shown here | tolerance | verdict |", "|---|---:|---:|---:|---|", *lines])


def fill_pages(staging: Path, values: dict[str, Any]) -> None:
    """Put the facts in place of `{{ name }}` in each page.

    Raises:
        BookError: a page asks for a fact that there is none of.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    for page in staging.glob("*.md"):
        try:
            page.write_text(environment.from_string(page.read_text()).render(values))
        except jinja2.TemplateError as error:
            raise BookError(f"book/{page.name}: {error}; known facts: {', '.join(values)}") from error


def run_jupyter_book(staging: Path) -> Path:
    """Build the staged sources with every warning an error; returns the folder of pages.

    Raises:
        BookError: with the builder's last lines.
    """
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(staging), "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=staging)
    html = staging / "_build" / "html"
    if done.returncode or not (html / "index.html").is_file():
        lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"WARNING|ERROR|rror:", line)]
        raise BookError("jupyter-book build failed:\n" + "\n".join(lines[-20:] or (done.stdout + done.stderr).splitlines()[-20:]))
    return html


class Requests(HTMLParser):
    """Collects the addresses that a browser would fetch for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the source of a script, image, frame or style; a canonical link or a hyperlink is not fetched."""
        values = dict(attrs)
        sources = [values.get("src"), values.get("srcset"), values.get("poster"), values.get("data") if tag == "object" else None]
        if tag == "link" and values.get("rel") not in ("canonical", "search", "next", "prev", "index", "author"):
            sources.append(values.get("href"))
        self.asked += [f"<{tag}> {s}" for s in sources if s and re.match(r"(https?:)?//", s)]


def network_requests(html: Path) -> Iterator[str]:
    """`<page>: <tag> <address>` for each thing that the built pages and styles would fetch from the network."""
    for page in html.rglob("*.html"):
        parser = Requests()
        parser.feed(page.read_text(errors="replace"))
        yield from (f"{page.relative_to(html)}: {address}" for address in parser.asked)
    for style in html.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", style.read_text(errors="replace")):
            yield f"{style.relative_to(html)}: {address}"
