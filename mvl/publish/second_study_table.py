"""One table of the second study: the hybrid minus each arm, by study, with the use of the layer and
what each design could have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.markdown import markdown_table
from mvl.core.run_folder import GRADIENTS_FILE
from mvl.evidence import power_plan, second_study
from mvl.evidence.arms import title
from mvl.evidence.claims_evidence import UNITS
from mvl.evidence.claims_ledger import load_claims
from mvl.evidence.second_study import ALONE, HYBRID, VIT, Question
from mvl.study.grid import load_study, run_keys
from mvl.study.links import run_address
from mvl.study.tables import read_runs

OPEN = "incomplete"
"What stands in a cell whose planned runs are not all done."


def summary_tables(tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return a table as Markdown for each paper's network of which a contrast is complete."""
    found = (summary_table(network, tables, results) for network in ALONE)
    return "\n\n".join(table for table in found if table)


def complete_places(
    network: str, tables: dict[Question, pd.DataFrame]
) -> dict[tuple[str, float], dict[str, dict[Any, Any]]]:
    """Return the differences of the network with the layer by study and share of the data, and
    within each by reference, where any of them is complete."""
    places: dict[tuple[str, float], dict[str, dict[Any, Any]]] = {}
    for question, table in tables.items():
        for row in table.to_dict("records"):
            if row["system"] == network:
                place = places.setdefault((question.study, question.fraction), {})
                place[row["reference"]] = row
    return {
        place: rows
        for place, rows in places.items()
        if any(row["complete"] for row in rows.values())
    }


