"""The page of the second study: its questions answered by rule, the use of the block beside every
difference, and what is still to be run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mvl.core.markdown import markdown_table
from mvl.evidence import example_masks, second_study
from mvl.evidence.arms import colour, marker, title
from mvl.evidence.chapter import open_chapter
from mvl.evidence.claims_evidence import UNITS
from mvl.evidence.decision import EQUIVALENT, MARGIN, decided, within
from mvl.evidence.differences import minus
from mvl.evidence.example_cases import common_runs, study_worst
from mvl.evidence.second_study import HYBRID, VIT, Question
from mvl.publish import second_study_table, viewer
from mvl.publish.answer_in_brief import in_brief, unequal_rates
from mvl.publish.positive_control import control, with_blocks
from mvl.publish.second_study_answer import (
    in_points,
    in_units,
    of_pictures,
    on_subject,
    sentence,
    use_in_words,
    what_is_open,
)
from mvl.publish.style import finish, styled, svg
from mvl.study.grid import load_study
from mvl.study.tables import read_cases, read_history

FILE = "second_study.svg"
INTERVENTIONS = {
    "zero": "h = 0",
    "mean": "its mean",
    "shuffled_tokens": "tokens shuffled",
    "attention_off": "attention off",
    "shuffled_weights": "weights shuffled",
    "random_weights": "weights random",
}
"What `usage.csv` calls an intervention, and what the page does."
NO_LAYER = (
    second_study.IDENTITY,
    second_study.V1_NOBLOCK,
    f"{second_study.LLM4SEG}_identity",
)
"Arms whose mappers have nothing between them."


def facts(results: Path, staging: Path) -> dict[str, Any]:
    """Return what the page prints, and write its figure into the staged book."""
    recorded = second_study.recorded_studies(results)
    tables = second_study.recorded_differences(results)
    places = dict.fromkeys((question.study, question.fraction) for question in tables)
    use = {place: second_study.use_of_block(place[0], results, place[1]) for place in places}
    use = {place: rows for place, rows in use.items() if not rows.empty}
    shown = {study: rows for (study, fraction), rows in use.items() if fraction == 1.0}
    if shown:
        (staging / FILE).write_text(svg(difference_against_use(shown)))
    return {
        "second": {
            "sentence": sentence(results, "second_study.md"),
            "in_brief": in_brief(tables, results, "second_study.md"),
            "rates": unequal_rates(tables, results),
            "first_study": first_study(results),
            "control": control(tables, results),
            "open": what_is_open(results),
            "version_1": on_subject("version 1", results),
            "llm4seg": "\n".join(f"- {line}" for line in of_pictures(results)),
            "with_blocks": with_blocks(results),
            "table": second_study_table.summary_tables(tables, results),
            "gain": second_study_table.gain_to_see(tables, results),
            "answer": answer(tables, results),
            "described": described(recorded, results),
            "contrasts": "\n\n".join(contrast_table(*item, results) for item in tables.items()),
            "use": "\n\n".join(use_table(place, rows, results) for place, rows in use.items()),
            "length": length_of_training(recorded, results),
            "seeds": second_study_table.seed_table(recorded, results),
            "gradients": second_study_table.gradient_table(results),
            "again": second_study_table.trained_again(results),
            "progress": progress_table(results),
            "figure": bool(shown),
            "pictures": pictures(results),
        }
    }


def described(recorded: Sequence[str], results: Path) -> str:
    """Return the differences to which the protocol gives no verdict, as Markdown lines; those that
    it does not plan are named as such."""
    said = []
    for question in (*second_study.DESCRIBED, *second_study.AFTERWARDS):
        if question.study not in recorded:
            continue
        where = load_study(question.study).title
        late = ", asked after the runs" if question in second_study.AFTERWARDS else ""
        for row in second_study.differences(question, results).to_dict("records"):
            if not row["hole"] and row["complete"]:
                name = minus(row["system"], row["reference"]).replace("\n", " ")
                said.append(f"- {where}{late}: {name}, {in_units(row)}.")
    return "\n".join(said)


def answer(tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return one sentence a decided contrast, in the protocol's order."""
    said = []
    for question, table in tables.items():
        for row in table.to_dict("records"):
            if row["hole"] or not row["complete"]:
                continue
            word = second_study.outcome(row, results)
            scale, unit, _ = UNITS[question.metric]
            near = f" {within(question.margin, scale, unit)}" if word == EQUIVALENT else ""
            name = minus(row["system"], row["reference"]).replace("\n", " ")
            where = second_study_table.place_in_words(question.study, question.fraction)
            said.append(f"- {where}: {name}, **{in_units(row)}: {word}{near}**.")
    return "\n".join(said) or "No contrast of the second study is complete yet."


