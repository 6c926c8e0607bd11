"""`make gpu`: everything that a GPU must show, item by item, each in child processes with a time
limit, into `data/gpu.json`.

    python -m mvl.bench.gpu_checks
        shows every item that has no line of this card yet
    python -m mvl.bench.gpu_checks --items repeat 5
        shows some of them, by name or number
    python -m mvl.bench.gpu_checks --minutes 12 --then quick --at-once 12
        shows all, then trains runs of a study until the minutes are over

A call that was cut off goes on where it was. A crash, or an error after which the GPU no longer
answers, costs one part of one item.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvl.bench import gpu_record
from mvl.bench.gpu_children import card_name, child_environment, last_line, lines_of
from mvl.core import files, machine, run_folder
from mvl.core.config import ROOT

NO_GPU = "skipped: no GPU"
REHEARSED = ("vit_baseline", "cmunext")
"Systems that stand for all where there is no GPU: the command must end in a few minutes there."
CPU_RECORD = ROOT / "data" / "runs" / "gpu.json"
"Where lines of a machine without a GPU go: they are no part of the record."


@dataclass
class Asked:
    """What the command was asked for."""

    card: str
    "The card's own name; empty without one."
    record: Path
    data_dir: Path | None = None
    released: str | None = None
    again: bool = False
    small: bool = False
    "Small sizes, for tests."
    deadline: float = float("inf")
    "time.monotonic() at which nothing new is begun."
    failed: list[str] = field(default_factory=list)
    "Parts that failed in this call."

    @property
    def name(self) -> str:
        """The card as the lines name it."""
        return self.card or "CPU"


@dataclass(frozen=True)
class Item:
    """One of the things that a GPU must show."""

    number: int
    module: str
    "Module of the child process."
    limit_s: float
    "Seconds that one part may take."
    parts: Callable[[Asked], list[str]]
    "What it consists of, each with a line of its own."
    processes: int = 1
    "Child processes at a time; more than one only where no time is measured."
    needs_card: bool = True


def _whole(asked: Asked) -> list[str]:
    return [""]


def _systems(asked: Asked) -> list[str]:
    from mvl.study.grid import study_runs

    names = list(dict.fromkeys(config.system for config in study_runs("smoke")))
    return names if asked.card else [name for name in names if name in REHEARSED]


def _attention(asked: Asked) -> list[str]:
    from mvl.bench.gpu_probes import attention_parts

    return attention_parts()


def _steps(asked: Asked) -> list[str]:
    from mvl.bench.gpu_steps import step_parts

    return step_parts(asked.released)


def _together(asked: Asked) -> list[str]:
    from mvl.bench.gpu_run_probes import TOGETHER

    return list(TOGETHER)


ITEMS = {
    "facts": Item(1, "mvl.bench.gpu_probes", 120.0, _whole),
    "agree": Item(4, "mvl.bench.gpu_probes", 90.0, _systems, processes=4),
    "repeat": Item(3, "mvl.bench.gpu_run_probes", 180.0, _systems, processes=8, needs_card=False),
    "memory": Item(7, "mvl.bench.gpu_run_probes", 120.0, _whole),
    "evaluate": Item(8, "mvl.bench.gpu_run_probes", 300.0, _whole, needs_card=False),
    "torchrun": Item(9, "mvl.bench.gpu_run_probes", 300.0, _whole, needs_card=False),
    "share": Item(6, "mvl.bench.gpu_run_probes", 240.0, _together),
    "steps": Item(5, "mvl.bench.gpu_probes", 240.0, _steps),
    "attention": Item(2, "mvl.bench.gpu_probes", 60.0, _attention),
}
"Every item, the most wanted first; the numbers are those by which they may be asked for."


def check_items(names: Sequence[str], asked: Asked) -> None:
    """Show the items, one after another, until the time is over; a part that has a line already is
    left out."""
    for name in names:
        item = ITEMS[name]
        if item.needs_card and not asked.card and not asked.small:
            keep(asked, name, {"part": "", "state": NO_GPU, "facts": {}}, 0.0)
            continue
        left = [part for part in item.parts(asked) if asked.again or not _known(asked, name, part)]
        number = max(1, min(item.processes, len(left), (os.cpu_count() or 2) // 2))
        groups = [left[start::number] for start in range(number)]
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(lambda group, name=name: show_parts(asked, name, group), groups))


def _known(asked: Asked, name: str, part: str) -> bool:
    """Whether this card has a line of the part that says more than that it failed."""
    return any(
        (line["card"], line["item"], line["part"]) == (asked.name, name, part)
        and line["state"] in ("done", "refused")
        for line in gpu_record.read_lines(asked.record)
    )


def show_parts(asked: Asked, name: str, parts: list[str]) -> None:
    """Have child processes show the parts: a part that ends its process is recorded as failed, and
    a new one goes on with the rest."""
    left = list(parts)
    while left and time.monotonic() < asked.deadline:
        done = _child(asked, name, left)
        if not done and time.monotonic() < asked.deadline:
            # A new process would end before it began this part, too.
            facts = {"error": "the process ended before it began"}
            keep(asked, name, {"part": left[0], "state": "failed", "facts": facts}, 0.0)
            done = {left[0]}
        left = [part for part in left if part not in done]


def _child(asked: Asked, name: str, parts: list[str]) -> set[str]:
    """Run one child process; returns the parts that have a line now, the one that it died in among
    them."""
    item = ITEMS[name]
    done: set[str] = set()
    begun: str | None = None
    began = time.monotonic()
    settings = {
        "parts": parts,
        "device": "cuda" if asked.card else "cpu",
        "small": asked.small,
        "released": asked.released,
        "data_dir": str(asked.data_dir) if asked.data_dir else None,
    }
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", item.module, name, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            env=child_environment(),
            start_new_session=True,
        )
        try:
            for line in lines_of(process, item.limit_s, asked.deadline):
                if "begin" in line:
                    begun = line["begin"]
                    began = time.monotonic()
                    continue
                keep(asked, name, line, time.monotonic() - began)
                done.add(line["part"])
                begun = None
            why = f"failed: the process ended with {process.wait()}"
        except TimeoutError as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if time.monotonic() >= asked.deadline:
                return done  # no line: the next call goes on here
            why = f"failed: {error}"
        if begun is not None:
            facts = {"error": last_line(errors)}
            found = {"part": begun, "state": why, "facts": facts}
            keep(asked, name, found, time.monotonic() - began)
            done.add(begun)
    return done


def keep(asked: Asked, item: str, found: dict[str, Any], seconds: float) -> None:
    """Put a line into the record and print it."""
    line = {
        "card": asked.name,
        "item": item,
        **found,
        "took_s": round(seconds, 1),
        "at": files.now(),
        "commit": machine.environment()["mvl"]["commit"],
    }
    if line["state"].startswith("failed"):
        asked.failed.append(f"{item} {found['part']}")
    gpu_record.keep_line(line, asked.record)
    print(json.dumps(line), flush=True)


def named_item(text: str) -> str:
    """An item by its name or number."""
    numbers = {str(item.number): name for name, item in ITEMS.items()}
    name = numbers.get(text, text)
    if name not in ITEMS:
        known = ", ".join(f"{item.number} {name}" for name, item in ITEMS.items())
        raise argparse.ArgumentTypeError(f"{text!r} is none of {known}")
    return name


def train_more(study: str, asked: Asked, results_dir: Path, at_once: int) -> int:
    """Runs of a study until the time is over, in the order of its YAML, so many at once on the
    card; what is not whole is resumable."""
    from mvl.study.inline import Launch
    from mvl.study.launch import ensure_data
    from mvl.study.workers import run_workers

    minutes = max(0.0, (asked.deadline - time.monotonic()) / 60)
    ensure_data(study, asked.data_dir)
    launch = Launch(jobs=at_once, engine="workers", runs_per_gpu=at_once, allow_drift=True)
    code = run_workers(
        study, results_dir, asked.data_dir, launch, None if minutes == float("inf") else minutes
    )
    return 0 if code == 128 + signal.SIGTERM else code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(
        "python -m mvl.bench.gpu_checks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--items",
        nargs="*",
        type=named_item,
        default=list(ITEMS),
        metavar="ITEM",
        help="default: all",
    )
    add("--again", action="store_true", help="also what has a line of this card already")
    add("--minutes", type=float, default=float("inf"), help="time for everything together")
    add("--then", metavar="STUDY", help="with the time that is left, train runs of this study")
    add("--at-once", type=int, default=4, metavar="N", help="runs at once (default: 4)")
    results = run_folder.default_results_dir()
    add("--results-dir", type=Path, default=results, metavar="D", help="folder of those runs")
    about = "folder of the task folders (default: $MVL_DATA, else data/raw)"
    add("--data-dir", type=Path, metavar="D", help=about)
    about = "clone of MedVisionLlama's released code, whose ViT is measured beside ours"
    add("--released", metavar="CLONE", help=about)
    about = "the record (default: data/gpu.json; without a GPU data/runs/gpu.json)"
    add("--out", type=Path, metavar="FILE", help=about)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show the items that were asked for, then train; returns 1 when a part failed."""
    args = parse(argv)
    card = card_name()
    record = args.out or (gpu_record.RECORD if card else CPU_RECORD)
    released = str(Path(args.released).resolve()) if args.released else None
    asked = Asked(
        card,
        record,
        args.data_dir,
        released,
        args.again,
        deadline=time.monotonic() + 60 * args.minutes,
    )
    check_items(args.items, asked)
    code = train_more(args.then, asked, args.results_dir, args.at_once) if args.then else 0
    for part in asked.failed:
        print(f"failed: {part}", file=sys.stderr)
    return code or int(bool(asked.failed))


if __name__ == "__main__":
    sys.exit(main())
