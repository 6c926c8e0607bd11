"""What each command of `mvl` does: one call into the package, imported when it is asked for, and
how its answer is printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from typing import Any

from mvl.core.errors import BAD, DONE, USAGE


@contextmanager
def chatter_to_stderr(active: bool = True) -> Iterator[None]:
    """While active, whatever Python code, C libraries and child processes print on standard output
    goes to standard error."""
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def answer(args: argparse.Namespace, ask: Callable[[], Any], show: Callable[[Any], str]) -> Any:
    """Call `ask`, print its value as one JSON document (--json) or as `show` words it, and return
    it."""
    with chatter_to_stderr(args.json):
        value = ask()
    print(json.dumps(value, indent=1, allow_nan=False) if args.json else show(value))
    return value


def fetch(args: argparse.Namespace) -> int:
    """`mvl fetch TASK|weights`: gets a task's data, or a language model's layer, and prints where
    it lies."""
    if args.task == "weights":
        from mvl.weights.sources import fetch_source

        print(fetch_source(args.source, args.layer))
        return DONE
    from mvl.datasets import download
    from mvl.datasets.task import MADE
    from mvl.datasets.task_data import open_task

    data = open_task(args.task, args.data_dir)
    here = data.task.own or data.task.name in MADE
    print(data.folder if here else download.fetch(data))
    return DONE


def verify(args: argparse.Namespace) -> int:
    """`mvl verify TASK`: checks every case of a task; one line per bad file, exit 1 when there is
    one; files that no run reads are noted."""
    from mvl.datasets import verify as verify_module
    from mvl.datasets.task_data import open_task

    def listed(found: list[verify_module.Finding]) -> list[dict[str, str]]:
        return [{"path": f.path, "fault": f.fault, "remedy": f.remedy} for f in found]

    def ask() -> dict[str, Any]:
        found = verify_module.verify(open_task(args.task, args.data_dir))
        return {
            "task": args.task,
            "findings": listed([f for f in found if not f.note]),
            "notes": listed([f for f in found if f.note]),
        }

    def show(value: dict[str, Any]) -> str:
        lines = [
            f"{word}{f['path']}: {f['fault']}; {f['remedy']}"
            for word, kind in (("", "findings"), ("note: ", "notes"))
            for f in value[kind]
        ]
        whole = [] if value["findings"] else [f"{args.task}: every case is whole"]
        return "\n".join([*lines, *whole])

    return BAD if answer(args, ask, show)["findings"] else DONE


def cache(args: argparse.Namespace) -> int:
    """`mvl cache`: says how many decoded cases MVL_CACHE keeps on disk; --clear deletes them."""
    from mvl.datasets import decoded_cache

    answer(args, lambda: decoded_cache.describe(args.clear), decoded_cache.show)
    return DONE


def train(args: argparse.Namespace) -> int:
    """`mvl train`: trains or goes on with one run, evaluates it, prints its folder last."""
    from mvl.core.config import load_config
    from mvl.study.grid import load_study

    load_study(args.study)  # refuses keys that no run would read
    config = load_config(args.study, args.task, args.system, args.fraction, args.fold, args.seed)
    if args.tensorboard:
        import tensorboard  # noqa: F401  # absent: said before anything starts

        os.environ["MVL_TENSORBOARD"] = "1"
    from mvl.study.gpu_slots import one_gpu
    from mvl.training.run import train_run

    with one_gpu(args.runs_per_gpu):
        print(
            train_run(
                config,
                args.results_dir,
                args.data_dir,
                allow_drift=args.allow_drift,
                study=args.study,
            ),
            flush=True,
        )
    return DONE


def evaluate(args: argparse.Namespace) -> int:
    """`mvl evaluate RUN`: scores a trained run again and writes its cases.csv; --on TASK: on every
    case of another task."""
    from mvl.training.external import evaluate_command

    return evaluate_command(args.run, args.on, args.data_dir)


def usage(args: argparse.Namespace) -> int:
    """`mvl usage RUN`: how much a trained hybrid uses its block: test Dice with the block knocked
    out; writes usage.csv where there is none."""
    from mvl.training.usage import usage_as_text, usage_of_run

    answer(args, lambda: usage_of_run(args.run, args.data_dir), usage_as_text)
    return DONE


def predict(args: argparse.Namespace) -> int:
    """`mvl predict RUN INPUT...`: segments new scans with a trained run, each in its own geometry;
    exit 1 when one could not be."""

    def ask() -> dict[str, Any]:
        from mvl.training.predict import Options, predict_run

        options = Options(**{each.name: getattr(args, each.name) for each in fields(Options)})
        return predict_run(args.run, args.inputs, args.output, options)

    value = answer(args, ask, lambda value: "\n".join(row["output"] for row in value["outputs"]))
    for failure in value["failures"]:
        print(f"mvl: {failure['fault']}", file=sys.stderr)
    return BAD if value["failures"] else DONE


def export(args: argparse.Namespace) -> int:
    """`mvl export RUN DIR`: writes a trained run in the hub's layout; prints the folder last."""
    from mvl.training.export import export_as_text, export_run

    answer(
        args,
        lambda: export_run(args.run, args.folder, not args.no_onnx, args.data_dir),
        export_as_text,
    )
    return DONE