def contrast_table(question: Question, table: pd.DataFrame, results: Path) -> str:
    """Return a question's family as Markdown: difference, tests, verdict and pairs of runs."""
    rows = []
    place = (question.study, question.fraction)
    for row in table.to_dict("records"):
        pair = (row["system"], row["reference"])
        # either half of the name leads to the runs of its arm
        name = " minus ".join(
            second_study_table.to_runs(words, place, system, results)
            for words, system in zip(minus(*pair).split("\nminus "), pair, strict=True)
        )
        pairs = f"{row['n_runs']} of {row['planned']}"
        if row["hole"]:
            rows.append([name, "", "", "", "not decided: not run yet", pairs])
            continue
        tests = (
            f"{row[key]:.2g}" if row[key] == row[key] else "" for key in ("p_holm", "p_equivalence")
        )
        found = second_study.outcome(row, results)
        rows.append([name, in_points(row), *tests, found, pairs])
    unit = UNITS[question.metric][1]
    head = f"contrast | {unit}, 95 % interval | p, Holm | p, equivalence | verdict | pairs"
    where = load_study(question.study).title
    return f"**{question.words}** ({where})\n\n{markdown_table(head, 'llllll', rows)}"


def use_table(place: tuple[str, float], rows: pd.DataFrame, results: Path) -> str:
    """Return the use of the block in a study's hybrids as Markdown, means over their runs with a
    share of the training cases; of pictures for each seed, since their contrasts differ in it."""
    lines = []
    by = ["system", "seed"] if place[0] in second_study.OF_PICTURES else ["system"]
    for (system, *seeds), own in rows.groupby(by, sort=False):
        cells = [f"{own[name].mean():+.2f}" if name in own else "" for name in INTERVENTIONS]
        words = title(str(system)) + "".join(f", seed {seed}" for seed in seeds)
        arm = second_study_table.to_runs(words, place, str(system), results)
        lose = int((-own["zero"] >= second_study.USES_POINTS).sum())
        size = f"{own['relative_size'].median():.2f}"
        # Between the mappers alone lies nothing; h is what the first of them gives.
        words = "has no layer" if system in NO_LAYER else use_in_words(own, in_table=True)
        lines.append([arm, len(own), size, *cells, lose, words])
    head = ["arm", "runs", "size of h over x, median", *INTERVENTIONS.values()]
    head += ["runs that lose a point with h = 0", "the network"]
    return (
        f"**{second_study_table.place_in_words(*place)}**: Dice points lost or won when h is"
        " replaced\n\n"
        f"{markdown_table(head, 'l' * len(head), lines)}"
    )


def length_of_training(recorded: Sequence[str], results: Path) -> str:
    """Return how far the hybrid's validation Dice lies from the ViT's over training, mean over
    pairs of runs, as a Markdown table with a row for each study and share of the cases at the
    papers' own rate, and in how many rows the gap still closes in the last quarter, and is wider
    than in the first; empty before a pair is recorded."""
    rows, closing, wider = [], 0, 0
    for study in second_study.AT_PAPERS_RATE:
        if study not in recorded:
            continue
        history = read_history(study, results)
        for fraction in sorted(set(history["fraction"]), reverse=True):
            own = history[history["fraction"] == fraction]
            hybrid, vit = (
                own[own["system"] == arm].pivot_table(
                    index="epoch", columns=["fold", "seed"], values="val_dice"
                )
                for arm in (HYBRID, VIT)
            )
            gap = 100 * (hybrid - vit).dropna(axis=1, how="all")
            if gap.empty:
                continue
            quarters = [part.mean(axis=None) for part in _quarters(gap)]
            closing += abs(quarters[-1]) < abs(quarters[-2])
            wider += abs(quarters[-1]) > abs(quarters[0])
            cells = (f"{value:+z.2f}" for value in quarters)
            epochs = int(own["epoch"].max()) + 1
            place = second_study_table.place_in_words(study, fraction)
            rows.append([place, gap.shape[1], epochs, *cells])
    ordinals = ("first", "second", "third", "last")
    head = ["study", "pairs", "epochs", *(f"{word} quarter" for word in ordinals)]
    if not rows:
        return ""
    said = f"It still closes in {closing} of these {len(rows)} rows"
    said += f", and is wider than in the first quarter in {wider}" if wider else ""
    said += ": what is said of the sign is said of this length of training." if closing else "."
    return f"{markdown_table(head, 'l' * len(head), rows)}\n\n{said}"


