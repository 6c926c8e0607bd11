"""The card under a chapter's title: its answer in a few lines, before any figure or code."""

from __future__ import annotations

import re
from typing import Any

from mvl.core.run_folder import records_dir
from mvl.evidence.chapter import Chapter
from mvl.evidence.decision import EQUIVALENT, verdict
from mvl.evidence.differences import OVERLAPS, differences
from mvl.evidence.learning_rates import brief
from mvl.evidence.topics import TOPICS
from mvl.publish import second_study_answer
from mvl.publish.book_facts import PUBLISHED
from mvl.publish.chapter_page import means, sentence

HOLE = "not yet recorded"
"The word for a planned difference without a pair of finished runs."
SUBJECTS = {
    "few_shot": "few-shot",
    "lora_ablation": "the mappers",
    "version_1": "version 1",
    "llm4seg": "pictures",
    "comparators": "peers",
}
"What the second study calls a chapter's subject, by its topic."
INTERVAL = re.compile(r"\(95 % interval (\S+) to ([^\s,;]+)[,;].*\)")
"An interval with all that the ledger says of it, which the card leaves to the page below."


def card(chapter: Chapter, about: str = "") -> str:
    """Return the chapter's answer as Markdown: one line for each verdict, the first difference of
    it with its interval, and how far the others reach.

    about: what the differences are taken over, where a page has several cards.
    """
    lead = f"**{sentence(chapter)}** " if chapter.smoke else ""
    if chapter.done.empty:
        return f"{lead}No run of this chapter is recorded in the study `{chapter.study}` yet."
    table = differences(chapter)
    first = TOPICS[chapter.topic].metrics[0]
    rows = [row for row in table.to_dict("records") if row["metric"] == first]
    if not any(row["n_runs"] for row in rows):
        return f"{lead}**Answer.** {means(chapter)}"
    metric = OVERLAPS[first] if len(TOPICS[chapter.topic].metrics) > 1 else "Dice"
    over = f" {about}" if about else ""
    head = f"{lead}**Answer.** Differences in {metric} points{over}, with 95 % intervals:"
    groups = _by_verdict(rows, metric)
    lines = [f"- {_line(word, members)}" for word, members in groups.items()]
    if any(word.startswith(EQUIVALENT) for word in groups):
        lines += ["", brief(chapter.results_dir, chapter.study)]
    return "\n".join([head, "", *lines]).rstrip()


def of_second_study(chapter: Chapter) -> str:
    """Return what the second study says of a chapter of the first, from the committed records;
    nothing for another study's chapter."""
    if chapter.study not in PUBLISHED:
        return ""
    if subject := SUBJECTS.get(chapter.topic):
        said = second_study_answer.on_subject(subject, records_dir())
        head = "**The [second study](../second_study.html)**:\n\n"
        return f"{head}{said}" if said else ""
    said = second_study_answer.sentence(records_dir(), "../second_study.html")
    return f"**The second study**, which can see a block that matters. {said}" if said else ""


def _by_verdict(rows: list[dict[str, Any]], metric: str) -> dict[str, list[dict[str, Any]]]:
    """Group the rows by what is said of them, in the order of the questions."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        word = verdict(row, metric) if row["n_runs"] else HOLE
        groups.setdefault(word, []).append(row)
    return groups


def _line(word: str, rows: list[dict[str, Any]]) -> str:
    """Return one verdict with its first difference in full and the reach of the others."""
    name, *why = word.split(", ", 1)
    head = f"**{name[:1].upper()}{name[1:]}**: "
    end = f". {why[0][:1].upper()}{why[0][1:]}." if why else ""
    if word == HOLE:
        return head + _count(len(rows), "difference")
    first, *others = rows
    low, middle, high = (100 * first[key] for key in ("low", "difference", "high"))
    what = " ".join(str(first["comparison"]).split())
    what = what.split(": ", 1)[-1]
    words = f"{head}{what} **{middle:+z.2f}** [{low:+z.2f}, {high:+z.2f}]"
    if not others:
        return words + end
    values = sorted(100 * row["difference"] for row in others)
    reach = f"{values[0]:+z.2f}"
    if len(others) > 1:
        reach += f" to {values[-1]:+z.2f}"
    return f"{words}; {_count(len(others), 'more difference')}, {reach}{end}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def of_claims(chapter: Chapter, name: str) -> str:
    """Return the verdicts on a chapter's claims as Markdown, for a chapter without differences of
    its own; nothing where its study is no evidence.

    name: the chapter's name in the ledger.
    """
    from mvl.evidence.claims_ledger import ledger

    entries = ledger(chapter.results_dir, (chapter.study,))
    judged = [entry for entry in entries if entry.claim.chapter == name and entry.verdict]
    if not judged:
        return f"**Answer.** {sentence(chapter)}" if chapter.smoke else means(chapter)
    lines = []
    for entry in judged:
        assert entry.verdict is not None
        short = entry.claim.short
        numbers = INTERVAL.sub(r"[\1, \2]", entry.verdict.parts[0])
        lines.append(f"- {short[:1].upper()}{short[1:]}: **{entry.word}**. {numbers}.")
    head = "**Answer.** What the paper's claims come to here:"
    return "\n".join([head, "", *lines])
