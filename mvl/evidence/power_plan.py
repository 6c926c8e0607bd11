"""`mvl plan STUDY --power`: what each contrast of a study can decide, from variances measured
before.

A contrast is one that the second protocol plans for the study, or else one that a chapter tests;
an arm that no chapter compares stands against the study's baseline arm, which is the first of its
first block.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core import run_folder
from mvl.core.config import ConfigError
from mvl.datasets.registry import find_task
from mvl.datasets.splits import NUM_FOLDS
from mvl.evidence import power, run_pairs, second_study
from mvl.evidence.calibration import Components, components
from mvl.evidence.chapter import _foreground, covered, planned_pairs, systems_of
from mvl.evidence.decision import MARGIN
from mvl.evidence.run_pairs import Pairs
from mvl.evidence.second_study import Question
from mvl.evidence.topics import TOPICS, Topic
from mvl.study import tables
from mvl.study.grid import load_study, run_keys

Unit = tuple[int, int]
"(fold, seed)."


@dataclass(frozen=True)
class Contrast:
    """One planned difference: two arms, task, share of the training cases, metric, family."""

    system: str
    "What is tested."
    reference: str
    "What it is tested against."
    task: str
    "Task name."
    fraction: float
    "Share of the training cases."
    metric: str
    "Column of cases.csv."
    family: int
    "Tests that share Holm's adjustment with this one."
    units: tuple[Unit, ...]
    "(fold, seed) at which the study plans both arms."
    margin: float = MARGIN
    "Within it arms are called equivalent."
    stand_ins: tuple[tuple[str, second_study.Pair], ...] = ()
    "Studies and contrasts whose variances are taken where no records have this one, in order."


def contrasts(study: str, against: str | None = None) -> list[Contrast]:
    """Return a study's contrasts, each once with its family.

    With `against`, every arm that shares planned runs with that one is compared with it instead,
    and they are one family.

    Raises:
        ConfigError: no such study, or no such arm in it.
    """
    if against is not None:
        return _against(study, against, set())
    if families := second_study.families_of(study):
        return [contrast for family in families for contrast in contrasts_of(family)]
    found = [c for topic in covered(study) for c in _of_topic(study, TOPICS[topic])]
    named = {name for c in found for name in (c.system, c.reference)}
    baseline = str(load_study(study).grid[0]["systems"][0])
    return found + _against(study, baseline, named)


def contrasts_of(family: Question) -> list[Contrast]:
    """Return the protocol's contrasts of one family, with the folds and seeds of both arms."""
    return [
        Contrast(
            *pair,
            load_study(family.study).tasks[0],
            family.fraction,
            family.metric,
            len(family.contrasts),
            second_study.planned_pairs(family.study, *pair, family.fraction),
            family.margin,
            second_study.stand_ins(family),
        )
        for pair in family.contrasts
    ]


def _of_topic(study: str, topic: Topic) -> list[Contrast]:
    """Return a chapter's contrasts; those of one metric are its family, over tasks and shares."""
    plan = load_study(study)
    planned = set(systems_of(plan, topic))
    pairs = [pair for pair in topic.contrasts if set(pair) <= planned]
    tasks = dict.fromkeys([*plan.tasks, *(t for b in plan.grid for t in b.get("tasks", ()))])
    shares = topic.compared or topic.fractions
    axes = list(itertools.product(pairs, tasks, shares))
    places = {
        (pair, task, share): units
        for pair, task, share in axes
        if (units := planned_pairs(plan, topic, *pair, task, share))
    }
    return [
        Contrast(*pair, task, share, metric, len(places), units)
        for metric in topic.metrics
        for (pair, task, share), units in places.items()
    ]


def _against(study: str, reference: str, left_out: set[str]) -> list[Contrast]:
    """Return every other arm, of those not left out, against the reference, as one family."""
    units: dict[str, dict[tuple[str, float], set[Unit]]] = {}
    for task, system, share, fold, seed in run_keys(study):
        units.setdefault(system, {}).setdefault((task, share), set()).add((fold, seed))
    if reference not in units:
        raise ConfigError(f"study {study}: no arm {reference!r}; it has {', '.join(units)}")
    shared = {
        (system, *place): tuple(sorted(have & units[reference].get(place, set())))
        for system, places in units.items()
        for place, have in places.items()
        if system != reference and system not in left_out
    }
    kept = {place: both for place, both in shared.items() if both}
    return [
        Contrast(system, reference, task, fraction, "dice", len(kept), both)
        for (system, task, fraction), both in kept.items()
    ]


