"""The claims ledger as the book shows it: the figure of every verdict at a glance, the landing
page's sentences and the page of claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvl.core.markdown import markdown_table
from mvl.evidence import claims_ledger, claims_text
from mvl.evidence.arms import title
from mvl.evidence.claims_evidence import within
from mvl.evidence.claims_ledger import PAPERS, Entry
from mvl.evidence.claims_rules import RULES
from mvl.evidence.claims_verdicts import (
    CONTRADICTED,
    NOT_REPRODUCED,
    REPRODUCED,
    SHARED,
    UNTESTABLE,
    number,
)
from mvl.evidence.decision import UNDECIDED, WITHDRAWN
from mvl.evidence.second_study import FIRST
from mvl.publish import charts_claims, figure_reported, reported_page
from mvl.publish.style import INK, VERDICTS, finish, styled
from mvl.study.grid import load_study
from mvl.study.links import run_address

FILE = "claims.svg"
REPORTED_FILE = "reported_measured.svg"
"The figures beside the pages that show them."
TABLE_HEAD = (
    "verdict | claim | first difference, 95 % interval | use of the layer | what the paper's own"
    " numbers can carry | chapter"
)
REPORTED = {
    "dice": "Dice",
    "nsd": "NSD",
    "hd95": "HD95",
    "val_dice": "validation Dice",
    "iou_percent": "IoU, percent,",
    "f1_percent": "F1, percent,",
    "comparisons_better_of_60": "better, of 60 comparisons,",
    "comparisons_p_below_0.05_of_60": "with p below 0.05, of 60,",
}
"Columns of data/paper_reported.csv in words."
INTERVALS = (
    "Intervals are those of the corrected t-test over folds, which the rule uses; with one fold"
    " they are over its cases alone."
)
MEANINGS = {
    "reproduced": "the test says what the claim says, and the difference is not equivalent to none",
    "shared by controls": (
        "the test says what the claim says, and controls without the language model have it too"
    ),
    "not reproduced": (
        "the difference is equivalent to none, too small for what is reported, or measured too"
        " weakly to contradict"
    ),
    "contradicted": "the test says the opposite",
    "moot": "it explains a gain that is not there",
    UNDECIDED: "runs are missing or too few, or interval or test leaves it open",
    WITHDRAWN: "an arm was trained at a rate that does not suit it; it waits for tuned runs",
    "not testable here": "no record of this study could decide it",
}


@styled
def at_a_glance(entries: Sequence[Entry], tasks: Sequence[str] = ()) -> Figure:
    """One line per claim by paper: what is claimed, and the verdict as a word, a marker and a
    colour."""
    judged = [entry for entry in entries if entry.verdict]
    if not judged:
        figure = Figure(figsize=(5.2, 1.2), layout="constrained")
        figure.text(
            0.5,
            0.6,
            "This study gives no verdict on any claim.",
            ha="center",
            va="center",
            color=INK,
        )
        return finish(figure, tasks)
    groups = list(claims_text.groups(judged).items())
    lines = len(judged) + 1.5 * len(groups)
    figure = Figure(figsize=(5.2, 0.225 * lines + 0.1), layout="constrained")
    axis, y = figure.subplots(), 0.0
    for name, rows in groups:
        axis.text(0, y + 0.35, name, weight="bold", fontsize=9.5, va="center", color=INK)
        for place, entry in enumerate(rows, start=1):
            _glance_row(axis, y + place + 0.35, entry)
        y += len(rows) + 1.5
    axis.set(xlim=(0, 1), ylim=(y - 0.3, -0.3))
    axis.set_axis_off()
    return finish(figure, tasks)


def _glance_row(axis: Axes, y: float, entry: Entry) -> None:
    ink, marker = VERDICTS[entry.word]
    filled = entry.word in (REPRODUCED, SHARED, NOT_REPRODUCED, CONTRADICTED)
    axis.axhline(y + 0.5, color="#E6E8EB", linewidth=0.6)
    axis.text(0.012, y, entry.claim.short, fontsize=9.5, va="center", color=INK)
    axis.plot(
        0.685,
        y,
        marker=marker,
        color=ink,
        markersize=6.5,
        markerfacecolor=ink if filled else "none",
        markeredgewidth=1.5,
    )
    axis.text(
        0.715,
        y,
        entry.word,
        fontsize=9.5,
        va="center",
        color=ink,
        weight="bold" if filled else "normal",
    )


def summary(entries: Sequence[Entry]) -> str:
    """How many claims there are, of which verdict, and how many verdicts rest on the same runs."""
    return f"{claims_text.totals(entries)} {claims_text.one_finding(entries)}".rstrip()


def headline(entries: Sequence[Entry], results: Path | None = None) -> str:
    """A Markdown table of the main claims: claim, verdict, and each difference behind it with
    interval, n and what it means; with the folder of results, links to its runs."""
    rows = []
    for e in entries:
        if not (e.claim.main and e.verdict):
            continue
        paper = PAPERS[e.claim.paper].split(",")[0]
        whose = f"{paper}, implied" if e.claim.implied else paper
        found = "<br>".join(differences(e, results))
        rows.append([f"{whose}: {e.claim.short}", f"**{e.word}**", found])
    head = "what is claimed | here | difference, 95 % interval"
    return markdown_table(head, "lll", rows) if rows else ""


def differences(entry: Entry, results: Path | None = None) -> list[str]:
    """Each difference behind a verdict: its interval, what it is of, what it means, n, and links to
    the runs of its arms where their folder is given."""
    verdict, lines = entry.verdict, []
    assert verdict is not None
    for found, part in zip(verdict.numbers, verdict.parts):
        value, _, pairs = claims_text.short(found).rpartition(", ")
        means = part.removeprefix(number(found)).lstrip(": ")
        n = found.cases
        traces = linked_arms(found.runs, Path(entry.study).stem, results) if results else []
        shown = f"; runs: {', '.join(traces)}" if traces else ""
        lines.append(f"**{value or 'no run'}**, {found.words}: {means} ({pairs}; {n}{shown})")
    return lines


def linked_arms(names: Sequence[str], stem: str, results: Path) -> list[str]:
    """A Markdown link to each arm of these runs, in its words, with its number of runs."""
    return [
        f"[{title(system)}{share(f)}, {n} run{'s' * (n > 1)}]"
        f"({run_address(results, f'{stem}/runs/{task}/{system}#fraction-{f}')})"
        for (task, system, f), n in arms(names).items()
    ]


def table(entries: Sequence[Entry], results: Path, shown: Sequence[str]) -> str:
    """A Markdown table of the claims by paper: verdict, claim, first difference, use of the layer,
    and its chapter where that is in the book."""
    blocks = []
    for name, members in claims_text.groups(entries).items():
        rows = [
            [
                e.word,
                f"{{ref}}`{e.claim.short} <{label(e)}>`",
                claims_text.brief(e),
                claims_text.use(e, results),
                reported_page.cell(e.claim.id),
                chapter(e, shown),
            ]
            for e in members
        ]
        blocks.append(f"**{name}**\n\n{markdown_table(TABLE_HEAD, 'llllll', rows)}")
    return "\n\n".join(blocks)


def elsewhere(entry: Entry) -> str:
    """What the claim's other studies say: the word and the first difference of each."""
    said = [
        f"{load_study(study).title} (`{study}`): {verdict.word},"
        f" {claims_text.short(verdict.numbers[0])}"
        for study, verdict in entry.elsewhere
    ]
    return f"*In other studies*: {'; '.join(said)}." if said else ""