def claims(args: argparse.Namespace) -> int:
    """`mvl claims`: what the papers claim, claim by claim, with the verdict that a stated rule
    computes from the records."""
    from mvl.core.config import ConfigError
    from mvl.core.run_folder import records_dir
    from mvl.evidence import claims_ledger, claims_text

    results = args.results_dir or records_dir()
    if not results.is_dir():
        raise ConfigError(f"{results}: no such folder")
    entries = claims_ledger.ledger(results, (args.study,) if args.study else ())
    answer(
        args,
        lambda: claims_text.as_json(entries),
        lambda value: claims_text.claims_as_text(entries),
    )
    return DONE


def audit(args: argparse.Namespace) -> int:
    """`mvl audit`: what the papers' code does against what the papers say, with figures; what a
    clone of it shows; what each fault is worth."""
    from mvl.core.run_folder import records_dir
    from mvl.evidence import audit_findings
    from mvl.evidence.audit_measures import measure_surfaces

    if args.measure:
        measure_surfaces(args.data_dir)
    answer(
        args,
        lambda: audit_findings.report(args.released, records_dir()),
        audit_findings.report_as_text,
    )
    return DONE


def systems(args: argparse.Namespace) -> int:
    """`mvl systems`: each system's name, source, spatial dims and parameter counts at the released
    sizes."""
    from mvl.models.describe import describe_systems

    def show(rows: list[dict[str, Any]]) -> str:
        lines = [f"{'system':<30}{'trainable':>13}{'frozen':>13}{'total':>13}  source"]
        for row in rows:
            counts = "".join(f"{row[key]:>13,}" for key in ("trainable", "frozen", "total"))
            lines.append(f"{row['name']:<28}{row['spatial_dims']}-D{counts}  {row['source']}")
        return "\n".join(lines)

    answer(args, describe_systems, show)
    return DONE


def bench(args: argparse.Namespace) -> int:
    """`mvl bench`: speed and memory beside their bars, each a ratio within one run; with names, a
    training step of those systems."""
    from mvl.bench.bars import bench as measure
    from mvl.bench.systems import cost, measurable, measure_systems, record_bench

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if args.part:
        return bench_part(args, tell)

    def ask() -> dict[str, Any]:
        names = (
            measurable(args.study)
            if args.system == ["all"] or (args.study and not args.system)
            else args.system
        )
        found: dict[str, Any] = {
            "bars": [] if names else measure(args.released, tell),
            "systems": measure_systems(names, args.study, tell),
        }
        if args.record:
            record_bench(found["bars"], found["systems"], args.study)
        return found

    def show(found: dict[str, Any]) -> str:
        lines = []
        for row in found["bars"]:
            word = "met" if row["met"] else "MISSED"
            bar = f"{word:<8}{row['bar_is']} {row['bar']:.3g}"
            lines.append(f"{row['value']:>10.4g} {row['unit']:<6}{bar:<26}{row['what']}")
        for name, row in found["systems"].items():
            lines.append(f"{row['share']:>6.2f} of the matmul peak  {name}: {cost(row)}")
        return "\n".join(lines)

    answer(args, ask, show)
    return DONE


