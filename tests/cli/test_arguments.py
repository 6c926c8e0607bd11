"""Values that are typed are checked where they are parsed."""

from __future__ import annotations

import argparse

import pytest

from mvl.cli import arguments


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (arguments.fraction, {"1": 1.0, "0.1": 0.1}, ("0", "1.01", "nan", "-0.5", "inf")),
        (arguments.share, {"0": 0.0, "0.5": 0.5}, ("1", "-0.1", "nan", "inf")),
        (arguments.whole(0, 9), {"0": 0, "9": 9}, ("-1", "10")),
    ],
)
def test_a_number_outside_its_range_is_refused(parse, good, bad):
    assert {text: parse(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not in"):
            parse(text)


def test_a_task_is_named_in_full_and_weights_stay_weights():
    assert arguments.task_or_weights("hippocampus") == "Task04_Hippocampus"
    assert arguments.task_or_weights("weights") == "weights"
    assert arguments.task_name("my_own_scans") == "my_own_scans"


def test_a_commands_help_is_what_its_function_says():
    def handler(args: argparse.Namespace) -> int:
        """`mvl try`: tries it."""
        return 7

    top = argparse.ArgumentParser()
    command = arguments.add(top.add_subparsers(), "try", handler, arguments.as_json)
    args = top.parse_args(["try", "--json"])
    assert command.description == "Tries it." and args.json and args.handler(args) == 7
