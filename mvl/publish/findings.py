"""What each figure shows, in a sentence that is computed from the figure's own table: the captions.

Each function takes the table that the figure is drawn from, so that other records give another
sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mvl.evidence.activation_maps import Maps
from mvl.evidence.activation_records import before_after
from mvl.evidence.arms import ordered, title
from mvl.evidence.decision import EQUIVALENT, HIGHER, LOWER, MARGIN, decided
from mvl.evidence.example_masks import Example

NOTHING = "Nothing of this figure is recorded yet."
RUN = ["task", "fold", "seed"]


def _span(values: pd.Series, digits: int = 3) -> str:
    """Return the smallest and the largest of the means by arm, each with its arm; or the only
    one."""
    low, high = values.idxmin(), values.idxmax()
    words = f"{values[low]:.{digits}f} ({title(str(low))})"
    if len(values) == 1:
        return words
    return f"between {words} and {values[high]:.{digits}f} ({title(str(high))})"


def curves(history: pd.DataFrame) -> str:
    """Say where the validation Dice of the arms ends."""
    done = history.dropna(subset=["val_dice"])
    if done.empty:
        return NOTHING
    last = done.loc[done.groupby(["system", "fraction", *RUN])["epoch"].idxmax()]
    parts = []
    for fraction, rows in last.groupby("fraction"):
        share = "" if last["fraction"].nunique() == 1 else f"with {fraction:.0%} of the data "
        ends = rows.groupby("system")["val_dice"].mean()
        parts.append(f"{share}{_span(ends)}")
    return f"At the end of training the mean validation Dice is {'; '.join(parts)}."


def curve_differences(history: pd.DataFrame, reference: str) -> str:
    """Say how far from the reference's the arms' validation Dice ends, and how far it ever was."""
    gaps = epoch_gaps(history, reference)
    if gaps.empty:
        return NOTHING
    means = gaps.groupby(["system", "epoch"])["points"].mean().reset_index()
    late = means[means["epoch"] >= means["epoch"].max() / 2]
    largest = means.loc[means["points"].abs().idxmax()]
    return (
        f"In the second half of training no arm's mean validation Dice is further than"
        f" {late['points'].abs().max():.1f} points from that of {title(reference)}; the largest"
        f" gap of all is {largest['points']:+.1f} points ({title(largest['system'])}, epoch"
        f" {int(largest['epoch']) + 1})."
    )


def epoch_gaps(history: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return system, fold, seed, epoch and points: the validation Dice of each run minus that of
    the reference at the same fold, seed and epoch."""
    keys = [*RUN, "fraction", "epoch"]
    done = history.dropna(subset=["val_dice"])
    base = done[done["system"] == reference].set_index(keys)["val_dice"].rename("base")
    rows = done[done["system"] != reference].join(base, on=keys).dropna(subset=["base"])
    return rows.assign(points=100 * (rows["val_dice"] - rows["base"]))


def cases(table: pd.DataFrame) -> str:
    """Say how far the test cases of a fold are apart, and how far the arms' means are."""
    if table.empty:
        return NOTHING
    dots = table.groupby(["system", "fold", "case"])["dice"].mean()
    spread = dots.groupby(["system", "fold"]).agg(lambda d: d.max() - d.min()).max()
    means = dots.groupby(["fold", "system"]).mean()
    words = f"Test cases of one fold differ by up to {100 * spread:.0f} Dice points"
    if table["system"].nunique() == 1:
        folds = means.groupby("fold").mean()
        if len(folds) == 1:
            return f"{words}."
        return f"{words}, the means of the folds by {100 * (folds.max() - folds.min()):.1f}."
    apart = means.groupby("fold").agg(lambda m: m.max() - m.min()).max()
    return f"{words}, the means of the arms by up to {100 * apart:.1f}."


def case_differences(table: pd.DataFrame, reference: str) -> str:
    """Say for how many test cases each arm is better than the reference."""
    gaps = case_gaps(table, reference)
    if gaps.empty:
        return NOTHING
    shares = gaps.groupby("system")["points"].agg(
        better=lambda p: int((p > 0).sum()), n="size", mean="mean"
    )
    parts = [
        f"{title(s)} in {shares.loc[s, 'better']} of {shares.loc[s, 'n']} (mean"
        f" {shares.loc[s, 'mean']:+z.2f} points)"
        for s in ordered(list(shares.index))
    ]
    return f"Test cases with a higher Dice than under {title(reference)}: {', '.join(parts)}."


