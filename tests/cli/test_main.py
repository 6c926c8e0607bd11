"""The command line is a contract: its words, its exit codes, and which stream says what."""

import subprocess
import sys

import pytest

from mvl.cli import commands, main, parser
from mvl.core.config import ROOT, ConfigError
from mvl.core.errors import MvlError

TRAIN = ["train", "--study", "quick", "--task", "phantoms", "--system", "vit_baseline"]
HEAVY = ("torch", "monai", "transformers", "pandas", "matplotlib", "numpy", "scipy")


def usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error of a call that must end with 2, and print nothing on standard output."""
    with pytest.raises(SystemExit) as left:
        main.main(argv)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("value", ["nan", "0", "-0.1", "1.0001", "inf", "half", ""])
def test_a_fraction_is_a_number_above_0_up_to_1(value, capsys):
    assert "--fraction" in usage_error([*TRAIN, f"--fraction={value}"], capsys)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--fold", "10"),
        ("--fold", "-1"),
        ("--fold", "1.5"),
        ("--seed", "-1"),
        ("--task", "hipocampus"),
    ],
)
def test_other_wrong_values_are_named_too(option, value, capsys):
    assert option in usage_error([*TRAIN, f"{option}={value}"], capsys)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["study"],
        ["nosuch"],
        ["train"],
        ["verify"],
        [*TRAIN, "--frac", "0.5"],
        ["doctor", "--js"],
        ["study", "run", "quick", "--jobs", "0"],
        ["study", "run", "quick", "--engine", "make"],
    ],
)
def test_wrong_usage_ends_with_2_and_abbreviations_are_wrong(argv, capsys):
    usage_error(argv, capsys)


@pytest.mark.parametrize(
    "argv", [["study", "status", "quik"], [*TRAIN[:-1], "vit_base"], ["notebook", "01_basline"]]
)
def test_unknown_names_end_with_2_and_one_message(argv, capsys):
    assert main.main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mvl: ")
    assert "Traceback" not in said.err


@pytest.mark.parametrize("name", ["hippocampus", "Task04_Hippocampus", "task04_hippocampus"])
def test_both_names_of_a_task_mean_the_same_run(name):
    assert parser.parser().parse_args(["verify", name]).task == "Task04_Hippocampus"


def test_your_own_data_are_given_by_path_or_name_and_named_when_broken(
    own_data, tmp_path, monkeypatch, capsys
):
    folder, seen = own_data(tmp_path / "Dataset7_Boxes", cases=1), []
    monkeypatch.setattr(
        commands, "train", lambda args: seen.append((args.task, args.data_dir)) or 0
    )
    own = [word if word != "phantoms" else "Dataset7_Boxes" for word in TRAIN]
    assert (
        main.main([*TRAIN[:4], str(folder), *TRAIN[5:]]) == 0
        and main.main([*own, "--data-dir", str(tmp_path)]) == 0
    )
    assert seen == [("Dataset7_Boxes", tmp_path)] * 2
    assert "unknown task 'Dataset7_Boxes'" in usage_error(own, capsys)
    (folder / "dataset.json").write_text("{}")
    assert main.main(["verify", str(folder)]) == 1
    assert "Dataset7_Boxes/dataset.json: lacks channel_names; add" in capsys.readouterr().err


def test_every_command_of_the_contract_is_there():
    for line in (
        "fetch hippocampus",
        "fetch weights",
        "verify hippocampus --data-dir x --json",
        "study run quick",
        "study status quick --json",
        "study check quick",
        "study collect quick",
        "study record quick",
        "study maps quick --cases 3",
        "study tune quick --systems a b",
        "systems --json",
        "bench --json",
        "doctor --json",
        "notebook 01_baseline -p study quick",
        "book --study quick",
        "book",
        "evaluate some/run",
        "figures",
        "predict some/run a.nii b --output d --json",
        "claims",
        "claims --study paper --results-dir r --json",
        "audit --json",
        "audit --released clone --measure",
    ):
        assert callable(parser.parser().parse_args(line.split()).handler)
    args = parser.parser().parse_args(
        [
            *TRAIN,
            "--fraction",
            "0.1",
            "--fold",
            "3",
            "--seed",
            "2",
            "--results-dir",
            "r",
            "--data-dir",
            "d",
        ]
    )
    assert (args.fraction, args.fold, args.seed, str(args.results_dir), str(args.data_dir)) == (
        0.1,
        3,
        2,
        "r",
        "d",
    )


def raising(error: BaseException):
    """A handler that raises `error`."""

    def handler(_args):
        raise error

    return handler


def stop_with(command: str) -> SystemExit:
    """What an interrupted run raises."""
    error = SystemExit(143)
    error.command = command
    return error


class OddError(MvlError, RuntimeError):
    """An error of the package's own."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("bad key"), 2, "mvl: bad key"),
        (OddError("loss is nan"), 1, "mvl: loss is nan"),
        (OSError(28, "No space left"), 28, "No space left"),
        (OSError(5, "Input/output error"), 1, "Input/output"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (stop_with("mvl train again"), 143, "go on with: mvl train again"),
    ],
)
def test_each_kind_of_error_has_its_code_and_message(monkeypatch, capsys, error, code, words):
    monkeypatch.setattr(commands, "doctor", raising(error))
    assert main.main(["doctor"]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_a_fault_of_the_package_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(commands, "doctor", raising(KeyError("x")))
    with pytest.raises(KeyError):
        main.main(["doctor"])


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from mvl.cli.main import main\ntry: main(['--help'])\nexcept SystemExit:"
        f" pass\nsys.exit(bool(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "a heavy package is imported by mvl --help"
    assert "COMMAND" in done.stdout


@pytest.mark.parametrize(
    "module", ["mvl.core.config", "mvl.core.run_folder", "mvl.study.grid", "mvl.datasets.registry"]
)
def test_light_modules_stay_light(module):
    code = f"import sys, {module}; sys.exit(', '.join(set({HEAVY!r}) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{module} imports {done.stderr}"