def summary_table(network: str, tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return the table as Markdown: a row for each arm that the network with the layer is compared
    with, a column for each study and share of the data of which anything is recorded."""
    columns = complete_places(network, tables)
    if not columns:
        return ""
    arms = list(dict.fromkeys(arm for rows in columns.values() for arm in rows))
    heads = [_head(*place, network, results) for place in columns]
    body = [
        [
            f"minus {title(arm)}",
            *(_cell(place, rows.get(arm), results) for place, rows in columns.items()),
        ]
        for arm in arms
    ]
    use = (second_study.use_in_numbers(study, network, results, f) for study, f in columns)
    body.append(["use of the layer, Dice points", *use])
    alone = (rows.get(ALONE[network]) for rows in columns.values())
    body.append(["could be seen with 80 %", *(seen(row, results) for row in alone)])
    metric = next(iter(next(iter(columns.values())).values()))["metric"]
    scores = (f"{mean_score(*place, ALONE[network], metric, results):.3f}" for place in columns)
    _, unit, _ = UNITS[metric]
    body.append([f"{title(ALONE[network])} by itself: {unit.removesuffix(' points')}", *scores])
    return markdown_table([f"{title(network)}, {unit}", *heads], "l" * (len(heads) + 1), body)


def _head(study: str, fraction: float, network: str, results: Path) -> str:
    """Return the study's title, which leads to the network's runs in it."""
    return to_runs(place_in_words(study, fraction), (study, fraction), network, results)


def place_in_words(study: str, fraction: float) -> str:
    """Return the study's title, with the share of the training cases where it is not all."""
    share = "" if fraction == 1.0 else f", {100 * fraction:g} % of the data"
    return f"{load_study(study).title}{share}"


def to_runs(words: str, place: tuple[str, float], system: str, results: Path) -> str:
    """Return words as a Markdown link to an arm's runs in a study at a share of the data."""
    study, fraction = place
    arm = f"{study}/runs/{load_study(study).tasks[0]}/{system}#fraction-{fraction!r}"
    return f"[{words}]({run_address(results, arm)})"


def _cell(place: tuple[str, float], row: dict[Any, Any] | None, results: Path) -> str:
    """Return a difference in points with its interval and word; nothing where none is
    planned."""
    if row is None:
        return ""
    if not row["complete"]:
        return OPEN
    middle, low, high = (f"{100 * row[key]:+.2f}" for key in ("difference", "low", "high"))
    linked = to_runs(middle, place, row["reference"], results)
    found = f"{linked} [{low}, {high}] {second_study.outcome(row, results)}"
    return f"{found}{_other_runs(row, results)}"


def _other_runs(row: dict[Any, Any], results: Path) -> str:
    """Return what silencing the layer changes in the runs behind a difference, where these are
    other runs than those beside the network alone, of which the table's last rows speak."""
    contrast = (row["study"], row["system"])
    pairs, main = (
        second_study.planned_pairs(*contrast, reference, row["fraction"])
        for reference in (row["reference"], ALONE[row["system"]])
    )
    if set(pairs) <= set(main):
        return ""
    use = second_study.use_beside(*contrast, row["reference"], results, row["fraction"])
    return f" (other runs; in these h = 0: {use['zero'].mean():+.2f})"


def seen(row: dict[Any, Any] | None, results: Path) -> str:
    """Return the true difference from the network alone that the design finds."""
    if row is None or not row["complete"]:
        return ""
    place, pair = (row["study"], row["fraction"]), (row["system"], row["reference"])
    question = next(
        one
        for one in second_study.QUESTIONS
        if (one.study, one.fraction) == place and pair in one.contrasts
    )
    found = power_plan.sees(question, pair, results)
    return "" if math.isnan(found) else f"{found:.2f} points"


def mean_score(study: str, fraction: float, system: str, metric: str, results: Path) -> float:
    """Return the mean score of an arm over its finished runs; NaN without one."""
    runs = read_runs(study, results)
    own = (runs["system"] == system) & (runs["fraction"] == fraction)
    return float(runs.loc[own & (runs["state"] == "done"), metric].mean())


def gain_to_see(tables: dict[Question, pd.DataFrame], results: Path) -> str:
    """Return the paper's gain, scaled to what the ViT of each complete study leaves to gain, beside
    what that design sees, in a sentence."""
    share = next(claim.reported_gain for claim in load_claims() if claim.id == "mean_dice")
    said = []
    for question, table in tables.items():
        row = table.iloc[0].to_dict()
        of_all = question.fraction == 1 and row["complete"]
        if of_all and (row["system"], row["reference"]) == (HYBRID, VIT):
            room = 1 - mean_score(question.study, 1.0, VIT, "dice", results)
            title_of = load_study(question.study).title
            said.append(
                f"{100 * share * room:.1f} points where {seen(row, results)} are seen ({title_of})"
            )
    if not said:
        return ""
    return (
        f"The paper reports that the hybrid wins {100 * share:.0f} % of what its ViT leaves to"
        f" gain; of what ours leaves, that would be {'; '.join(said)}."
    )


def gradient_table(results: Path) -> str:
    """Return how far the training cases' gradients agree, as Markdown: each arm's cosine after some
    epochs of training, mean over folds (least and greatest fold); nothing before a run recorded
    it."""
    study = second_study.GRADIENTS
    found = sorted((results / study / "runs").glob(f"*/*/*/{GRADIENTS_FILE}"))
    if not found:
        return ""
    rows = pd.concat([pd.read_csv(path) for path in found])
    cells = rows.groupby(["system", "epochs_done"])["mean_cosine"].agg(["mean", "min", "max"])
    words = cells.apply(lambda c: f"{c['mean']:.3f} ({c['min']:.2f} to {c['max']:.2f})", axis=1)
    shown = words.unstack("epochs_done")
    folds = rows.groupby("system")["fold"].nunique()
    planned = dict.fromkeys(system for _, system, *_ in run_keys(study))
    body = [
        [
            to_runs(title(arm), (study, 1.0), arm, results),
            folds[arm],
            *shown.loc[arm],
        ]
        for arm in planned
        if arm in shown.index
    ]
    heads = [f"after epoch {epoch}" for epoch in shown.columns]
    table = markdown_table(["arm", "folds", *heads], "l" + "r" * (len(heads) + 1), body)
    means = cells["mean"].unstack("epochs_done")
    if not {HYBRID, VIT} <= set(means.index):
        return table
    above = int((means.loc[HYBRID] > means.loc[VIT]).sum())
    said = f"The hybrid's mean is above the ViT's after {above} of these {len(heads)} epochs."
    return f"{table}\n\n{said}"


def trained_again(results: Path) -> str:
    """Return how the runs that the study of gradients trained again differ from those that they
    repeat, in a sentence; empty before there are any."""
    if not (results / second_study.GRADIENTS / "runs.csv").is_file():
        return ""
    key = ["system", "fold", "seed"]
    again, first = (
        runs[(runs["state"] == "done") & (runs["fraction"] == 1.0)].set_index(key)["dice"]
        for runs in (
            read_runs(s, results) for s in (second_study.GRADIENTS, second_study.PUBLISHED)
        )
    )
    both = 100 * pd.concat({"again": again, "first": first}, axis=1).dropna()
    if not {HYBRID, VIT} <= set(both.index.get_level_values("system")):
        return ""
    apart = both["again"] - both["first"]
    means = both.groupby("system").mean()
    gains = means.loc[HYBRID] - means
    words = {
        VIT: "the ViT alone",
        second_study.SHUFFLED: "itself with the weights shuffled",
        second_study.IDENTITY: "its mappers alone",
    }
    said = [
        f"from {words[arm]} by {gains.at[arm, 'again']:+.2f} in place of"
        f" {gains.at[arm, 'first']:+.2f}"
        for arm in words
        if arm in gains.index
    ]
    return (
        f"These {len(both)} runs repeat runs of the study as published on another kind of"
        f" processor, where sums are rounded otherwise: their Dice differs by {apart.min():+.2f} to"
        f" {apart.max():+.2f} points, and on these folds the hybrid differs {', '.join(said)}."
    )


def seed_table(studies: Sequence[str], results: Path) -> str:
    """Return what another seed does to an arm's score, as Markdown: a row for each study, share of
    the data and network whose folds were trained with two seeds; nothing where none was.

    The standard deviation is that of a run's mean score between the seeds of one fold, pooled over
    folds and over the arms that have them.
    """
    rows = []
    for study in studies:
        runs = read_runs(study, results)
        done = runs[runs["state"] == "done"]
        metric = next(q.metric for q in second_study.QUESTIONS if q.study == study)
        for fraction, own in done.groupby("fraction", sort=False):
            folds = own.groupby(["system", "fold"], sort=False)[metric].agg(["var", "count"])
            several = folds[folds["count"] > 1]
            if several.empty:
                continue
            freedom = several["count"] - 1
            spread = math.sqrt((several["var"] * freedom).sum() / freedom.sum())
            arms = len(several.index.unique("system"))
            unit = UNITS[metric][1]
            cells = [place_in_words(study, float(fraction)), arms, len(several)]
            rows.append([*cells, f"{100 * spread:.2f} {unit}"])
    head = "study | arms | arms x folds | standard deviation between two seeds"
    return markdown_table(head, "lrrr", rows) if rows else ""
