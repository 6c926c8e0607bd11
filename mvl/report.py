"""What a chapter says: the claims, tables, sentences and links that are computed from its runs."""

from __future__ import annotations

import itertools
import math
import os
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from mvl import runs
from mvl.chapters import TOPICS, Chapter, covered, planned_pairs, read_chapter, unplanned
from mvl.config import ROOT
from mvl.decision import EQUIVALENT, MARGIN, Decision, Numbers, decide, within
from mvl.style import title

PAPER_TABLE = ROOT / "data" / "paper_reported.csv"
OVERLAPS = {"jaccard": "IoU", "dice": "F1"}
"What a chapter that shows both calls them; where Dice stands alone it is called Dice."


def repository_url(root: Path = ROOT) -> str:
    """The repository's public address: `[project.urls] Repository` in pyproject.toml, the one place where it stands."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"])


def colab_url(name: str) -> str:
    """Address that opens a notebook of the main branch on Colab."""
    return f"{repository_url().replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/notebooks/{name}.ipynb"


def differences(chapter: Chapter) -> pd.DataFrame:
    """Paired differences of the topic's metrics for the chapter's contrasts: `mvl.stats.table`, the comparison in words and `hole`.

    A contrast that cannot be taken keeps its row: NaN, no runs, and why in `hole` (empty elsewhere). The rows of one metric are the family
    of `p_holm`, holes included; `planned` counts the pairs of runs in the study's grid.
    """
    from mvl import stats

    spec = TOPICS[chapter.topic]
    rows = [_difference(chapter, *pair, task, fraction, metric)
            for metric, pair, fraction, task in itertools.product(spec.metrics, chapter.contrasts, spec.compared or spec.fractions, chapter.tasks)]
    table = stats.adjust(pd.DataFrame(rows, columns=[*stats.table([]).columns, "hole"]))
    share = lambda row: f"\nat {row.fraction:.0%} of the data" if len(spec.fractions) > 1 else ""
    what = lambda row: f"{OVERLAPS[row.metric]}: " if len(spec.metrics) > 1 else ""
    table["comparison"] = [f"{what(row)}{minus(row.system, row.reference)}{share(row)}" for row in table.itertuples()]
    return table


def minus(system: str, reference: str) -> str:
    """`<system>` over `minus <reference>` in words; what both titles end with, after a comma, is said once."""
    parts = [title(name).split(", ") for name in (system, reference)]
    both = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(reversed(parts[0][1:]), reversed(parts[1][1:])))))
    first, second = (", ".join(part[: len(part) - both]) for part in parts)
    return f"{first}\nminus {second}" + (f" ({', '.join(parts[0][-both:])})" if both else "")


def all_differences(study: str, results_dir: str | Path) -> pd.DataFrame:
    """`differences` of every chapter that the study covers, with its question in words as `question`; nothing is trained."""
    chapters = [read_chapter(topic, study, results_dir) for topic in covered(study) if TOPICS[topic].contrasts]
    found = [differences(chapter).assign(question=TOPICS[chapter.topic].question) for chapter in chapters]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _difference(chapter: Chapter, system: str, reference: str, task: str, fraction: float, metric: str) -> dict[str, Any]:
    from mvl import stats

    planned = planned_pairs(chapter.study, TOPICS[chapter.topic], system, reference, task, fraction)
    try:
        if not planned:
            raise stats.StatsError(f"not planned in the study `{chapter.study}`")
        found = stats.compare(chapter.cases, system, reference, task, fraction, metric, planned=planned)
        return stats.table([found]).iloc[0].to_dict() | {"hole": ""}
    except stats.StatsError as error:
        return {"task": task, "system": system, "reference": reference, "fraction": fraction, "metric": metric, "n_cases": 0, "n_distinct": 0,
                "n_runs": 0, "n_folds": 0, "planned": len(planned), "complete": False, "unpaired": 0, "hole": str(error)}


def decided(row: dict[Any, Any]) -> Decision:
    """The word for a row of `differences`, by the one rule (`mvl.decision.decide`)."""
    numbers = Numbers(row["boot_low"], row["boot_high"], row["p_holm"], row["p_equivalence"], int(row["planned"]), int(row["n_runs"]),
                      int(row["n_folds"]))
    return decide(numbers, MARGIN, (row["system"], row["reference"]))


def verdict(row: dict[Any, Any], metric: str) -> str:
    """`decided` in words, with the margin where it is an equivalence."""
    found = decided(row)
    return f"{found.word} {within(MARGIN, 100.0, f'{metric} points')}" if found.word == EQUIVALENT else str(found)


def answer(chapter: Chapter) -> str:
    """The chapter's answer, one sentence for each comparison, computed, with what its interval leaves out; holes keep their line."""
    lead = "**Smoke study, no evidence about scans.** " if chapter.smoke else ""
    if chapter.done.empty:
        return f"{lead}No run of this chapter is recorded in the study `{chapter.study}` yet, so it has no answer."
    table, several = differences(chapter), len(TOPICS[chapter.topic].metrics) > 1
    lines = [f"- {_sentence(row, OVERLAPS[row['metric']] if several else 'Dice')}" for row in table.to_dict("records")]
    if absent := unplanned(chapter):
        lines.append(f"\nNot planned in the study `{chapter.study}`: {', '.join(f'`{s}`' for s in absent)}.")
    if not table["n_runs"].any():
        return "\n".join([lead + _means(chapter), *([""] if lines else []), *lines])
    if (table["n_folds"] > 1).any():
        lines.append(f"\n*{INTERVAL}*")
    return "\n".join([f"{lead.strip()}\n"] * bool(lead) + lines)