def recorded_pairs(contrast: Contrast, cases: pd.DataFrame) -> Pairs | None:
    """Return what is recorded of the contrast's arms, on its own task or else on another one."""
    for task in dict.fromkeys([contrast.task, *cases["task"]]):
        arms = (contrast.system, contrast.reference)
        try:
            return run_pairs.pair(cases, *arms, task, contrast.fraction, contrast.metric)
        except run_pairs.StatsError:
            continue
    return None


def measured(contrast: Contrast, records: dict[str, pd.DataFrame]) -> tuple[Components, str] | None:
    """Return the variances of the first study that has two folds of the contrast, or of one that
    stands in for it, and what they are of; studies on the contrast's own data go before others."""
    own = (contrast.system, contrast.reference)
    candidates = [*((source, own) for source in records), *contrast.stand_ins]
    on_other_data = [load_study(source).tasks[0] != contrast.task for source, _ in candidates]
    for _, (source, pair) in sorted(zip(on_other_data, candidates), key=lambda one: one[0]):
        if source not in records:
            continue
        arms = replace(contrast, system=pair[0], reference=pair[1])
        pairs = recorded_pairs(arms, records[source])
        found = components(pairs) if pairs is not None else None
        if found is not None and found.folds > 1:
            return found, source if pair == own else f"{source}: {pair[0]} - {pair[1]}"
    return None


def recorded_cases(sources: Sequence[str], results_dir: Path) -> dict[str, pd.DataFrame]:
    """Return each study's table of cases; a study without records is left out."""
    out = {}
    for source in (load_study(word).name for word in sources):
        if (results_dir / source / "cases.csv").is_file():
            out[source] = _foreground(tables.read_cases(source, results_dir))
    return out


def designs_as_numbers(words: Sequence[str]) -> list[Unit]:
    """Return (folds, seeds) of designs written as `5x2`.

    Raises:
        ConfigError: another form, no fold or no seed, or more folds than a split has.
    """
    out = []
    for word in words:
        form = re.fullmatch(r"(\d+)x(\d+)", word)
        if not form or not 1 <= int(form[1]) <= NUM_FOLDS or int(form[2]) < 1:
            raise ConfigError(f"{word!r} is no design: write folds x seeds, 5x2, up to 10 folds")
        out.append((int(form[1]), int(form[2])))
    return out


def power_plan(
    study: str,
    sources: Sequence[str] | None = None,
    sd: float | None = None,
    designs: Sequence[str] | None = None,
    families: Sequence[int] | None = None,
    against: str | None = None,
    results_dir: Path | None = None,
) -> dict[str, Any]:
    """Return what each contrast of a study can decide, one row for each contrast and design.

    Variances come from the sources in order (by default the study's own records, and those that
    stand in for a study of the protocol); where none has the contrast in two folds, `sd` (Dice
    points, of a fold's mean difference) stands in. Without either the row says so. Designs and
    families default to the study's own.

    Raises:
        ConfigError: no such study, arm or design, or an sd that is not positive.
    """
    if sd is not None and not sd > 0:
        raise ConfigError(f"--sd must be positive, got {sd}")
    records = recorded_cases(
        sources or second_study.sources_of(study),
        Path(results_dir or run_folder.records_dir()),
    )
    shapes = designs_as_numbers(designs or ())
    rows = []
    planned = contrasts(study, against)
    for contrast in planned:
        found = measured(contrast, records)
        sizes = families or sorted({1, contrast.family})
        for folds, seeds in shapes or [own_design(contrast)]:
            rows.append(_row(contrast, found, sd, folds, seeds, sizes))
    margin = min((contrast.margin for contrast in planned), default=MARGIN)
    folds_used = sorted({row["folds"] for row in rows})
    limits = {str(k): _points(power.largest_sd(k, margin)) for k in folds_used}
    return {
        "study": study,
        "variances": list(records),
        "margin": 100 * margin,
        "power": power.POWER,
        "largest_sd_for_equivalence": limits,
        "rows": rows,
    }


