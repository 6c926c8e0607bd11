"""A chapter: the runs of a study that it reads, what it trains of them, and which arms it compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mvl import runs
from mvl.config import ROOT
from mvl.datasets.tasks import MADE, find_task
from mvl.studies import ensure_runs, load_study, study_runs
from mvl.style import title

VIT, HYBRID, RANDOM = "vit_baseline", "medvisionllama_v3", "medvisionllama_v3_random"
CNN, LLM4SEG, LLM4SEG_RANDOM = "cmunext", "llm4seg", "llm4seg_random"
V1 = "medvisionllama_v1"
CONTROLS = ("mlp", "identity", "noresidual", "shuffled", "random_matched", "after_embedding", "trained", "random_trained")
"Substitutions for what sits between the hybrid's mappers, and where it sits."


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
    "(system, reference) pairs whose difference is taken, where the study plans both."
    metrics: tuple[str, ...] = ("dice",)
    "Columns of cases.csv whose differences are taken."


TOPICS = {
    "baseline": Topic(("main",), only=(VIT,)),
    "llm_hybrid": Topic(("main",), contrasts=((HYBRID, VIT), (RANDOM, VIT), (HYBRID, RANDOM))),
    "few_shot": Topic(("few_shot", "main"), fractions=(0.1, 0.3, 1.0), only=(VIT, HYBRID), contrasts=((HYBRID, VIT),)),
    "lora_ablation": Topic(("lora",), extra=(HYBRID, VIT), contrasts=(
        ("medvisionllama_v3_r2", HYBRID), ("medvisionllama_v3_r8", HYBRID), ("medvisionllama_v3_r16", HYBRID),
        ("medvisionllama_v3_linear", HYBRID))),
    "version_1": Topic(("v1",), extra=(HYBRID, VIT), contrasts=(
        (V1, VIT), (V1, HYBRID), (V1, f"{V1}_plain"), (f"{V1}_hybrid", f"{V1}_plain"), (f"{V1}_fusion", f"{V1}_plain"), (V1, f"{V1}_noblock"))),
    "controls": Topic(("controls",), extra=(HYBRID, RANDOM, VIT), contrasts=(
        *((f"{HYBRID}_{control}", HYBRID) for control in CONTROLS), ("vit_depth", HYBRID), ("vit_mlp", HYBRID))),
    "llm4seg": Topic(("llm4seg",), metrics=("jaccard", "dice"), contrasts=((LLM4SEG, CNN), (LLM4SEG_RANDOM, CNN), (LLM4SEG, LLM4SEG_RANDOM))),
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
    def folder(self) -> Path:
        """Folder of the study's tables."""
        return self.results_dir / Path(self.study).stem

    @property
    def tasks(self) -> list[str]:
        """Tasks of the chapter's blocks."""
        study = load_study(self.study)
        blocks = [block for block in study.grid if block["name"] in TOPICS[self.topic].blocks]
        return list(dict.fromkeys(task for block in blocks for task in block.get("tasks", study.tasks))) or list(study.tasks)

    @property
    def smoke(self) -> bool:
        """True when the chapter has generated data only, so that no number may stand beside a paper's."""
        return set(self.tasks) <= set(MADE)

    @property
    def unit(self) -> str:
        """Unit of the chapter's distances: mm, or px for pictures."""
        return find_task(self.tasks[0]).unit

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        """The topic's contrasts of which the study plans both systems."""
        planned = systems_of(self.study, TOPICS[self.topic])
        return [pair for pair in TOPICS[self.topic].contrasts if set(pair) <= set(planned)]

    @property
    def published(self) -> bool:
        """True when the runs are the committed records."""
        return self.results_dir.resolve() == runs.records_dir().resolve()

    @property
    def done(self) -> pd.DataFrame:
        """The rows of `runs` that are done."""
        return self.runs[self.runs["state"] == "done"]