def _sentence(row: dict[str, Any], metric: str) -> str:
    from mvl.stats import ONE_FOLD, ONE_PAIR, cases_and_seeds

    words = " ".join(str(row["comparison"]).removeprefix(f"{metric}: ").split("\n"))
    if row["hole"]:
        return f"{words}: not yet recorded ({row['n_runs']} of {row['planned']} planned pairs of runs; {row['hole']})."
    low, mid, high = (100 * row[k] for k in ("low", "difference", "high"))
    interval = f"95 % interval {low:+z.2f} to {high:+z.2f}"
    word = verdict(row, metric)
    pairs = f"{row['n_runs']} pairs of runs" if row["complete"] else f"{row['n_runs']} of {row['planned']} planned pairs of runs"
    if row["n_runs"] == 1:
        there = "the one pair of runs" if row["complete"] else pairs
        return f"{words}: {word}; **{mid:+z.2f} {metric} points** in {there} ({interval}, n = {row['n_cases']} cases: {ONE_PAIR})."
    adjusted = f", {row['p_holm']:.2g} after Holm" if row["complete"] else ""
    test = f"corrected t-test p = {row['p_t']:.2g}{adjusted}" if row["n_folds"] > 1 else f"no test: {ONE_FOLD}"
    n = f"n = {cases_and_seeds(row['n_distinct'], row['n_cases'])}, {pairs}"
    return f"{words}: **{mid:+z.2f} {metric} points** ({interval}; {test}; {n}): {word}."


def _means(chapter: Chapter) -> str:
    arms = chapter.done.groupby("system", sort=False)
    return " ".join(f"{title(str(s))} reaches a test Dice of **{rows['dice'].mean():.3f}** on the native grid "
                    f"({f'mean of {len(rows)} runs' if len(rows) > 1 else 'one run; run-to-run variation not measured'}, "
                    f"n = {int(rows['n_test'].max())} test cases each)." for s, rows in arms)


