"""The page on what the papers' own numbers can carry, and the same in a few words per claim."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mvl.core.markdown import markdown_table
from mvl.evidence import reported_evidence
from mvl.evidence.arms import caveat, title
from mvl.evidence.chapter import _foreground
from mvl.evidence.decision import LEVEL
from mvl.evidence.reported import paper_value
from mvl.evidence.reported_evidence import (
    CNN,
    COMPARISONS,
    DEEPSEEK,
    HYBRID,
    LLAMA,
    Comparison,
    Point,
)

NOTHING = "no number recovered"
"What stands beside a claim of which no number was recovered."
METRICS = 6
"Metrics of MedVisionLlama's comparisons."
MEASURED = (
    ("medvisionllama_v3", "vit_baseline", "dice"),
    ("medvisionllama_v3", "unet", "dice"),
    ("llm4seg", "cmunext", "jaccard"),
    ("llm4seg", "llm4seg_t", "jaccard"),
)
"Pairs of arms whose scores of the same cases were measured here."


def probability(value: float) -> str:
    """Return a probability in words short enough for a table."""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def span(points: Sequence[Point]) -> str:
    """Return the smallest and the largest probability of a grid."""
    values = [point.probability for point in points]
    low = probability(min(values))
    high = probability(max(values))
    return low if low == high else f"{low} to {high}"


def numbers_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns after the first are set to the right."""
    return markdown_table(head, "l" + "r" * (len(head) - 1), rows)


def false_claims_table(papers: Sequence[str]) -> str:
    """Return the table of every comparison of these papers at every point of its grid."""
    chosen = [comparison for comparison in COMPARISONS if comparison.paper in papers]
    correlations = list(dict.fromkeys(p.correlation for p in reported_evidence.grid(chosen[0])))
    rows = [row for comparison in chosen for row in false_claim_rows(comparison)]
    head = ["comparison", "gain", "n", "s of each", *(f"r = {r:g}" for r in correlations)]
    return numbers_table(head, rows)


def false_claim_rows(comparison: Comparison) -> list[list[str]]:
    """Return one row a pair of standard deviations: the probability at each correlation.

    A standard deviation that is assumed stands in brackets.
    """
    sides = (comparison.ours, comparison.theirs)
    given = [reported_evidence.one(comparison, side)[1] > 0 for side in sides]
    gain = f"{reported_evidence.gain(comparison):+.3g}"
    rows = []
    points = itertools.groupby(
        reported_evidence.grid(comparison), key=lambda p: (p.sd_ours, p.sd_theirs)
    )
    for sds, group in points:
        shown = [f"{sd:g}" if known else f"({sd:g})" for sd, known in zip(sds, given)]
        chances = [probability(point.probability) for point in group]
        rows.append([comparison.words, gain, str(comparison.n), ", ".join(shown), *chances])
    return rows


def test_sizes() -> dict[str, int]:
    """Return how many cases the test set of each Decathlon task has, by the released split."""
    rows = reported_evidence.numbers("P1", "test sets", "test_cases")
    return {str(task): int(n) for task, n in zip(rows["task"], rows["value"])}


def reach_table() -> str:
    """Return the table of the smallest p that each task's test set can reach."""
    rows = []
    for task, n in test_sizes().items():
        smallest = reported_evidence.smallest_p(n)
        shown = f"{smallest:.3g}" if smallest >= 0.001 else "< 0.001"
        rows.append([f"`{task}`", str(n), shown, "yes" if smallest < LEVEL else "**no**"])
    return numbers_table(["task", "test cases", "smallest p", "p < 0.05 possible"], rows)


def reported_counts() -> tuple[int, int, int]:
    """Return how many comparisons there are, can be significant, and are reported so."""
    sizes = list(test_sizes().values())
    rows = reported_evidence.numbers("P1", "comparisons", "comparisons_p_below_0.05_of_60")
    claimed = int(rows["value"].iloc[0])
    return METRICS * len(sizes), reported_evidence.in_reach(sizes, METRICS), claimed


def layers(table: str, kind: str, metric: str = "iou_percent") -> list[float]:
    """Return the values of LLM4Seg's layer figure in the order of the layers."""
    return reported_evidence.numbers("P2", table, metric, f"{kind} layer")["value"].tolist()


