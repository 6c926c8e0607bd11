"""The page `Your rerun` of a book that `make reproduce` builds: this machine's runs of a study
beside their record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from mvl.core import run_folder
from mvl.core.markdown import markdown_table
from mvl.evidence.arms import caveat
from mvl.evidence.chapter import covered, open_chapter
from mvl.evidence.example_masks import load_examples
from mvl.publish.book_facts import reproduction
from mvl.publish.figures_cases import example_segmentations
from mvl.publish.style import svg
from mvl.study import tables
from mvl.study.grid import load_study

PAGE, PICTURE = "rerun", "rerun.svg"
TIP = """
:::{{tip}}
Built on your machine: every figure is drawn again from the committed records, and
[your rerun]({page}.md) of `{study}` stands beside its own.
:::
"""


def add(staging: Path, study: str, results: Path) -> None:
    """Write the page into the staged sources, first in their contents and named on the landing
    page."""
    tables.collect(study, results)
    (staging / f"{PAGE}.md").write_text(page(staging, study, results))
    contents = yaml.safe_load((staging / "_toc.yml").read_text())
    contents["parts"].insert(0, {"caption": "This machine", "chapters": [{"file": PAGE}]})
    (staging / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False))
    intro = staging / "intro.md"
    head, _, rest = intro.read_text().partition("\n")
    intro.write_text(head + "\n" + TIP.format(page=PAGE, study=Path(study).stem) + rest)


def page(staging: Path, study: str, results: Path) -> str:
    """The page's Markdown; draws its picture into `staging`."""
    topics, name = covered(study), Path(study).stem
    chapter = open_chapter("qualitative" if "qualitative" in topics else topics[0], study, results)
    examples, holes = load_examples(chapter)
    (staging / PICTURE).write_text(svg(example_segmentations(examples, holes)))
    runs = tables.read_runs(study, results)
    done = runs[runs["state"] == "done"]
    words = caveat(chapter.tasks)
    warning = f":::{{warning}}\n{words[:1].upper()}{words[1:]}.\n:::\n\n" if words else ""
    shown = ", ".join(example.case for example in examples) or "none"
    return f"""# Your rerun

{warning}`{name}`, {load_study(study).title.lower()}: {len(done)} of {len(runs)} runs are trained
here, in {done["runtime_s"].sum() / 60:.0f} minutes of training in all. Each lies in a folder below
`{run_folder.records_dir().parent.name}/runs/{name}`.

```{{figure}} {PICTURE}
:alt: Test scans with the label and each arm's mask
Test cases {shown}, ranked by the Dice of the first arm, none chosen by hand: the scan, the label
(yellow) and what each network trained here segments.
```

## Dice beside the record

{reproduction(study, results, False, " dice (")}

:::{{dropdown}} Every quantity
{reproduction(study, results, False)}
:::

## This machine

{machine_table(results, done)}
"""


def machine_table(results: Path, done: pd.DataFrame) -> str:
    """Processor and versions of each machine that trained runs, with how many it trained."""
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    for run in done["run"]:
        said = json.loads((Path(results) / str(run) / "environment.json").read_text())
        facts = {**said["platform"], "python": said["python"], **said["packages"]}
        counts[tuple((f"`{key}`", str(value)) for key, value in facts.items())] += 1
    return "\n\n".join(markdown_table([f"{n} runs", ""], "ll", rows) for rows, n in counts.items())