def case_gaps(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return system, fold, case and points: each test case's Dice minus that under the reference,
    mean over the seeds that both have."""
    keys = ["task", "fraction", "fold", "seed", "case"]
    base = table[table["system"] == reference].set_index(keys)["dice"].rename("base")
    rows = table[table["system"] != reference].join(base, on=keys).dropna(subset=["base"])
    rows = rows.assign(points=100 * (rows["dice"] - rows["base"]))
    return rows.groupby(["system", "fold", "case"], as_index=False)["points"].mean()


def examples(shown: Sequence[Example], holes: Sequence[str] = ()) -> str:
    """Say the Dice of the cases that are shown, under the arm that ranks them, or why none is."""
    if not shown:
        return f"Not drawn here: {'; '.join(holes)}." if holes else NOTHING
    parts = []
    for example in shown:
        values = [example.dice[s] for s in ordered(list(example.dice))]
        reach = f"{min(values):.2f}"
        if len(values) > 1:
            reach += f" to {max(values):.2f}"
        parts.append(f"{reach} in the {example.rank} case")
    return f"Dice over the arms: {', '.join(parts)}."


def pairs(differences: pd.DataFrame) -> str:
    """Say how many of the differences have which verdict, and how far they reach."""
    rows = [row for row in differences.to_dict("records") if row["n_runs"]]
    if not rows:
        return NOTHING
    found = [decided(row).word for row in rows]
    names = {EQUIVALENT: f"equivalent within {100 * MARGIN:g} point"}
    parts = [
        f"{found.count(word)} {'is' if found.count(word) == 1 else 'are'} {names.get(word, word)}"
        for word in dict.fromkeys([*(w for w in (HIGHER, LOWER, EQUIVALENT) if w in found), *found])
    ]
    values = [100 * row["difference"] for row in rows]
    absent = len(differences) - len(rows)
    end = f"; {absent} more {'has' if absent == 1 else 'have'} no runs yet" if absent else ""
    if len(rows) == 1:
        return f"The difference is {values[0]:+z.2f} points: {found[0]}{end}."
    return (
        f"Of {len(rows)} differences, {min(values):+z.2f} to {max(values):+z.2f} points,"
        f" {', '.join(parts)}{end}."
    )


def shares(runs: pd.DataFrame) -> str:
    """Say what more training cases bring, and how far apart the arms are at the smallest share."""
    if runs.empty:
        return NOTHING
    means = runs.groupby(["fraction", "system"])["dice"].mean().unstack()
    low, high = means.index.min(), means.index.max()
    both = means.loc[[low, high]].dropna(axis=1)
    gains = 100 * (both.loc[high] - both.loc[low])
    apart = 100 * (means.loc[low].max() - means.loc[low].min())
    return (
        f"From {low:.0%} to {high:.0%} of the training cases the mean test Dice rises by"
        f" {gains.min():.1f} to {gains.max():.1f} points; at {low:.0%} the arms are"
        f" {apart:.1f} points apart."
    )


def means(runs: pd.DataFrame) -> str:
    """Say between which arms the mean test Dice lies."""
    if runs.empty:
        return NOTHING
    return f"The mean test Dice is {_span(runs.groupby('system')['dice'].mean())}."


def cost(runs: pd.DataFrame) -> str:
    """Say which arm has the highest mean test Dice, what it costs, and what the cheapest has."""
    if runs.empty:
        return NOTHING
    arms = runs.groupby("system").agg(
        dice=("dice", "mean"), minutes=("cpu_s", "mean"), n=("dice", "size")
    )
    arms["minutes"] /= 60
    best, cheap = arms["dice"].idxmax(), arms["minutes"].idxmin()

    def words(system: str) -> str:
        arm = arms.loc[system]
        count = "1 run" if arm["n"] == 1 else f"{arm['n']:.0f} runs"
        return f"{title(system)} ({arm['dice']:.3f}, {count} of {arm['minutes']:.0f} core-minutes)"

    if best == cheap:
        return f"{words(str(best))} has the highest mean test Dice and the shortest training."
    return (
        f"The highest mean test Dice is that of {words(str(best))}; the shortest training is that"
        f" of {words(str(cheap))}."
    )


def classes(table: pd.DataFrame) -> str:
    """Say between which arms the mean IoU lies, by class of lesion."""
    lesions = table[table["status"].isin(("ok", "missed"))] if len(table) else table
    if lesions.empty:
        return NOTHING
    parts = [
        f"{kind} {_span(rows.groupby('system')['jaccard'].mean(), 2)}"
        for kind, rows in lesions.groupby("kind")
    ]
    return f"Mean IoU of test pictures: {'; '.join(parts)}."


def maps(found: Maps | None) -> str:
    """Say how much of the decoder's hottest area lies on the label, by arm."""
    if found is None:
        return NOTHING
    values = {
        s: found.numbers[s]["decoder"]["activation_iou"]
        for s in ordered(list(found.arms))
        if "decoder" in found.numbers[s]
    }
    parts = ", ".join(f"{value:.2f} ({title(s)})" for s, value in values.items())
    return (
        f"In test case {found.case} the hottest area of the decoder's map overlaps the label with"
        f" an IoU of {parts}."
    )


def measure(rows: pd.DataFrame, column: str, words: str) -> str:
    """Say how much a measure changes across the block, by arm."""
    if rows.empty:
        return NOTHING
    table = before_after(rows, column).dropna(subset=["before", "after"])
    table = table[table["place"] == "at the block's width"]
    if table.empty:
        return f"No arm that is shown has {words} on both sides of the block."
    changes = (table["after"] - table["before"]).groupby(table["system"]).mean()
    parts = ", ".join(f"{changes[s]:+z.3f} ({title(s)})" for s in ordered(list(changes.index)))
    return f"Across the block, at its width, {words} changes by {parts}."


def worth(rows: pd.DataFrame) -> str:
    """Say which of the faults flatters a report most, and by how much all of them together do."""
    faults = rows[~rows["fault"].str.startswith("none") & rows["gap"].notna()]
    if faults.empty:
        return NOTHING
    top = faults.loc[faults["gap"].idxmax()]
    words = (
        f"The report that is furthest above the truth is that of '{top['fault']}', by"
        f" {100 * top['gap']:+z.1f} Dice points"
    )
    together = faults[faults["system"] == "audit_released"]
    if together.empty:
        return f"{words}."
    value = 100 * float(together["gap"].iloc[0])
    return f"{words}; with the four of MedVisionLlama's faults together it is {value:+z.1f}."