def bench_part(args: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """`mvl bench --loader` and `mvl bench --overhead`; --record writes data/loader.json or
    data/overhead.json."""
    import importlib

    from mvl.core.files import write_json

    room = importlib.import_module(
        {"loader": "mvl.bench.loader", "overhead": "mvl.bench.overhead"}[args.part]
    )
    value = answer(args, lambda: room.bench(tell, args.data_dir), room.show)
    if args.record:
        write_json(room.RECORD, value)
    return DONE


def notebook(args: argparse.Namespace) -> int:
    """`mvl notebook NAME -p KEY VALUE`: executes a notebook; unknown parameters are refused."""
    from mvl.publish import notebooks

    try:
        path, given = notebooks.notebook_path(args.name), dict(args.parameter)
        notebooks.check_parameters(
            given, notebooks.declared_parameters(json.loads(path.read_text()), path.name), path.name
        )
    except notebooks.NotebookError as error:
        print(f"mvl: {error}", file=sys.stderr)
        return USAGE
    print(notebooks.run_notebook(args.name, given))
    return DONE


def book(args: argparse.Namespace) -> int:
    """`mvl book`: executes the notebooks and builds the book, of the published records or of one
    study's runs; --rerun STUDY: with a page on this machine's runs."""
    from mvl.publish import book as book_module
    from mvl.publish import figure_data

    index = book_module.build_book(args.study, args.results_dir, rerun=args.rerun).resolve()
    if args.record:
        print(figure_data.write_table(index.parent), file=sys.stderr)
    print(index.as_uri())
    return DONE


def figures(args: argparse.Namespace) -> int:
    """`mvl figures`: draws README's figure and results again from the published records; --check
    FOLDER: compares the figures of a built book with the published ones."""
    if args.check:
        from mvl.publish import figure_data

        return figure_data.main(args.check)
    from mvl.core import files, run_folder
    from mvl.core.config import ROOT
    from mvl.evidence import claims_ledger, differences
    from mvl.evidence.chapter import open_chapter
    from mvl.publish import claims_page, readme
    from mvl.publish.book_facts import PUBLISHED
    from mvl.publish.figures_differences import paired_differences
    from mvl.publish.style import svg

    chapter = open_chapter("llm_hybrid", PUBLISHED[0], run_folder.records_dir())
    target = run_folder.records_dir() / PUBLISHED[0] / "figure.svg"
    files.atomic_write(
        target, svg(paired_differences(differences.differences(chapter), chapter.holes))
    )
    records = run_folder.records_dir()
    entries = claims_ledger.ledger(records)
    answer = readme.short_answer(entries, records)
    words = [answer, claims_page.summary(entries)]
    changed = readme.update_readme(ROOT / "README.md", "\n\n".join(words))
    files.atomic_write(records / "README.md", readme.results_page(records))
    print(
        f"{target.relative_to(ROOT)} and the tables of data/results/README.md are drawn;"
        f" README.md {'changed' if changed else 'is up to date'}"
    )
    return DONE


def doctor(args: argparse.Namespace) -> int:
    """`mvl doctor`: what a bug report needs, and what is missing with its remedy."""
    from mvl.cli import doctor as doctor_module
    from mvl.cli.doctor import report

    answer(args, lambda: report(args.data_dir), doctor_module.show)
    return DONE
