"""Links of the book to its runs: addresses of a run, an arm or a table within the book."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIX = ".txt"
"Added to every copy: browsers show text, but save a .yaml or .csv."
RUN = re.compile(
    r"\[([^\[\]]*)\]\((?:[^()\s]*/)?([\w.%-]+)/runs/([\w.%-]+)/([\w.%-]+?)"
    r"(?:/(fraction-[\w.]+_fold-\d+_seed-\d+)(?:/([\w.]+))?|#fraction-([\w.]+))\)"
)
TABLE = re.compile(
    r"\[([^\[\]]*)\]\((?:[^()\s]*/)?([\w.%-]+)/((?:runs|cases|history|tuning|activations|masks|external)\.csv)\)"
)
"""Markdown links whose address ends in a run, a run's file or an arm of a study; or in a study's
table."""


def anchor(task: str, system: str, fraction: float | str, place: str = "") -> str:
    """The id of an arm's rows, or with `place` (`fold-0_seed-1`) of a run's row, on its study's
    page."""
    return re.sub(
        r"[^\w-]+", "-", f"{task}-{system}-{float(fraction):g}{'-' + place if place else ''}"
    )


def page_name(study: str) -> str:
    """Name of a study's page."""
    return f"runs_{Path(study).stem}"


def copied(study: str, run: str, name: str) -> str:
    """Address, from the book's top, of the copy of a run's file."""
    return f"records/{study}/runs/{run}/{name}{SUFFIX}"


def book_links(text: str, studies: Sequence[str], up: str = "") -> str:
    """Markdown with each link to a run, arm or table of these studies turned to its place in the
    book; `up` leads to the book's top."""
    known = {Path(study).stem for study in studies}

    def run(found: re.Match[str]) -> str:
        words, study, task, system, place, name, fraction = found.groups()
        if study not in known:
            return found[0]
        if name:
            return link(words, f"{up}{copied(study, f'{task}/{system}/{place}', name)}")
        share, where = place.removeprefix("fraction-").split("_", 1) if place else (fraction, "")
        return link(words, f"{up}{page_name(study)}.html#{anchor(task, system, share, where)}")

    def table(found: re.Match[str]) -> str:
        return (
            link(found[1], f"{up}records/{found[2]}/{found[3]}{SUFFIX}")
            if found[2] in known
            else found[0]
        )

    return TABLE.sub(table, RUN.sub(run, text))


def link(words: str, address: str) -> str:
    """An HTML link: Markdown's own are looked up among the book's sources, where these pages and
    files are not."""
    words = re.sub(r"`([^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", words)
    return f'<a href="{address}">{words}</a>'


def link_outputs(notebook: dict[str, Any], studies: Sequence[str]) -> None:
    """`book_links` on every Markdown output of an executed notebook, in place."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if text := output.get("data", {}).get("text/markdown"):
                output["data"]["text/markdown"] = book_links("".join(text), studies, "../")