def label(entry: Entry) -> str:
    """The anchor of a claim's section."""
    return f"claim-{entry.claim.id.replace('_', '-')}"


def chapter(entry: Entry, shown: Sequence[str]) -> str:
    """A link to the claim's chapter; its bare name where the book has it not."""
    name = entry.claim.chapter
    return f"[{name[:2]}](notebooks/{name}.ipynb)" if name in shown else name[:2]


def sections(entries: Sequence[Entry], results: Path, shown: Sequence[str]) -> str:
    """The claims one by one, by paper."""
    blocks = []
    for name, members in claims_text.groups(entries).items():
        blocks += [f"## {name}", *(section(e, results, shown) for e in members)]
    return "\n\n".join(blocks)


def section(entry: Entry, results: Path, shown: Sequence[str]) -> str:
    """One claim: its verdict in a line, and folded below it where it stands, numbers and runs, how
    it is decided and what it would take."""
    claim, verdict = entry.claim, entry.verdict
    tag = {"none": "not stated"}.get(claim.confidence, f"confidence {claim.confidence}")
    parts = [
        f"{claim.claim} *({claim.place}; {tag}.)*{reported(entry)}",
    ]
    if verdict:
        words = f"**{verdict.word[:1].upper()}{verdict.word[1:]}.** "
        rest = verdict.sentence.removeprefix("; ".join(verdict.parts)).lstrip(".; ")
        listed = "\n".join(f"- {part}" for part in verdict.parts)
        parts.append(
            f"{words}{rest[:1].upper()}{rest[1:]}\n\n{listed}"
            if len(verdict.parts) > 1
            else words + verdict.sentence
        )
    if claim.rule != "untestable":
        first, *_ = (RULES[claim.rule].__doc__ or "").split("\n\n")
        rule = " ".join(first.split())
        parts.append(
            f"*Decided by*: {claim.support} Rule `{claim.rule}`:"
            f" {rule[:1].lower()}{rule[1:]}{margin(entry)}"
        )
    parts.append(
        f"*It would take*: {claim.takes}"
        if entry.word == UNTESTABLE
        else f"*Beyond this test*: {claim.takes}"
    )
    if entry.study == FIRST and verdict and verdict.runs:
        parts.append(
            "*Of its study*: at the first study's rate a network may ignore its layer, and no run"
            " recorded whether it did: the verdict is one on the network, not on the layer."
        )
    if entry.needs:
        parts.append(f"*What would decide it*: {entry.needs}")
    if said := elsewhere(entry):
        parts.append(said)
    if verdict and (traces := runs(entry, results)):
        parts.append(traces)
    parts.append(f"Chapter: {chapter(entry, shown)}.")
    first = claims_text.brief(entry)
    found = f"{entry.word[:1].upper()}{entry.word[1:]}{f': {first}' if first else ''}"
    body = "\n\n".join(parts)
    return (
        f"({label(entry)})=\n### {claim.short[:1].upper()}{claim.short[1:]}\n\n"
        f":::{{dropdown}} {found}\n:class-container: claim\n\n{body}\n:::"
    )