def open_chapter(topic: str, study: str, results_dir: str | Path) -> Chapter:
    """Train what the chapter lacks (never into the published records), collect, and read its tables.

    A relative `results_dir` starts at the clone's top folder.
    """
    from mvl import tables

    folder, spec = ROOT / results_dir, TOPICS[topic]
    for block in used_blocks(study, spec):
        ensure_runs(study, block, folder)
    if folder.resolve() != runs.records_dir().resolve():
        tables.collect(study, folder)
    recorded = (folder / Path(study).stem / "runs.csv").is_file()
    read = lambda reader, columns: reader(study, folder) if recorded else pd.DataFrame(columns=columns)
    frames = read(tables.read_runs, tables.RUN_COLUMNS), read(tables.read_cases, tables.CASE_COLUMNS), \
        read(tables.read_history, [*tables.RUN_KEYS, *tables.HISTORY_COLUMNS])
    systems = systems_of(study, spec)
    kept = [frame[frame["system"].isin(systems) & frame["fraction"].isin(spec.fractions)].reset_index(drop=True) for frame in frames]
    return Chapter(topic, study, folder, kept[0], _foreground(kept[1]), kept[2], tuple(_holes(study, spec, systems, kept[0])))


def covered(study: str) -> list[str]:
    """Topics whose first block is in the study's grid."""
    known = {str(block["name"]) for block in load_study(study).grid}
    return [topic for topic, spec in TOPICS.items() if spec.blocks[0] in known]


def used_blocks(study: str, spec: Topic) -> list[str]:
    """Blocks of the study's grid that the topic reads."""
    known = [str(block["name"]) for block in load_study(study).grid]
    return [b for b in dict.fromkeys([*spec.blocks, *(["main"] if spec.extra else [])]) if b in known]


def systems_of(study: str, spec: Topic) -> list[str]:
    """Systems of the chapter, in the study's order."""
    found = [str(s) for block in used_blocks(study, spec) if block in spec.blocks for s in load_study(study).block(block)["systems"]]
    return [s for s in dict.fromkeys([*found, *spec.extra]) if not spec.only or s in spec.only]


def _holes(study: str, spec: Topic, systems: Sequence[str], table: pd.DataFrame) -> list[str]:
    """One line for a block that the study has not, and one per arm with planned runs that are not done."""
    used = used_blocks(study, spec)
    absent = [f"block `{b}` is not in the grid of study `{study}`" for b in spec.blocks[:1] if b not in used]
    done = set(map(tuple, table.loc[table["state"] == "done", ["system", "fraction", "fold", "seed"]].itertuples(index=False)))
    planned = {(r.system, r.fraction, r.fold, r.seed) for b in used for r in study_runs(study, b)}
    wanted = {p for p in planned if p[0] in systems and p[1] in spec.fractions}
    arms: dict[tuple[str, float], int] = {}
    for system, fraction, *_ in sorted(wanted - done):
        arms[system, fraction] = arms.get((system, fraction), 0) + 1
    return absent + [f"{title(s)} at {f:.0%} of the data: {n} run{'s' if n > 1 else ''}" for (s, f), n in arms.items()]


def unplanned(chapter: Chapter) -> Sequence[str]:
    """Systems of the topic's contrasts that the study does not plan."""
    planned = systems_of(chapter.study, TOPICS[chapter.topic])
    return list(dict.fromkeys(s for pair in TOPICS[chapter.topic].contrasts for s in pair if s not in planned))


def _foreground(cases: pd.DataFrame) -> pd.DataFrame:
    """The rows of the whole foreground where they are, else the mean over a case's labels."""
    if cases.empty or (cases["label"] == "foreground").any():
        return cases[cases["label"] == "foreground"].reset_index(drop=True)
    keys = ["study", "task", "system", "fraction", "fold", "seed", "case"]
    return cases.groupby(keys, as_index=False, sort=False).mean(numeric_only=True)
