"""What a chapter says: its runs, and the claims, tables, sentences and links that are computed from them."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mvl import figures, runs
from mvl.config import ROOT
from mvl.studies import ensure_runs, load_study, study_runs

PAPER_TABLE = ROOT / "data" / "paper_reported.csv"
VIT, HYBRID, RANDOM = "vit_baseline", "medvisionllama_v3", "medvisionllama_v3_random"


@dataclass(frozen=True)
class Topic:
    """Which blocks of a study's grid a chapter reads, and which arms it compares."""

    blocks: tuple[str, ...]
    "Blocks whose systems the chapter is about; the first must be there."
    fractions: tuple[float, ...] = (1.0,)
    "Shares of the training cases that it shows."
    extra: tuple[str, ...] = ()
    "Systems of other blocks that stand beside."
    only: tuple[str, ...] = ()
    "Systems that it is restricted to; empty: all of the blocks."
    contrasts: tuple[tuple[str, str], ...] = ()
    "(system, reference) pairs whose difference is taken."


TOPICS = {
    "baseline": Topic(("main",), only=(VIT,)),
    "llm_hybrid": Topic(("main",), contrasts=((HYBRID, VIT), (RANDOM, VIT), (HYBRID, RANDOM))),
    "few_shot": Topic(("few_shot", "main"), fractions=(0.1, 0.3, 1.0), only=(VIT, HYBRID), contrasts=((HYBRID, VIT),)),
    "lora_ablation": Topic(("lora",), extra=(HYBRID, VIT), contrasts=(
        ("medvisionllama_v3_r2", HYBRID), ("medvisionllama_v3_r8", HYBRID), ("medvisionllama_v3_r16", HYBRID),
        ("medvisionllama_v3_linear", HYBRID))),
}


@dataclass(frozen=True)
class Chapter:
    """The tables of one chapter, restricted to its runs."""

    topic: str
    "Key of `TOPICS`."
    study: str
    "Study that the runs belong to."
    results_dir: Path
    "Folder of the studies' results."
    runs: pd.DataFrame
    "One row per planned run of the chapter, holes included."
    cases: pd.DataFrame
    "One row per done run, case and label."
    history: pd.DataFrame
    "One row per done run and epoch."
    holes: tuple[str, ...]
    "What is planned, or asked by the chapter, and not there."

    @property
    def tasks(self) -> list[str]:
        """Tasks of the study."""
        return list(load_study(self.study).tasks)

    @property
    def smoke(self) -> bool:
        """True when the study has phantoms only, so that no number may stand beside a paper's."""
        return set(self.tasks) == {"phantoms"}

    @property
    def published(self) -> bool:
        """True when the runs are the committed records."""
        return self.results_dir.resolve() == runs.records_dir().resolve()

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `runs` that are done."""
        return self.runs[self.runs["state"] == "done"]


def repository_url(root: Path = ROOT) -> str:
    """The repository's public address: `[project.urls] Repository` in pyproject.toml, the one place where it stands."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"])


def colab_url(name: str) -> str:
    """Address that opens a notebook of the main branch on Colab."""
    return f"{repository_url().replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/notebooks/{name}.ipynb"


def open_chapter(topic: str, study: str, results_dir: str | Path) -> Chapter:
    """Train what the chapter lacks (never into the published records), collect, and read its tables.

    A relative `results_dir` starts at the clone's top folder.
    """
    from mvl import tables

    folder, spec = ROOT / results_dir, TOPICS[topic]
    known = [str(block["name"]) for block in load_study(study).grid]
    absent = [f"block `{b}` is not in the grid of study `{study}`" for b in spec.blocks[:1] if b not in known]
    used = [b for b in dict.fromkeys([*spec.blocks, *(["main"] if spec.extra else [])]) if b in known]
    for block in used:
        ensure_runs(study, block, folder)
    if folder.resolve() != runs.records_dir().resolve():
        tables.collect(study, folder)
    recorded = (folder / study / "runs.csv").is_file()
    read = lambda reader, columns: reader(study, folder) if recorded else pd.DataFrame(columns=columns)
    frames = read(tables.read_runs, tables.RUN_COLUMNS), read(tables.read_cases, tables.CASE_COLUMNS), \
        read(tables.read_history, [*tables.RUN_KEYS, *tables.HISTORY_COLUMNS])
    kept = [_restrict(frame, study, spec, used) for frame in frames]
    absent += _holes(study, spec, used, kept[0])
    return Chapter(topic, study, folder, kept[0], _foreground(kept[1]), kept[2], tuple(absent))


