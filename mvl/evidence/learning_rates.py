"""What the learning rate did to the first study: the main arms' validation Dice by rate, from the
recorded trials."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mvl.core.config import ROOT, load_config
from mvl.core.markdown import markdown_table
from mvl.evidence.arms import title
from mvl.evidence.topics import HYBRID, RANDOM, VIT
from mvl.study.grid import load_study

STUDY, TASK = "hippocampus", "Task04_Hippocampus"
CONTRASTS = ((HYBRID, VIT), (RANDOM, VIT), (HYBRID, RANDOM))
PAPER_RATE = 0.002
"The learning rate of MedVisionLlama's released code."
PROTOCOL_2 = ROOT / "book" / "protocol_2.md"


def gaps(results_dir: Path) -> pd.DataFrame:
    """Differences of the best validation Dice in points, a row for each rate, a column for each
    contrast.

    Empty where no trial is recorded.
    """
    path = Path(results_dir) / STUDY / "tuning.csv"
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path)
    arms = table[table["system"].isin({name for pair in CONTRASTS for name in pair})]
    dice = 100 * arms.pivot(index="lr", columns="system", values="best_val_dice")
    return pd.DataFrame({pair: dice[pair[0]] - dice[pair[1]] for pair in CONTRASTS})


def apart_at_equal_rates(
    study: str, system: str, reference: str, results_dir: Path
) -> tuple[float, float, float, float] | None:
    """Return the rates at which a study trains two arms, and the least and the greatest difference
    of their trials at equal rates in points of validation Dice; None where both train at one rate
    or no trial is recorded."""
    task = load_study(study).tasks[0]
    ours, theirs = (load_config(study, task, arm).train.lr for arm in (system, reference))
    path = Path(results_dir) / study / "tuning.csv"
    if ours == theirs or not path.is_file():
        return None
    dice = pd.read_csv(path).pivot(index="lr", columns="system", values="best_val_dice")
    apart = 100 * (dice[system] - dice[reference]).dropna()
    return ours, theirs, float(apart.min()), float(apart.max())


def used_rate() -> float:
    """The rate at which the study trained its ViTs."""
    return load_config(STUDY, TASK, VIT).train.lr


def table(results_dir: Path, study: str = STUDY) -> str:
    """The differences by rate as a Markdown table, with what they mean; nothing without trials.

    study: the study that is shown; nothing is said of any but the one that was tuned so.
    """
    found = gaps(results_dir)
    if found.empty or Path(study).stem != STUDY:
        return ""
    head = ["learning rate", *(f"{title(a)} minus {title(b)}" for a, b in CONTRASTS)]
    notes = {PAPER_RATE: " (the paper's)", used_rate(): " (used)"}
    rows = [
        [f"{rate:g}{notes.get(float(str(rate)), '')}", *(f"{value:+.2f}" for value in row)]
        for rate, row in found.iterrows()
    ]
    lines = markdown_table(head, "rrrr", rows)
    trial = "Validation Dice points in the trials that chose the rate: fold 0, one seed, 8 epochs."
    return "\n".join([caution(results_dir, "../protocol_2.html"), "", lines, "", trial])


def caution(results_dir: Path, page: str = "protocol_2.md") -> str:
    """What the rate means for the study's main answer, in plain words; nothing without trials.

    page: the address of the second protocol from where the words will stand.
    """
    found = gaps(results_dir)
    if found.empty:
        return ""
    paper, used = found.loc[PAPER_RATE], found.loc[used_rate()]
    answer = (
        f" [The second protocol]({page}) is made to answer it."
        if PROTOCOL_2.is_file()
        else (" A second protocol, in preparation, is made to answer it.")
    )
    return (
        "**What this study cannot see.** The trials that chose the learning rate suggest that it"
        f" switches the block off. At {PAPER_RATE:g}, the paper's rate, the hybrid was"
        f" {paper[HYBRID, VIT]:+.2f} Dice points from the ViT and {paper[HYBRID, RANDOM]:+.2f} from"
        f" the same network with a random block; at {used_rate():g}, the rate that every ViT was"
        f" given, {used[HYBRID, VIT]:+.2f} and {used[HYBRID, RANDOM]:+.2f}. With a higher rate the"
        " mapper before the block grows and the residual around the block outweighs what the block"
        " adds. There was no positive control: nothing shows that this design could see a block"
        " that matters. So *equivalent* is said here of a network that may ignore its block, and"
        f" nearly every substitution for it gets the same word.{answer}"
    )


def brief(results_dir: Path, study: str) -> str:
    """Return in one sentence what the rate takes from the answer of the study that was tuned so;
    nothing for another study, or without trials."""
    if Path(study).stem != STUDY or gaps(results_dir).empty:
        return ""
    return (
        "**Read with care.** The trials that chose the learning rate suggest that it switches the"
        " block off, so that *equivalent* is said of networks that may ignore their block. The"
        " [second study](../second_study.html) is made to see a block that matters."
    )
