"""Options of `mvl plan` and of each action of `mvl study`."""

from __future__ import annotations

from typing import Any

from mvl.cli import study_commands
from mvl.cli.arguments import (
    add,
    allow_drift,
    as_json,
    data_dir,
    results_dir,
    whole,
)


def add_plan(commands: Any) -> None:
    """plan, with its options of cost and of power."""
    command = add(commands, "plan", study_commands.plan, results_dir, data_dir, as_json)
    command.add_argument("study", metavar="S", help="name in mvl/configs/studies")
    command.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (one core), h100, h200, a100, t4, or several: 8xh100 (default: cpu)",
    )
    command.add_argument(
        "--epochs",
        type=whole(1, 10**6),
        metavar="N",
        help="for so many epochs (default: the study's)",
    )
    command.add_argument(
        "--every-system",
        action="store_true",
        help="with every system of the study's dims, on all its tasks and folds",
    )
    command.add_argument(
        "--record",
        action="store_true",
        help="write data/plan.json, the plan that the book shows (one and eight H100, one T4)",
    )
    command.add_argument(
        "--power",
        action="store_true",
        help="say instead what each contrast can decide, from variances measured before",
    )
    command.add_argument(
        "--variances",
        nargs="+",
        metavar="S",
        help="recorded studies to take variances from, in order (default: S itself)",
    )
    command.add_argument(
        "--sd",
        type=float,
        metavar="POINTS",
        help="standard deviation of a fold's mean difference where none is measured",
    )
    command.add_argument(
        "--designs",
        nargs="+",
        metavar="FxS",
        help="folds x seeds, such as 5x1 5x2 10x1 (default: the study's own)",
    )
    command.add_argument(
        "--families",
        nargs="+",
        type=whole(1, 1000),
        metavar="N",
        help="sizes of Holm's family (default: 1 and the contrast's own)",
    )
    command.add_argument(
        "--against",
        metavar="ARM",
        help="compare every arm with this one (default: the chapters' contrasts)",
    )


def add_study(commands: Any) -> None:
    """plan, study run|status|tune|maps|check|collect|record."""
    add_plan(commands)
    top = commands.add_parser(
        "study",
        help="run a study, show how far it is, check and record its results",
        allow_abbrev=False,
    )
    actions = top.add_subparsers(title="actions", required=True, metavar="ACTION")
    command = add(actions, "run", study_commands.study_run, results_dir, data_dir)
    command.add_argument(
        "--jobs",
        type=whole(1, 4096),
        default=2,
        metavar="N",
        help="runs at a time, one thread each (default: 2)",
    )
    command.add_argument(
        "--engine",
        choices=("snakemake", "inline", "workers"),
        default="snakemake",
        help=(
            "inline: one after another in this process; workers: so in each of --jobs processes,"
            " without Snakemake"
        ),
    )
    command.add_argument(
        "--profile",
        default="local",
        metavar="P",
        help="folder of workflow/profiles: local, slurm, kubernetes (default: local)",
    )
    command.add_argument(
        "--runs-per-gpu",
        type=whole(1, 64),
        default=1,
        metavar="N",
        help="runs that share a card of this machine (default: 1)",
    )
    command.add_argument(
        "--device",
        default="",
        metavar="NAME",
        help=(
            "with a cluster's profile: what its runs are planned for and ask for, such as h100"
            " (default: the profile's, else cpu)"
        ),
    )
    allow_drift(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="list the runs that would start and what each asks for; train nothing",
    )
    status = add(actions, "status", study_commands.study_status, results_dir, as_json)
    status.add_argument("--complete", action="store_true", help="exit 1 unless every run is done")
    trials = add(actions, "tune", study_commands.study_tune, results_dir, data_dir)
    trials.add_argument(
        "--systems", nargs="+", metavar="NAME", help="only these systems' trials (default: all)"
    )
    maps = add(actions, "maps", study_commands.study_maps, results_dir, data_dir)
    maps.add_argument(
        "--cases",
        type=whole(1, 10**6),
        default=24,
        metavar="N",
        help="test cases per run, evenly spaced (default: 24)",
    )
    rest = [
        add(actions, "check", study_commands.study_check, results_dir),
        add(actions, "collect", study_commands.study_collect, results_dir),
        add(actions, "record", study_commands.study_record, results_dir),
    ]
    for each in (command, status, trials, maps, *rest):
        each.add_argument("study", metavar="S", help="name in mvl/configs/studies")