def results_table(chapter: Chapter) -> str:
    """Markdown table: each arm's means over its done runs, how many of the planned are done, and n."""
    head = (f"| system | data | runs done | test cases | Dice | NSD | HD95, {chapter.unit} | IoU (Jaccard) | trainable parameters |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines = [head]
    for (system, fraction), arm in chapter.runs.sort_values("fraction", kind="stable").groupby(["system", "fraction"], sort=False):
        done = arm[arm["state"] == "done"]
        numbers = ["not yet recorded", "", "", "", "", ""] if done.empty else [
            str(int(done["n_test"].max())), *(_mean_sd(done[m], d) for m, d in (("dice", 3), ("nsd", 3), ("hd95_mm", 2), ("jaccard", 3))),
            f"{int(done['trainable'].iloc[0]):,}"]
        lines.append(f"| {title(str(system))} | {fraction:.0%} | {_runs_done(chapter, arm)} | {' | '.join(numbers)} |")
    if len(lines) == 1:
        return f"No run of this chapter is planned or recorded in the study `{chapter.study}`: {'; '.join(chapter.holes)}."
    label = "Generated data. " if chapter.smoke and "phantoms" not in chapter.tasks else "Phantom data. " if chapter.smoke else ""
    own = "scans" if chapter.unit == "mm" else "pictures"
    note = f"Mean over the done runs ± standard deviation over runs; metrics on the {own}' own grid."
    if (chapter.done.groupby(["system", "fraction"]).size() == 1).any():
        note += " **An arm with one run done has no ±: its run-to-run variation is not measured.**"
    return "\n".join(lines) + f"\n\n{label}{note}"


def convergence_table(chapter: Chapter) -> str:
    """Markdown table: what the validation Dice of each arm still gains in the last quarter of the training, and which epoch is kept.

    The gain is the rise of the least-squares line through a run's last quarter, from its start to its end, in Dice points.
    """
    from mvl.figures import selected_epochs

    if chapter.history.empty:
        return f"No training history of this chapter is recorded in the study `{chapter.study}` yet."
    lines = ["| system | data | runs | epochs | gain in the last quarter, Dice points: mean (smallest to largest) | epoch kept, median |",
             "|---|---:|---:|---:|---:|---:|"]
    for (system, fraction), arm in chapter.history.groupby(["system", "fraction"], sort=False):
        gains = pd.Series([last_quarter_gain(run) for _, run in arm.groupby(["task", "fold", "seed"])])
        kept, count = selected_epochs(arm)["epoch"].median() + 1, int(arm["epoch"].max()) + 1
        spread = f"{gains.mean():+z.2f}" + (f" ({gains.min():+z.2f} to {gains.max():+z.2f})" if len(gains) > 1 else "")
        lines.append(f"| {title(str(system))} | {fraction:.0%} | {len(gains)} | {count} | {spread} | {kept:g} |")
    return "\n".join(lines)


def last_quarter_gain(run: pd.DataFrame) -> float:
    """Dice points by which the line through the validated epochs of a run's last quarter rises; NaN with fewer than two of them."""
    end = run["epoch"].max() + 1
    last = run[run["epoch"] >= 0.75 * end].dropna(subset=["val_dice"])
    if len(last) < 2:
        return math.nan
    return 100 * float(np.polyfit(last["epoch"], last["val_dice"], 1)[0]) * float(last["epoch"].max() - last["epoch"].min())


def _runs_done(chapter: Chapter, arm: pd.DataFrame) -> str:
    """`3 of 5`, linked to the arm's runs."""
    first, done = arm.iloc[0], (arm["state"] == "done").sum()
    place = f"{Path(chapter.study).stem}/runs/{first['task']}/{first['system']}#fraction-{first['fraction']}"
    return f"[{done} of {len(arm)}]({run_address(chapter.results_dir, place)})"


def arm_links(chapter: Chapter) -> str:
    """One sentence: each arm of the chapter, and how many of its planned runs are done, linked to them."""
    arms = chapter.runs.groupby(["system", "fraction"], sort=False)
    share = lambda f: "" if f == 1 else f" at {f:.0%} of the data"
    listed = [f"{title(str(system))}{share(fraction)} {_runs_done(chapter, arm)}" for (system, fraction), arm in arms]
    return f"The runs behind it: {'; '.join(listed)}." if listed else ""


def _mean_sd(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def reported() -> pd.DataFrame:
    """`data/paper_reported.csv`: what the papers report, with source and confidence."""
    return pd.read_csv(PAPER_TABLE, dtype={"paper": str})


def paper_value(table: str, system: str, metric: str = "dice", paper: str = "P1") -> float:
    """One reported number.

    Raises:
        KeyError: the table has not exactly one such row; names what was asked for.
    """
    rows = reported().query("paper == @paper and table == @table and system == @system and metric == @metric")
    if len(rows) != 1:
        raise KeyError(f"{PAPER_TABLE}: {len(rows)} rows for {paper}, {table}, {system}, {metric}; one is needed")
    return float(rows["value"].iloc[0])


def _claim_version_1() -> str:
    without, block = (paper_value("average", s, paper="P1-v1") for s in ("ViT-Baseline", "ViT + LLM block"))
    return (f"Version 1's abstract reports a mean Dice of **{block:.2f}** with a frozen language layer, hybrid attention and multi-scale fusion "
            f"against **{without:.2f}** for the ViT alone; its tasks are not stated there, and neither part is reported alone.")


def _claim_controls() -> str:
    return ("MedVisionLlama v3 is reported better than two trained networks called parameter matched, ViT-Depth and ViT-MLP (from summaries; the "
            "numbers could not be recovered, and the released sizes are far from a match). Its code has no frozen block with random or shuffled "
            "weights, no hybrid without a block and none without the residual.")


def _claim_llm4seg() -> str:
    iou, f1 = (paper_value("average", "LLM4Seg (best)", m, "P2") for m in ("iou_percent", "f1_percent"))
    return (f"LLM4Seg's best variant is reported at a mean IoU of **{iou:.1f}** and F1 of **{f1:.1f}** (percent) over its 2-D data sets, above "
            "11 other networks (from a summary; the table for each data set, BUSI included, could not be recovered). Its released code can run the "
            "frozen random layer; no result of it was found.")


def _claim_comparators() -> str:
    peers = ("UNETR", "UNet++", "nnU-Net", "Swin-UNet")
    ours, numbers = paper_value("comparators", "MedVisionLlama"), {peer: paper_value("comparators", peer) for peer in peers}
    return (f"MedVisionLlama v3 reports a mean test Dice of **{ours:.2f}** against {', '.join(f'{n:.2f} ({p})' for p, n in numbers.items())}, over "
            "the ten Decathlon tasks. How the other networks were trained is not stated.")


def _claim_label_noise() -> str:
    return ("A summary says that LLM4Seg loses less than its CNN when training labels are damaged; how they were damaged, the rates and the numbers "
            "could not be recovered. A frozen layer of random weights under the same damage is not reported.")


def _claim_qualitative() -> str:
    return ("MedVisionLlama v3 shows one slice of each task and one row of activation maps per arm, and is summarised as giving smoother masks and "
            "sharper maps. No number for either was found, nor how the slices were chosen.")


OTHER_CLAIMS = {"version_1": _claim_version_1, "controls": _claim_controls, "llm4seg": _claim_llm4seg, "comparators": _claim_comparators,
                "label_noise": _claim_label_noise, "qualitative": _claim_qualitative}
THEIRS = {"qualitative": "the paper shows single slices of ten tasks",
          "version_1": "the abstract's tasks are not stated and its grid is not known",
          "comparators": "the paper averages ten tasks on a resized grid, and ours have other sizes and shorter training",
          "llm4seg": "the paper averages its 2-D data sets, 256x256 pixels and 300 epochs, on a random 70/30 split whose 30 % also chose the epoch",
          "label_noise": "the paper's data sets and rates of damage are not known"}
"What the paper's number is, by topic, where it is not the average of version 3."
INTERVAL = "Intervals are those of the corrected t-test over folds; with one fold they are over cases alone."


def claim(topic: str) -> str:
    """What the paper reports on the chapter's subject, numbers from `data/paper_reported.csv`."""
    vit, mvl = (paper_value("average", s) for s in ("ViT-Baseline", "MedVisionLlama"))
    if topic == "baseline":
        return f"MedVisionLlama v3 reports a mean test Dice of **{vit:.2f}** for its ViT-Baseline, averaged over the ten Decathlon tasks."
    if topic == "llm_hybrid":
        better, significant = (paper_value("comparisons", "MedVisionLlama", f"comparisons_{k}_of_60") for k in ("better", "p_below_0.05"))
        return (f"MedVisionLlama v3 reports a mean test Dice of **{mvl:.2f}** with a frozen Llama block against **{vit:.2f}** "
                f"for its ViT-Baseline, over the ten Decathlon tasks; better in {better:.0f} of 60 comparisons, {significant:.0f} of them "
                "with p < 0.05. No frozen block with *random* weights is reported.")
    if topic == "few_shot":
        arms = ("ViT-Baseline", "MedVisionLlama")
        ten, thirty = ([paper_value(f"few-shot {share} %", arm, "val_dice") for arm in arms] for share in (10, 30))
        return (f"MedVisionLlama v3's few-shot figure ends, at epoch 100, at a validation Dice of **{ten[1]:.2f}** "
                f"against {ten[0]:.2f} (baseline) with 10 % of the data, and **{thirty[1]:.2f}** against {thirty[0]:.2f} with 30 % "
                "(read from the figure's pixels; which tasks it averages is not stated).")
    if topic in OTHER_CLAIMS:
        return OTHER_CLAIMS[topic]()
    return ("MedVisionLlama v3 says that LoRA mappers beat plain linear ones with fewer trainable parameters, "
            "and that rank 4 is the best trade-off. "
            "Its numbers for this ablation could not be recovered.")


def compare(chapter: Chapter) -> str:
    """The paper's number and ours in one table; words only where the study is a smoke study."""
    words = claim(chapter.topic)
    if chapter.smoke:
        made = "phantoms" if "phantoms" in chapter.tasks else "generated shapes"
        return (f"{words}\n\n*The study shown here, `{chapter.study}`, runs on {made}: it checks that everything works "
                "and is not set beside these numbers.*")
    theirs = THEIRS.get(chapter.topic, "the paper averages ten tasks on a resized grid")
    return f"{words}\n\n*Not the same quantity as below: {theirs}; this study has {', '.join(chapter.tasks)} on the native grid.*"


def run_links(chapter: Chapter) -> str:
    """Markdown list of the chapter's done runs, each with its config, environment and cases; links where the runs are published."""
    if chapter.done.empty:
        return "No run is recorded yet."
    lines = ["| run | config | environment | cases |", "|---|---|---|---|"]
    for run in chapter.done["run"]:
        files = [f"[{name}]({run_address(chapter.results_dir, f'{run}/{name}')})" for name in ("config.yaml", "environment.json", "cases.csv")]
        lines.append(f"| [`{str(run).split('/runs/')[-1]}`]({run_address(chapter.results_dir, str(run))}) | {' | '.join(files)} |")
    return "\n".join(lines)


def run_address(results_dir: Path, place: str) -> str:
    """Address of a run's folder or file, or of an arm's (`<study>/runs/<task>/<system>#fraction-<f>`): on the repository where it is published.

    Else relative to the notebooks. The book turns either into its own page or copy (`mvl.run_pages.book_links`).
    """
    if results_dir.resolve() != runs.records_dir().resolve():
        return quote(f"{os.path.relpath(results_dir, ROOT / 'notebooks')}/{place}", safe="/#")
    kind = "blob" if place.endswith((".yaml", ".json", ".csv")) else "tree"
    return f"{repository_url()}/{kind}/main/data/results/{quote(place, safe='/#')}"


def inputs(chapter: Chapter) -> str:
    """sha256 of each table that the chapter read, one line each."""
    folder = chapter.folder
    drawn = ("examples.npz", "masks.csv", "activations.csv", "activations.npz") if chapter.topic == "qualitative" else ()
    names = [folder / name for name in ("runs.csv", "cases.csv", "history.csv", *drawn)]
    tables = [path for path in (*names, PAPER_TABLE) if path.is_file()]
    name = lambda path: path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(chapter.study) / path.name
    return "\n".join(f"{runs.sha256_file(path)}  {name(path)}" for path in tables)


def repeat(chapter: Chapter, notebook: str) -> str:
    """The commands that repeat the chapter's runs and the chapter."""
    where = "data/results" if chapter.published else "data/runs"
    return f"```bash\nSTUDY={chapter.study} make reproduce\nmvl notebook {notebook} -p study {chapter.study} -p results_dir {where}\n```"


def say(markdown: str) -> None:
    """Show Markdown in a notebook."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))
