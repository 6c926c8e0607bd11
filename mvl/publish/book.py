"""The book: each notebook executed with the study that owns it, facts inserted by rule, HTML that
needs no network.

A book of one study has nothing of another; the published book has each notebook from the published
study that names it, and with a rerun of a study a page of its own for that.
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

from mvl.core import files, run_folder
from mvl.core.config import ROOT
from mvl.publish import rerun_page, run_pages
from mvl.publish.article import print_article, write_article
from mvl.publish.book_facts import PUBLISHED, BookError, facts, plan, repository_url
from mvl.publish.glossary_links import link_terms
from mvl.publish.inline_figures import inline_figures
from mvl.publish.notebooks import FOLDER, run_notebook, write_notebook
from mvl.publish.records_archive import write_archive
from mvl.publish.style import CAPTION
from mvl.study import tables
from mvl.study.status import missing_runs

SOURCES = ROOT / "book"
COPIED = ("*.md", "article/*.md", "_config.yml", "_toc.yml", "references.bib")
COLAB_BADGE = re.compile(
    r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/[^)]*\)\]\(([^)]*)\)"
)


def build_book(
    study: str | None = None,
    results_dir: Path | None = None,
    out_dir: Path | None = None,
    rerun: str | None = None,
) -> Path:
    """Build the book of a study's results; returns its `index.html`.

    Without a study: the published ones, from the committed records, into `book/_build/html`. With
    one: its notebooks alone, from `results_dir` (default `data/runs`) into `book/_build/<study>`.
    With a `rerun`: the published ones, and a page on that study's runs in `results_dir`, into
    `book/_build/rerun-<study>`.

    Raises:
        BookError: the book builder warns, or a page would ask the network for something.
        NotebookError: a notebook does not run to its end.
    """
    own = Path(results_dir or run_folder.default_results_dir()).absolute()
    results = run_folder.records_dir() if study is None else own
    name = Path(study).stem if study else None
    if rerun:
        name = f"rerun-{Path(rerun).stem}"
    target = Path(out_dir) if out_dir else SOURCES / "_build" / (name or "html")
    staging = SOURCES / "_build" / f"{name or 'published'}-src"
    stage(staging, (study,) if study else PUBLISHED, results)
    if rerun:
        rerun_page.add(staging, rerun, own)
    html = run_jupyter_book(staging)
    article = write_article(staging, html)
    if asked := sorted(set(network_requests(html))):
        raise BookError("the built pages would ask the network: " + "; ".join(asked[:10]))
    inline_figures(html)
    link_terms(html)
    if article:
        print_article(html)
    write_archive(run_folder.records_dir(), html)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(staging / "records", html / "records")
    files.swap(html, target)
    return target / "index.html"


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
    if not run_folder.is_records(results):
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
    published = run_folder.is_records(results)
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
    """Execute one notebook for the book, without its set-up cells and with what was set folded; its
    badge, an image from the network, becomes a plain link, and captions go to their figures."""
    place = str(results.relative_to(ROOT)) if results.is_relative_to(ROOT) else str(results)
    path = run_notebook(
        name, {"study": study, "results_dir": place}, target / f"{name}.ipynb", FOLDER
    )
    notebook = json.loads(COLAB_BADGE.sub(r"[Open in Colab](\1)", path.read_text()))
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        tags += ["remove-cell"] if {"setup", "parameters"} & set(tags) else []
        tags += ["hide-input"] if "injected-parameters" in tags else []
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if o.get("metadata") != CAPTION]
    write_notebook(path, notebook)


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
