"""What twice the training changes: the main arms at twice the epochs (study `longer`) beside `hippocampus`, on the same fold and seed."""

from __future__ import annotations

from pathlib import Path

from mvl.chapters import Chapter
from mvl.config import load_config
from mvl.report import run_address
from mvl.style import title
from mvl.tables import read_runs

OF, STUDY, REFERENCE = "hippocampus", "longer", "vit_baseline"
KEYS = ["task", "system", "fraction", "fold", "seed"]


def table(chapter: Chapter) -> str:
    """Markdown: mean test Dice of each arm at both lengths, and its difference to ViT-Baseline; nothing for a study other than `hippocampus`."""
    if Path(chapter.study).stem != OF:
        return ""
    if not (chapter.results_dir / STUDY / "runs.csv").is_file():
        return f"What longer training changes is asked by the study `{STUDY}`; it is not recorded here (`mvl study run {STUDY}`)."
    longer = read_runs(STUDY, chapter.results_dir)
    both = longer[longer["state"] == "done"].merge(chapter.done, on=KEYS, suffixes=("", "_own"))
    arms = both.groupby(["task", "system"], sort=False)[["dice_own", "dice"]].mean()
    lines = []
    for task, system in arms.index:
        own, twice = arms.loc[(task, system)]
        words = [f"{own:.4f}", f"{twice:.4f}", f"{100 * (twice - own):+z.2f}"]
        there = (task, REFERENCE) in arms.index and system != REFERENCE
        words += [f"{100 * value:+z.2f}" for value in arms.loc[(task, system)] - arms.loc[(task, REFERENCE)]] if there else ["", ""]
        run = run_address(chapter.results_dir, f"{STUDY}/runs/{task}/{system}#fraction-1.0")
        lines.append(f"| [{title(system)}]({run}) | {' | '.join(words)} |")
    if not lines:
        return f"No run of the study `{STUDY}` is done."
    short, long = (load_config(study, str(both["task"].iloc[0]), REFERENCE).train.train_epochs for study in (OF, STUDY))
    missing = len(longer) - len(both)
    cases, folds = int(both.groupby("system")["n_test"].sum().max()), ", ".join(map(str, sorted(set(both["fold"]))))
    holes = f"; {missing} planned runs are missing" if missing else ""
    head = f"| system | {short} epochs | {long} epochs | change, points | minus ViT-Baseline at {short} | at {long} |"
    what = f"Mean test Dice over {cases} cases of fold {folds} at {short} and at {long} epochs{holes}. Exploratory: it decides no claim."
    return "\n".join([f"**Twice the training.** {what}", "", head, "|---|---:|---:|---:|---:|---:|", *lines, "", seed_spread(chapter, short)])


def seed_spread(chapter: Chapter, epochs: int) -> str:
    """How far two runs of one arm and fold lie apart that differ in the seed alone: the scale on which to read one run."""
    seeds = chapter.done[chapter.done["fraction"] == 1].groupby(["task", "system", "fold"])["dice"].agg(["min", "max", "size"])
    apart = 100 * (seeds["max"] - seeds["min"])[seeds["size"] > 1]
    if apart.empty:
        return ""
    return f"At {epochs} epochs, runs of one arm and fold but of two seeds are {apart.mean():.2f} points apart, at most {apart.max():.2f}."