def _systems(study: str, spec: Topic, used: Sequence[str]) -> list[str]:
    """Systems of the chapter, in the study's order."""
    found = [run.system for block in used if block in spec.blocks for run in study_runs(study, block)]
    return [s for s in dict.fromkeys([*found, *spec.extra]) if not spec.only or s in spec.only]


def _restrict(frame: pd.DataFrame, study: str, spec: Topic, used: Sequence[str]) -> pd.DataFrame:
    return frame[frame["system"].isin(_systems(study, spec, used)) & frame["fraction"].isin(spec.fractions)].reset_index(drop=True)


def _holes(study: str, spec: Topic, used: Sequence[str], table: pd.DataFrame) -> list[str]:
    """One line per arm with planned runs that are not done, with their states."""
    done = set(map(tuple, table.loc[table["state"] == "done", ["system", "fraction", "fold", "seed"]].itertuples(index=False)))
    planned = {(r.system, r.fraction, r.fold, r.seed) for b in used for r in study_runs(study, b)}
    wanted = {p for p in planned if p[0] in _systems(study, spec, used) and p[1] in spec.fractions}
    arms: dict[tuple[str, float], int] = {}
    for system, fraction, *_ in sorted(wanted - done):
        arms[system, fraction] = arms.get((system, fraction), 0) + 1
    return [f"{figures.title(s)} at {f:.0%} of the data: {n} run{'s' if n > 1 else ''}" for (s, f), n in arms.items()]


