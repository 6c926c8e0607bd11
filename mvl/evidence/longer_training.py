"""What twice the training changes: the main arms at twice the epochs (study `longer`) beside
`hippocampus`, on the same fold and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mvl.core.columns import KEYS_IN_STUDY
from mvl.core.command_lines import command_line
from mvl.core.config import load_config
from mvl.core.markdown import markdown_table
from mvl.evidence.arms import ordered, title
from mvl.evidence.chapter import Chapter
from mvl.study.links import run_address
from mvl.study.tables import read_runs

OF, STUDY, REFERENCE = "hippocampus", "longer", "vit_baseline"


def pairs(chapter: Chapter) -> pd.DataFrame:
    """Finished runs of `longer` with `dice`, and `dice_own` at the study's own length; rows by
    task, fold and seed, columns by length and system."""
    longer = read_runs(STUDY, chapter.results_dir)
    both = longer[longer["state"] == "done"].merge(
        chapter.done, on=KEYS_IN_STUDY, suffixes=("", "_own")
    )
    return both.pivot(index=["task", "fold", "seed"], columns="system", values=["dice_own", "dice"])


def lengths(task: str) -> tuple[int, int]:
    """Epochs of the study and of `longer`."""
    short, long = (load_config(study, task, REFERENCE).train.train_epochs for study in (OF, STUDY))
    return short, long


def contrasts(chapter: Chapter, both: pd.DataFrame) -> dict[tuple[str, str], tuple[str, str]]:
    """By pair of systems, the difference at both lengths in Dice points: the mean, and each fold in
    brackets."""
    found = {}
    for ours, theirs in chapter.contrasts:
        if not {ours, theirs} <= set(both["dice"]):
            continue
        words = []
        for length in ("dice_own", "dice"):
            points = 100 * (both[length][ours] - both[length][theirs]).dropna()
            folds = ", ".join(f"{value:+z.2f}" for value in points)
            if len(points):
                words.append(f"{points.mean():+z.2f} ({folds})")
        if len(words) == 2:
            found[ours, theirs] = (words[0], words[1])
    return found


def table(chapter: Chapter) -> str:
    """Markdown: mean test Dice of each arm at both lengths, and the differences of arms; nothing
    for a study other than `hippocampus`."""
    if Path(chapter.study).stem != OF:
        return ""
    if not (chapter.results_dir / STUDY / "runs.csv").is_file():
        return (
            f"What longer training changes is asked by the study `{STUDY}`; it is not recorded here"
            f" (`{command_line('study', 'run', STUDY)}`)."
        )
    both, longer = pairs(chapter), read_runs(STUDY, chapter.results_dir)
    if both.empty:
        return f"No run of the study `{STUDY}` is done."
    task, systems = both.index[0][0], ordered(list(both["dice"]))
    short, long = lengths(task)
    address = {
        s: run_address(chapter.results_dir, f"{STUDY}/runs/{task}/{s}#fraction-1.0")
        for s in systems
    }
    means = {s: both[[("dice_own", s), ("dice", s)]].dropna().mean().tolist() for s in systems}
    arms = [
        [
            f"[{title(s)}]({address[s]})",
            f"{own:.4f}",
            f"{twice:.4f}",
            f"{100 * (twice - own):+z.2f}",
        ]
        for s, (own, twice) in means.items()
    ]
    missing = len(longer) - int(both["dice"].notna().sum().sum())
    holes = f"; {missing} planned runs are missing" if missing else ""
    cases, folds = (
        int(longer.groupby("system")["n_test"].sum().max()),
        ", ".join(map(str, sorted(set(both.index.get_level_values("fold"))))),
    )
    what = (
        f"Mean test Dice over {cases} cases of folds {folds} at {short} and at {long}"
        f" epochs{holes}. Exploratory: it decides no claim."
    )
    differences = [
        [f"{title(a)} minus {title(b)}", own, twice]
        for (a, b), (own, twice) in contrasts(chapter, both).items()
    ]
    at = [f"{short} epochs", f"{long} epochs"]
    return "\n".join(
        [
            f"**Twice the training.** {what}",
            "",
            markdown_table(["system", *at, "change, points"], "lrrr", arms),
            "",
            markdown_table(["difference, Dice points (by fold)", *at], "lrr", differences),
            "",
            spikes(chapter.results_dir, systems),
            "",
            seed_spread(chapter, short),
        ]
    )


def largest_rises(history: pd.DataFrame) -> pd.Series:
    """The largest rise of the training loss from one epoch to the next in each run, by system, fold
    and seed; 0 where it only falls."""
    runs = history.sort_values("epoch").groupby(["system", "fold", "seed"])["train_loss"]
    return runs.apply(lambda loss: max(0.0, float(loss.diff().max())))


def spikes(results_dir: Path, systems: Sequence[str]) -> str:
    """Markdown: the largest rise of the training loss of each run of `longer`, by fold, and what it
    means; empty without records."""
    path = results_dir / STUDY / "history.csv"
    if not path.is_file():
        return ""
    rises = largest_rises(pd.read_csv(path)).unstack("fold").groupby("system").max()
    folds = list(rises.columns)
    head = ["largest rise of training loss within a run", *(f"fold {fold}" for fold in folds)]
    rows = [
        [title(system), *(f"{rises.loc[system, fold]:.2f}" for fold in folds)]
        for system in systems
        if system in rises.index
    ]
    words = (
        "At this rate training is not stable. A run whose loss jumps loses what it had learnt, and"
        " a difference of two arms then has the sign of who jumped: the table of differences is to"
        " be read beside this one, and nothing is concluded from it."
    )
    return "\n".join([markdown_table(head, "l" + "r" * len(folds), rows), "", words])


def seed_spread(chapter: Chapter, epochs: int) -> str:
    """How far two runs of one arm and fold lie apart that differ in the seed alone: the scale on
    which to read one run."""
    seeds = (
        chapter.done[chapter.done["fraction"] == 1]
        .groupby(["task", "system", "fold"])["dice"]
        .agg(["min", "max", "size"])
    )
    apart = 100 * (seeds["max"] - seeds["min"])[seeds["size"] > 1]
    if apart.empty:
        return ""
    return (
        f"At {epochs} epochs, runs of one arm and fold but of two seeds are {apart.mean():.2f}"
        f" points apart, at most {apart.max():.2f}."
    )