def margin(entry: Entry) -> str:
    """The margin of the claim in the unit of what it compares."""
    if entry.claim.rule == "every_metric":
        return ""
    claim = entry.claim
    words = within(claim.margin, claim.measured_in)
    return f" Margin {words.removeprefix('within ')}: {claim.bound.reason}."


def reported(entry: Entry) -> str:
    """The numbers that the paper reports for it."""
    words = [
        f"{system} {REPORTED.get(metric, metric)} **{value:g}**"
        for (_, system, metric), value in zip(
            entry.claim.reported, claims_ledger.reported_numbers(entry.claim)
        )
    ]
    return f" Reported: {', '.join(words)}." if words else ""


def runs(entry: Entry, results: Path) -> str:
    """Links to the arms whose runs the verdict was computed from, and how many planned runs of each
    are missing."""
    assert entry.verdict is not None
    absent = arms(entry.verdict.missing)
    links = linked_arms(entry.verdict.runs, Path(entry.study).stem, results)
    holes = [f"{title(system)}{share(f)}, {n}" for (task, system, f), n in absent.items()]
    return " ".join(
        [f"Runs: {'; '.join(links)}."] * bool(links)
        + [f"Missing: {'; '.join(holes)}."] * bool(holes)
    )


def share(fraction: str) -> str:
    """` at 10 %`, or nothing for the whole data."""
    return "" if not fraction or float(fraction) == 1 else f" at {float(fraction):.0%}"


def arms(names: Sequence[str]) -> dict[tuple[str, str, str], int]:
    """(task, system, fraction) of runs and how many each has; a name that is not a run's stands as
    a system."""
    out: dict[tuple[str, str, str], int] = {}
    for name in names:
        parts = name.split("/runs/")[-1].split("/")
        key = (
            (parts[0], parts[1], parts[2].removeprefix("fraction-").split("_")[0])
            if len(parts) == 3
            else ("", name, "")
        )
        out[key] = out.get(key, 0) + 1
    return out


def facts(
    studies: Sequence[str], results: Path, shown: Sequence[str], folder: Path
) -> dict[str, Any]:
    """What the pages say of the claims; writes the figure into `folder`."""
    from mvl.publish.style import svg

    entries = claims_ledger.ledger(results, studies)
    judged = dict.fromkeys(entry.study for entry in entries)
    tasks = [task for study in judged for task in load_study(study).tasks]
    (folder / FILE).write_text(svg(at_a_glance(entries, tasks)))
    (folder / REPORTED_FILE).write_text(svg(figure_reported.reported_and_measured(entries)))
    return {
        "judged": any(e.verdict for e in entries),
        "summary": summary(entries),
        "headline": headline(entries, results),
        "table": table(entries, results, shown),
        "sections": sections(entries, results, shown),
        "words": markdown_table("word | meaning", "ll", list(MEANINGS.items())),
        "chart": charts_claims.ledger(entries, results),
        "alt": f"Verdict on each claim. {summary(entries)}",
        "intervals": INTERVALS,
    }
