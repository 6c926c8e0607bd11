"""Options of `mvl plan` and `mvl study`: each action has its study, its function, its defaults."""

from __future__ import annotations

import argparse

import pytest

from mvl.cli import study_commands, study_parser


def parse(*words: str) -> argparse.Namespace:
    """What these words give, parsed by the commands of studies alone."""
    top = argparse.ArgumentParser()
    study_parser.add_study(top.add_subparsers(required=True))
    return top.parse_args(words)


@pytest.mark.parametrize("action", ["run", "status", "tune", "maps", "check", "collect", "record"])
def test_each_action_calls_its_function_with_a_study(action: str) -> None:
    args = parse("study", action, "quick")
    assert args.study == "quick" and args.handler is getattr(study_commands, f"study_{action}")
    with pytest.raises(SystemExit):
        parse("study", action)


def test_a_run_takes_its_engine_and_its_jobs() -> None:
    plain = parse("study", "run", "quick")
    assert (plain.jobs, plain.engine, plain.dry_run) == (2, "snakemake", False)
    words = ("--engine", "workers", "--jobs", "8", "--dry-run")
    asked = parse("study", "run", "quick", *words)
    assert (asked.jobs, asked.engine, asked.dry_run) == (8, "workers", True)
    for wrong in (("--jobs", "0"), ("--engine", "none")):
        with pytest.raises(SystemExit):
            parse("study", "run", "quick", *wrong)


def test_a_plan_takes_its_device_and_its_epochs() -> None:
    args = parse("plan", "paper", "--device", "8xh100", "--epochs", "200")
    assert args.handler is study_commands.plan and not args.power
    assert (args.device, args.epochs, args.every_system) == ("8xh100", 200, False)