def layers_table() -> str:
    """Return the table of what picking the best layer gives by itself."""
    frozen = layers(LLAMA, "frozen")
    sets = {
        "Llama, frozen, layers 1 to 16": frozen,
        "Llama, frozen, layers 2 to 16": frozen[1:],
        "Llama, trained, layers 1 to 16": layers(LLAMA, "trained"),
        "DeepSeek, frozen, 4 layers": layers(DEEPSEEK, "frozen"),
    }
    rows = []
    for words, values in sets.items():
        found = reported_evidence.picked(values)
        sizes = [f"{found.mean:.2f}", f"{found.sd:.2f}", f"{found.best:.2f}"]
        by_picking = [f"{found.expected:.2f}", probability(found.chance)]
        rows.append([words, str(found.k), *sizes, *by_picking])
    head = ["layers", "k", "mean", "sd", "best", "best of k by noise alone", "P(at least as high)"]
    return numbers_table(head, rows)


def beside_layers() -> str:
    """Return the table of where the networks without a language model lie among the layers."""
    frozen = layers(LLAMA, "frozen")
    rows = []
    for system in (CNN, HYBRID):
        value = paper_value(LLAMA, system, "iou_percent", "P2")
        chances = [
            probability(reported_evidence.as_low(values, value)) for values in (frozen, frozen[1:])
        ]
        rows.append([system, f"{value:.2f}", *chances])
    return numbers_table(["network", "IoU, percent", "of 16 layers", "of layers 2 to 16"], rows)


def measured_table(cases: pd.DataFrame) -> str:
    """Return the table of correlations and spreads measured here; empty without such runs."""
    rows = []
    for system, reference, metric in MEASURED:
        found = measured(cases, system, reference, metric)
        if found is None:
            continue
        correlation, ours, theirs, pairs = found
        name = "IoU" if metric == "jaccard" else "Dice"
        arms = f"{title(system)} and {title(reference)}, {name}"
        rows.append([arms, str(pairs), f"{correlation:.2f}", f"{ours:.3f}, {theirs:.3f}"])
    return numbers_table(["arms", "pairs of runs", "r", "s of each"], rows) if rows else ""


def measured(
    cases: pd.DataFrame, system: str, reference: str, metric: str
) -> tuple[float, float, float, int] | None:
    """Return the correlation over cases, both spreads and the pairs of runs they are means of.

    Runs are paired by fold and seed; None where no pair of runs at the whole data is there.
    Data with a caveat are left out: they are no evidence.
    """
    rows = cases[(cases["fraction"] == 1) & cases["system"].isin([system, reference])]
    no_evidence = [task for task in rows["task"].unique() if caveat([task])]
    rows = rows[~rows["task"].isin(no_evidence)]
    found = []
    for _, run in rows.groupby(["task", "fold", "seed"]):
        pair = run.pivot(index="case", columns="system", values=metric).dropna()
        if pair.shape[1] == 2 and len(pair) > 2:
            ours, theirs = pair[system], pair[reference]
            found.append((ours.corr(theirs), ours.std(), theirs.std()))
    if not found:
        return None
    correlation, ours_sd, theirs_sd = (float(value) for value in pd.DataFrame(found).mean())
    return correlation, ours_sd, theirs_sd, len(found)


def comparison_cell(claim: str) -> str:
    """Return the range of the probability that the claim is false by chance alone."""
    comparison = next(c for c in COMPARISONS if c.claim == claim)
    assumed = "" if comparison.n_stated else " assumed"
    size = f"n = {comparison.n} {comparison.unit}{assumed}"
    return f"P(false) {span(reported_evidence.grid(comparison))}, {size}"


def significance_cell() -> str:
    """Return how many of the comparisons can be significant, and how many are said to be."""
    total, possible, claimed = reported_counts()
    return f"at most {possible} of {total} can reach p < 0.05 by Wilcoxon; {claimed} reported"


def gain_cell() -> str:
    """Return the comparison's cell, and that its layer is the best of many."""
    return f"{comparison_cell('llm4seg_gain')}; best of {len(layers(LLAMA, 'frozen'))} layers"


