"""What the book's pages say by rule: the chapters that it shows, and the facts of each page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvl.core import run_folder
from mvl.core.errors import MvlError
from mvl.core.markdown import markdown_table
from mvl.evidence.chapter import Chapter, covered, open_chapter
from mvl.publish import run_links
from mvl.publish.notebooks import list_notebooks
from mvl.study.grid import load_study
from mvl.study.tables import read_external

PUBLISHED = ("hippocampus", "busi")
"Studies of the published book, the landing page's first; shown from the committed records alone."


class BookError(MvlError, RuntimeError):
    """The book could not be built, or would ask for something from the network; the message names
    the page."""


def repository_url() -> str:
    """The repository's public address, from pyproject.toml."""
    from mvl.study.links import repository_url as read

    return read()


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


def facts(staging: Path, studies: Sequence[str], results: Path) -> dict[str, Any]:
    """What the pages say by rule: the first study's main chapter, a summary of each further one;
    writes the landing page's figure."""
    from mvl.bench import gpu_record, loader, overhead
    from mvl.bench.determinism import determinism_table
    from mvl.evidence import differences, faults, learning_rates, mutants, rounding, yardsticks
    from mvl.publish import (
        audit_page,
        cards,
        chapter_page,
        claims_page,
        figures_differences,
        findings,
        page_figures,
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
    pairs = differences.differences(chapter)
    hero = figures_differences.paired_differences(pairs, chapter.holes)
    (staging / "landing.svg").write_text(svg(hero, findings.pairs(pairs)))
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
        "runs_page": run_links.page_name(studies[0]),
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
        **page_figures.facts(staging, studies, results),
        **audit_page.facts(studies, results, repository_url()),
        # the published ledger asks the second study too, which has no chapters of its own
        "claims": claims_page.facts(
            () if tuple(studies) == PUBLISHED else studies, results, list(plan(studies)), staging
        ),
        **cards.facts(_tasks(studies, results)),
    }


def _tasks(studies: Sequence[str], results: Path) -> list[str]:
    """Return the tasks that the shown studies train on, or test their runs with."""
    from mvl.publish.run_pages import shown_studies

    return [
        task
        for study in shown_studies(studies, results)
        for task in (*load_study(study).tasks, *set(read_external(study, results)["task"]))
    ]


def _folded(table: str) -> str:
    """Return the long table of a study folded under words."""
    return f":::{{dropdown}} Every difference of this study\n{table}\n:::"


def statistics(studies: Sequence[str], results: Path) -> dict[str, str]:
    """Say how often each procedure errs at the variances of each study's runs; every test."""
    from mvl.evidence import differences, yardsticks
    from mvl.publish import calibration_page, protocol_power

    tests = {s: differences.all_differences(s, results) for s in studies}
    power = "\n\n".join(
        f"### Power: {load_study(s).title}\n\n{_folded(p)}"
        for s, t in tests.items()
        if not t.empty and (p := yardsticks.power_table(t))
    )
    return {
        **protocol_power.facts(),
        "power": power or "No contrast has two folds yet.",
        "calibration": "\n\n".join(
            calibration_page.page(open_notebook(main_notebook(s), s, results)) for s in studies
        ),
        "tests": "\n\n".join(
            f"### Tests: {load_study(s).title}\n\n{_folded(calibration_page.tests_table(t))}"
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


def reproduction(study: str, results: Path, published: bool, only: str = "") -> str:
    """What was recorded of a study, as Markdown: each arm's mean beside the one shown, with
    tolerance and verdict; of quantities with `only` in their name."""
    from mvl.study.reproduction import check

    what = (
        "the committed records" if published else "this machine's runs beside the committed records"
    )
    rows = [
        c
        for c in check(study, results, run_folder.records_dir())
        if isinstance(c.recorded, float) and only in c.quantity
    ]
    if not rows:
        return f"Nothing is recorded of the study `{study}` yet."

    def number(value: float | str | None) -> str:
        return f"{value:.5g}" if isinstance(value, float) else ""

    cells = [
        [
            c.quantity,
            *map(number, (c.recorded, c.rerun)),
            number(c.tolerance) or "bitwise",
            c.verdict,
        ]
        for c in rows
        if not c.quantity.startswith("n_test")
    ]
    head = "quantity | recorded | shown here | tolerance | verdict"
    return f"Study `{study}`, {what}:\n\n{markdown_table(head, 'lrrrl', cells)}"