def _quarters(gap: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of the first, second, third and last quarter of the epochs."""
    quarter = 4 * gap.index / (gap.index[-1] + 1)
    return [gap[(quarter >= low) & (quarter < low + 1)] for low in range(4)]


def progress_table(results: Path) -> str:
    """Return how far each study is, as Markdown."""
    rows = [
        (f"{load_study(study).title} (`{study}`)", f"{done} of {planned}")
        for study, done, planned in second_study.progress(results)
    ]
    return markdown_table("study | runs done", "ll", rows)


def pictures(results: Path) -> str:
    """Return the viewer of the tuned study's best, median and worst case as HTML; empty where its
    masks are not kept.

    Of the study trained as published the weights are gone, so that it has no masks to show.
    """
    if not (results / second_study.TUNED / example_masks.FILE).is_file():
        return ""
    chapter = open_chapter("qualitative", second_study.TUNED, results)
    chosen = common_runs(chapter.done)
    drawn = example_masks.read_drawn(chapter.folder / example_masks.FILE, chosen, chapter.done)
    if not drawn:
        return ""
    worst = study_worst(chapter.cases, chosen)
    shown = [(one.case, one.fold, one.seed) for one in drawn]
    whole = (worst["case"], worst["fold"], worst["seed"]) in shown
    words = "The worst of them is the worst of all its folds and seeds." if whole else ""
    return viewer.page(drawn, (), chapter.tasks, aside=words)


def first_study(results: Path) -> str:
    """Return the first study's answer in a sentence; empty without its records."""
    from mvl.evidence import stats

    study, task = second_study.FIRST, "Task04_Hippocampus"
    if not (Path(results) / study / "cases.csv").is_file():
        return ""
    cases = read_cases(study, results)
    pairs = ((HYBRID, VIT), (HYBRID, f"{HYBRID}_random"))
    table = stats.table([stats.row(stats.compare(cases, *pair, task)) for pair in pairs])
    alone, random = (
        f"{in_points(row)} Dice points ({decided(row)})" for row in table.to_dict("records")
    )
    return (
        f"The hybrid differed from the ViT alone by {alone}, and from the same network with a"
        f" random layer by {random}."
    )


@styled
def difference_against_use(use: dict[str, pd.DataFrame]) -> Figure:
    """Draw each hybrid run's Dice minus that of the network without a layer beside what it loses
    when its block is silenced, a panel for each study."""
    # Panels below one another, so that a phone shows each of them whole.
    figure = Figure(figsize=(5.2, 2.2 * len(use) + 2.2), layout="constrained")
    axes = figure.subplots(len(use), 1, squeeze=False)[:, 0]
    band = 100 * MARGIN
    named: dict[str, Any] = {}
    for axis, (study, rows) in zip(axes, use.items(), strict=True):
        axis.axhspan(-band, band, color="#E9ECEF", zorder=0)
        axis.axhline(0, lw=0.8, color="#6E7781")
        axis.set_title(load_study(study).title)
        for system, own in rows.dropna(subset=["over_alone"]).groupby("system", sort=False):
            look = {"color": colour(str(system)), "marker": marker(str(system))}
            points = axis.plot(-own["zero"], own["over_alone"], ls="", ms=6, alpha=0.85, **look)
            named.setdefault(title(str(system)), points[0])
    axes[-1].set_xlabel("Dice points lost with h = 0")
    figure.supylabel("Dice points over the network alone", fontsize=10)
    labels = [textwrap.fill(name, 28) for name in named]
    figure.legend(list(named.values()), labels, loc="outside lower left", ncols=2, fontsize=9.5)
    tasks = [task for study in use for task in load_study(study).tasks]
    return finish(figure, tasks)
