"""What `mvl plan` and each action of `mvl study` do."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mvl.cli.commands import answer
from mvl.core.errors import BAD, DONE


def study_run(args: argparse.Namespace) -> int:
    """`mvl study run S`: the runs that are not done yet, then the tables."""
    from mvl.bench.needs import write_needs
    from mvl.study.inline import Launch
    from mvl.study.launch import dry_run, run_study
    from mvl.study.tables import collect

    launch = Launch(
        args.jobs, args.engine, args.profile, args.runs_per_gpu, args.device, args.allow_drift
    )
    if args.dry_run:
        return dry_run(args.study, args.results_dir, args.data_dir, launch, write_needs)
    code = run_study(args.study, args.results_dir, args.data_dir, launch, write_needs)
    if code < 128:
        print(collect(args.study, args.results_dir))
    return code


def study_status(args: argparse.Namespace) -> int:
    """`mvl study status S`: what is done, running, failed."""
    from mvl.study.status import study_status as status

    value = answer(args, lambda: status(args.study, args.results_dir), show_status)
    return BAD if args.complete and value["done"] < value["total"] else DONE


def show_status(value: dict[str, Any]) -> str:
    """One line per run, then the counts."""
    lines = [
        f"{run['state']:<12}{run['run']}"
        + (f"  epoch {run['epoch']}/{run['epochs']}" if run["state"] == "running" else "")
        + (f"  held by {run['held']}" if run.get("held") else "")
        + (f"  {run['error']}" if run.get("error") else "")
        for run in value["runs"]
    ]
    counts = ", ".join(
        f"{value[key]} {key}" for key in ("running", "failed", "missing") if value[key]
    )
    return "\n".join(
        [
            *lines,
            f"{value['study']}: {value['done']} of {value['total']} runs done"
            + (f", {counts}" if counts else ""),
        ]
    )


def plan(args: argparse.Namespace) -> int:
    """`mvl plan S`: what a study will cost before it starts: runs, hours, memory, bytes; exit 1
    when the disk is too small."""
    if args.power:
        return plan_power(args)
    from mvl.bench import plan as plan_module
    from mvl.bench.plan_text import plan_as_text, refusal

    words = (
        args.study,
        args.device,
        args.results_dir,
        args.data_dir,
        args.epochs,
        args.every_system,
    )
    value = answer(args, lambda: plan_module.plan(*words), plan_as_text)
    if args.record:
        from mvl.publish.plan_page import record

        record(args.study, args.epochs, args.every_system)
    if refused := refusal(value):
        print(f"mvl: {refused}", file=sys.stderr)
    return BAD if refused else DONE


def plan_power(args: argparse.Namespace) -> int:
    """`mvl plan S --power`: what each contrast of a study can decide, from recorded variances."""
    from mvl.evidence import power_plan

    words = (args.variances, args.sd, args.designs, args.families, args.against)
    answer(args, lambda: power_plan.power_plan(args.study, *words), power_plan.power_as_text)
    return DONE


def study_tune(args: argparse.Namespace) -> int:
    """`mvl study tune S`: the short trials on validation cases that the study's learning rates come
    from; writes tuning.csv and says which rates it would choose."""
    import pandas as pd

    from mvl.study import tuning

    path = tuning.tune(args.study, args.results_dir, args.data_dir, args.systems)
    table = pd.read_csv(path)
    for system, rate in tuning.best_rates(table).items():
        print(f"[tune] {system}: {rate:g}", file=sys.stderr)
    for system in tuning.at_the_edge(table):
        words = "no stable rate lies between two others; widen its grid"
        print(f"[tune] {system}: {words}", file=sys.stderr)
    print(path)
    return DONE


def study_check(args: argparse.Namespace) -> int:
    """`mvl study check S`: every recorded quantity beside the rerun's; exit 1 when one does not
    reproduce."""
    from mvl.study.reproduction import main as reproduction_check

    return reproduction_check(args.study, args.results_dir)


def study_collect(args: argparse.Namespace) -> int:
    """`mvl study collect S`: writes runs.csv, cases.csv, history.csv and, of external tests,
    external.csv."""
    from mvl.study.tables import collect

    print(collect(args.study, args.results_dir))
    return DONE


def study_record(args: argparse.Namespace) -> int:
    """`mvl study record S`: copies the done runs' records, without weights, into data/results."""
    from mvl.core.run_folder import records_dir
    from mvl.study.tables import record

    print(record(args.study, args.results_dir, records_dir()))
    return DONE


def study_maps(args: argparse.Namespace) -> int:
    """`mvl study maps S`: measures activations before and after the block from weights, writes
    activations.csv and .npz into data/results."""
    from pathlib import Path

    from mvl.core.run_folder import records_dir
    from mvl.evidence.activation_records import record

    target = records_dir() / Path(args.study).stem
    found = record(
        args.study,
        args.results_dir,
        target,
        args.data_dir,
        args.cases,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    for name, why in found["absent"].items():
        print(f"not measured: {name}: {why}", file=sys.stderr)
    print(
        f"{target / 'activations.csv'}: {found['rows']} rows of {found['runs']} runs"
        if found["runs"]
        else "no run could be measured"
    )
    return DONE if found["runs"] else BAD