def _foreground(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of the whole foreground where they are, else the mean over a case's labels."""
    if cases.empty or (cases["label"] == "foreground").any():
        return cases[cases["label"] == "foreground"].reset_index(drop=True)
    keys = ["study", "task", "system", "fraction", "fold", "seed", "case"]
    return cases.groupby(keys, as_index=False, sort=False).mean(numeric_only=True)


def differences(chapter: Chapter) -> pd.DataFrame:
    """Paired differences of test Dice for the chapter's contrasts: `mvl.stats.table`, the comparison in words and `hole`.

    A contrast that cannot be taken keeps its row: NaN, no runs, and why in `hole` (empty elsewhere).
    """
    from mvl import stats

    spec = TOPICS[chapter.topic]
    rows = [_difference(chapter, *pair, task, fraction)
            for pair, fraction, task in itertools.product(spec.contrasts, spec.fractions, chapter.tasks)]
    table = pd.DataFrame(rows, columns=[*stats.table([]).columns, "hole"])
    share = lambda row: f"\nat {row.fraction:.0%} of the data" if len(spec.fractions) > 1 else ""
    table["comparison"] = [f"{figures.title(row.system)}\nminus {figures.title(row.reference)}{share(row)}" for row in table.itertuples()]
    return table


def _difference(chapter: Chapter, system: str, reference: str, task: str, fraction: float) -> dict[str, Any]:
    from mvl import stats

    try:
        return stats.table([stats.compare(chapter.cases, system, reference, task, fraction)]).iloc[0].to_dict() | {"hole": ""}
    except stats.StatsError as error:
        return {"task": task, "system": system, "reference": reference, "fraction": fraction, "metric": "dice", "n_cases": 0, "n_runs": 0,
                "hole": str(error)}


def verdict(low: float, high: float, p_difference: float = math.nan, p_equivalence: float = math.nan) -> str:
    """What a 95 % interval of a Dice difference says, with the consent of the test over runs at 5 %.

    Without a test (p is NaN: one pair of runs) the interval leaves the variation between runs out, and nothing is decided.
    """
    band = figures.EQUIVALENCE_POINTS / 100
    if -band <= low and high <= band and p_equivalence < 0.05:
        return "equivalent within 1 Dice point"
    if low <= 0 <= high or not p_difference < 0.05:
        return "not decided"
    return "higher" if low > 0 else "lower"


def answer(chapter: Chapter) -> str:
    """The chapter's answer, one sentence for each comparison, computed, with what its interval leaves out; holes keep their line."""
    lead = "**Smoke study, no evidence about scans.** " if chapter.smoke else ""
    if chapter.done.empty:
        return f"{lead}No run of this chapter is recorded in the study `{chapter.study}` yet, so it has no answer."
    table = differences(chapter)
    lines = [f"- {_sentence(row)}" for row in table.to_dict("records")]
    if not table["n_runs"].any():
        return "\n".join([lead + _means(chapter), *([""] if lines else []), *lines])
    few = sorted({int(n) for n in table["n_runs"] if n in (2, 3)})
    if few:
        lines.append(f"\n*With {' or '.join(map(str, few))} pairs of runs the interval is too narrow; "
                     "the corrected t-test takes the few runs into account.*")
    return "\n".join([f"{lead.strip()}\n"] * bool(lead) + lines)


def _sentence(row: dict[str, Any]) -> str:
    from mvl.stats import ONE_PAIR

    words = " ".join(str(row["comparison"]).split("\n"))
    if row["hole"]:
        return f"{words}: not yet recorded ({row['hole']})."
    low, mid, high = (100 * row[k] for k in ("low", "difference", "high"))
    interval = f"95 % interval {low:+.1f} to {high:+.1f}"
    word = verdict(row["low"], row["high"], row["p_t"], row["p_equivalence"])
    if row["n_runs"] == 1:
        return f"{words}: {word}; **{mid:+.1f} Dice points** in the one pair of runs ({interval}, n = {row['n_cases']} case pairs: {ONE_PAIR})."
    return (f"{words}: **{mid:+.1f} Dice points** ({interval}; corrected t-test p = {row['p_t']:.2g}; n = {row['n_cases']} case pairs "
            f"from {row['n_runs']} pairs of runs): {word}.")


def _means(chapter: Chapter) -> str:
    arms = chapter.done.groupby("system", sort=False)
    return " ".join(f"{figures.title(str(s))} reaches a test Dice of **{rows['dice'].mean():.3f}** on the native grid "
                    f"({f'mean of {len(rows)} runs' if len(rows) > 1 else 'one run; run-to-run variation not measured'}, "
                    f"n = {int(rows['n_test'].max())} test cases each)." for s, rows in arms)


def results_table(chapter: Chapter) -> str:
    """Markdown table: each arm's means over its done runs, how many of the planned are done, and n."""
    head = ("| system | data | runs done | test cases | Dice | NSD | HD95, mm | Jaccard | trainable parameters |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines = [head]
    for (system, fraction), arm in chapter.runs.sort_values("fraction", kind="stable").groupby(["system", "fraction"], sort=False):
        done = arm[arm["state"] == "done"]
        numbers = ["not yet recorded", "", "", "", "", ""] if done.empty else [
            str(int(done["n_test"].max())), *(_mean_sd(done[m], d) for m, d in (("dice", 3), ("nsd", 3), ("hd95_mm", 2), ("jaccard", 3))),
            f"{int(done['trainable'].iloc[0]):,}"]
        lines.append(f"| {figures.title(str(system))} | {fraction:.0%} | {len(done)} of {len(arm)} | {' | '.join(numbers)} |")
    if len(lines) == 1:
        return f"No run of this chapter is planned or recorded in the study `{chapter.study}`: {'; '.join(chapter.holes)}."
    label = "Phantom data. " if chapter.smoke else ""
    note = "Mean over the done runs ± standard deviation over runs; metrics on the scans' own grid."
    if (chapter.done.groupby(["system", "fraction"]).size() == 1).any():
        note += " **An arm with one run done has no ±: its run-to-run variation is not measured.**"
    return "\n".join(lines) + f"\n\n{label}{note}"


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
    return ("MedVisionLlama v3 says that LoRA mappers beat plain linear ones with fewer trainable parameters, "
            "and that rank 4 is the best trade-off. "
            "Its numbers for this ablation could not be recovered.")


def compare(chapter: Chapter) -> str:
    """The paper's number and ours in one table; words only where the study is a smoke study."""
    words = claim(chapter.topic)
    if chapter.smoke:
        return (f"{words}\n\n*The study shown here, `{chapter.study}`, runs on phantoms: it checks that everything works "
                "and is not set beside these numbers.*")
    return (f"{words}\n\n*Not the same quantity as below: the paper averages ten tasks on a resized grid; this study has "
            f"{', '.join(chapter.tasks)} on the native grid.*")


def run_links(chapter: Chapter) -> str:
    """Markdown list of the chapter's done runs, each with its config, environment and cases; links where the runs are published."""
    if chapter.done.empty:
        return "No run is recorded yet."
    lines = ["| run | config | environment | cases |", "|---|---|---|---|"]
    for run in chapter.done["run"]:
        place = f"data/results/{run}" if chapter.published else f"{chapter.results_dir.name}/{run}"
        files = [_file_link(place, name, chapter.published) for name in ("config.yaml", "environment.json", "cases.csv")]
        lines.append(f"| `{str(run).split('/runs/')[-1]}` | {' | '.join(files)} |")
    return "\n".join(lines)


def _file_link(place: str, name: str, published: bool) -> str:
    return f"[{name}]({repository_url()}/blob/main/{quote(f'{place}/{name}')})" if published else f"`{name}`"


def inputs(chapter: Chapter) -> str:
    """sha256 of each table that the chapter read, one line each."""
    folder = chapter.results_dir / chapter.study
    tables = [path for path in (folder / "runs.csv", folder / "cases.csv", folder / "history.csv", PAPER_TABLE) if path.is_file()]
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