def trained_cell() -> str:
    """Return the mean difference of frozen and trained layers with its interval over layers."""
    frozen, trained = layers(LLAMA, "frozen"), layers(LLAMA, "trained")
    mean, low, high = reported_evidence.paired_interval(frozen, trained)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] IoU points over {len(frozen)} layers"


def activation_cell() -> str:
    """Return the rise of activation IoU at the layer beside that at a trained transformer."""
    rises = []
    for system in ("LLM4Seg (Llama)", HYBRID):
        before = paper_value("activations", system, "activation_iou_before_percent", "P2")
        after = paper_value("activations", system, "activation_iou_after_percent", "P2")
        rises.append(after - before)
    ours, control = rises
    return f"IoU {ours:+.1f} points, {control:+.1f} at a trained transformer; no spread given"


def rank_cell() -> str:
    """Return the most frequent effective ranks that the figure states."""
    systems = ("LLM4Seg (Llama)", CNN, "LLM4Seg (Llama, trained)")
    modes = [paper_value("activations", s, "effective_rank_mode", "P2") for s in systems]
    ours, cnn, trained = modes
    return f"modes {ours:.2f} against {cnn:.2f} ({trained:.2f} trained); no interval given"


CELLS: dict[str, Callable[[], str]] = {
    "sixty_of_sixty": significance_cell,
    "llm4seg_gain": gain_cell,
    "llm4seg_frozen_as_trained": trained_cell,
    "llm4seg_semantic": activation_cell,
    "llm4seg_effective_rank": rank_cell,
}
"Claims that need more than a comparison's cell."
WORDS = {
    "ten_tasks": "an average alone; no task's own mean recovered",
    "llm4seg_modalities": "no other network's number recovered",
    "llm4seg_state_of_the_art": "no other network's number recovered",
    "llm4seg_few_parameters": "counts of parameters; no score beside them recovered",
    "pretraining": "nothing reported",
    "pretraining_few_shot": "nothing reported",
    "llm4seg_pretraining": "nothing reported",
}
"Claims of which something is known, but nothing that can be weighed."


def cell(claim: str) -> str:
    """Return what the paper's own numbers can carry of a claim, in a few words for the ledger."""
    if claim in CELLS:
        return CELLS[claim]()
    if any(comparison.claim == claim for comparison in COMPARISONS):
        return comparison_cell(claim)
    return WORDS.get(claim, NOTHING)


def needed(claim: str) -> int:
    """Return how many cases the claim's gain would need at the middle of its grid."""
    comparison = next(c for c in COMPARISONS if c.claim == claim)
    sd = reported_evidence.PICTURE_SDS[1]
    spread = sd * math.sqrt(2 - 2 * reported_evidence.PICTURE_CORRELATIONS[1])
    return reported_evidence.cases_needed(reported_evidence.gain(comparison), spread)


def facts(studies: Sequence[str], results: Path) -> dict[str, Any]:
    """Return what `book/reported_evidence.md` shows, under one name."""
    from mvl.study import tables

    recorded = [s for s in studies if (Path(results) / Path(s).stem / "runs.csv").is_file()]
    parts = [measured_table(_foreground(tables.read_cases(study, results))) for study in recorded]
    total, possible, claimed = reported_counts()
    sizes = list(test_sizes().values())
    transformers = [paper_value(t, HYBRID, "iou_percent", "P2") for t in (LLAMA, DEEPSEEK)]
    return {
        "reported": {
            "tasks": false_claims_table(("P1", "P1-v1")),
            "pictures": false_claims_table(("P2",)),
            "n_tasks": reported_evidence.TASKS,
            "n_pictures": reported_evidence.PICTURES,
            "measured": "\n\n".join(part for part in parts if part),
            "reach": reach_table(),
            "total": total,
            "possible": possible,
            "claimed": claimed,
            "corrected": reported_evidence.in_reach(sizes, METRICS, LEVEL / total),
            "layers": layers_table(),
            "beside": beside_layers(),
            "transformers": [f"{value:.2f}" for value in transformers],
            "frozen_trained": trained_cell(),
            "needed": needed("llm4seg_gain"),
            "middle": (reported_evidence.PICTURE_SDS[1], reported_evidence.PICTURE_CORRELATIONS[1]),
        }
    }