def sees(question: Question, pair: second_study.Pair, results_dir: Path) -> float:
    """Return the true difference, in points, that a contrast of the protocol finds with a power of
    80 % at Holm's hardest step of its family, by its own study's variances; NaN before it has
    them."""
    contrast = next(c for c in contrasts_of(question) if (c.system, c.reference) == pair)
    own = replace(contrast, stand_ins=())
    found = measured(own, recorded_cases([question.study], results_dir))
    row = _row(own, found, None, *own_design(own), [own.family])
    return row["detectable"][str(own.family)] if row["detectable"] else math.nan


def own_design(contrast: Contrast) -> Unit:
    """Return how many folds, and seeds in each, the study plans for the contrast."""
    folds = {fold for fold, _ in contrast.units}
    return len(folds), max(1, len(contrast.units) // len(folds))


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _row(
    contrast: Contrast,
    found: tuple[Components, str] | None,
    sd: float | None,
    folds: int,
    seeds: int,
    sizes: Sequence[int],
) -> dict[str, Any]:
    """Return one row; its numbers are in points of the metric, and None where nothing is known."""
    cases = max(1, round(find_task(contrast.task).num_cases / NUM_FOLDS))
    spread = None if sd is None else sd / 100
    highest = spread
    source = "assumed"
    if found is not None:
        variances, source = found
        spread = power.fold_sd(variances, seeds, cases)
        highest = spread * power.upper_factor(variances.folds)
    row: dict[str, Any] = {
        "system": contrast.system,
        "reference": contrast.reference,
        "task": contrast.task,
        "fraction": contrast.fraction,
        "metric": contrast.metric,
        "folds": folds,
        "seeds": seeds,
        "cases": cases,
        "family": contrast.family,
        "source": source if spread else "not measured",
        "measured_folds": found[0].folds if found else None,
        "measured_seeds": found[0].seeds if found else None,
    }
    if not spread or not highest:
        return row | dict.fromkeys(("sd", "sd_upper", "detectable", "equivalence", "at_upper"))
    return row | {
        "sd": 100 * spread,
        "sd_upper": 100 * highest,
        "detectable": {str(m): _points(power.detectable(spread, folds, m)) for m in sizes},
        "equivalence": power.power_of_equivalence(spread, folds, contrast.margin),
        "at_upper": power.power_of_equivalence(highest, folds, contrast.margin),
    }


def power_as_text(value: dict[str, Any]) -> str:
    """Return the plan's power as a table for a terminal, with what its columns mean."""
    head = f"{'difference':<58}{'design':>7}{'sd':>7}{'(upper)':>9}{'sees':>20}{'equivalent':>12}"
    lines = [head + f"{'(upper)':>9}  variances"]
    lines += [_line(row) for row in value["rows"]]
    limits = value["largest_sd_for_equivalence"]
    known = [f"{limit:.2f} ({k} folds)" for k, limit in limits.items() if limit is not None]
    margin, share = value["margin"], value["power"]
    return "\n".join(
        [
            *lines,
            (
                "sd: of a fold's mean difference at that design, in points; upper: its 80 % upper"
                " limit."
            ),
            f"sees: true difference that the corrected t-test finds in {share:.0%} of studies, in",
            "points, by size of Holm's family (its hardest step).",
            (
                "equivalent: share of studies that call arms without any difference equal within"
                f" {margin:g}"
            ),
            f"point; {share:.0%} needs an sd of at most {', '.join(known) or 'nothing: one fold'}.",
        ]
    )


def _line(row: dict[str, Any]) -> str:
    share = "" if row["fraction"] == 1 else f" {row['fraction']:.0%}"
    metric = "" if row["metric"] == "dice" else f" {row['metric']}"
    words = f"{row['system']} - {row['reference']}{share}{metric}"
    start = f"{words:<58}{row['folds']}x{row['seeds']:<3}".ljust(65)
    if row["folds"] == 1:
        return f"{start}  one fold: nothing is tested"
    if row["sd"] is None:
        return f"{start}  not measured: name records by --variances, or give --sd"
    seen = ", ".join(f"{size}: {value:.2f}" for size, value in row["detectable"].items())
    source = row["source"]
    if row["measured_folds"]:
        source += f" {row['measured_folds']}x{row['measured_seeds']}"
    spread = f"{row['sd']:>7.2f}{row['sd_upper']:>9.2f}"
    return f"{start}{spread}{seen:>20}{row['equivalence']:>12.0%}{row['at_upper']:>9.0%}  {source}"
