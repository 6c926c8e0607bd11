"""What commands print: one JSON document and nothing else with --json; the run's folder as the last
line of train."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvl.cli import commands, main
from mvl.core.config import ROOT
from mvl.core.errors import USAGE


def test_json_is_the_only_thing_on_standard_output(capfd):
    def chatty() -> dict[str, int]:
        print("python chatter")
        os.write(1, b"library chatter\n")
        subprocess.run([sys.executable, "-c", "print('child chatter')"], check=True)
        return {"answer": 1}

    commands.answer(Namespace(json=True), chatty, str)
    said = capfd.readouterr()
    assert json.loads(said.out) == {"answer": 1}
    for who in ("python", "library", "child"):
        assert f"{who} chatter" in said.err


def test_standard_output_is_restored_after_an_error(capfd):
    with pytest.raises(RuntimeError, match="broken"), commands.chatter_to_stderr():
        raise RuntimeError("broken")
    os.write(1, b"back\n")
    print("here")
    assert capfd.readouterr().out.split() == ["back", "here"]


def test_json_refuses_numbers_that_json_does_not_have():
    with pytest.raises(ValueError, match="JSON"):
        commands.answer(Namespace(json=True), lambda: {"x": float("nan")}, str)


def test_doctor_json_from_the_shell_is_one_document():
    done = subprocess.run(
        [sys.executable, "-m", "mvl", "doctor", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["torch"]["build"]


def test_train_refuses_a_study_with_a_misspelt_key(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("tasks: [phantoms]\ntrian: {train_epochs: 1}\n")
    words = ["train", "--study", str(path), "--task", "phantoms", "--system", "vit_baseline"]
    assert main.main([*words, "--results-dir", str(tmp_path / "runs")]) == USAGE
    assert "unknown key 'trian' (did you mean 'train'?)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_train_prints_the_run_folder_last(monkeypatch, capsys, tmp_path):
    def train_run(
        config,
        results_dir: Path,
        data_dir: Path | None = None,
        progress: bool = True,
        allow_drift: bool = False,
        study: str = "",
    ) -> Path:
        print("epoch 1")
        return results_dir / config.task / str(config.fraction)

    monkeypatch.setattr("mvl.training.run.train_run", train_run)
    words = "train --study quick --task phantoms --system vit_baseline --fraction 0.3".split()
    assert main.main([*words, "--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "phantoms" / "0.3")


def test_verify_ends_with_1_and_one_line_per_bad_file(monkeypatch, capsys):
    faults = [
        SimpleNamespace(
            path=f"imagesTr/{i}.nii.gz", fault="truncated", remedy="fetch it again", note=i > 1
        )
        for i in range(3)
    ]
    monkeypatch.setattr("mvl.datasets.verify.verify", lambda task, data_dir=None: faults)
    assert main.main(["verify", "hippocampus"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{'note: ' if i > 1 else ''}imagesTr/{i}.nii.gz: truncated; fetch it again"
        for i in range(3)
    ]
    assert main.main(["verify", "hippocampus", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 2
    monkeypatch.setattr("mvl.datasets.verify.verify", lambda task, data_dir=None: [])
    assert main.main(["verify", "hippocampus"]) == 0
    monkeypatch.setattr("mvl.datasets.verify.verify", lambda task, data_dir=None: faults[2:])
    assert main.main(["verify", "hippocampus"]) == 0, "a note is no fault"


def test_status_counts_what_is_not_there(capsys, tmp_path):
    assert main.main(["study", "status", "quick", "--json", "--results-dir", str(tmp_path)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["done"] == 0
    assert value["missing"] == value["total"] == len(value["runs"])
    assert (
        main.main(["study", "status", "quick", "--complete", "--results-dir", str(tmp_path)]) == 1
    )
    assert f"0 of {value['total']} runs done" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "collected"), [(0, True), (1, True), (130, False), (143, False)])
def test_study_run_writes_tables_unless_interrupted(monkeypatch, tmp_path, code, collected):
    from mvl.study import launch, tables

    calls = []
    monkeypatch.setattr(launch, "run_study", lambda *words, **options: code)
    monkeypatch.setattr(
        tables, "collect", lambda study, results_dir: calls.append(study) or results_dir
    )
    assert main.main(["study", "run", "quick", "--results-dir", str(tmp_path)]) == code
    assert calls == (["quick"] if collected else [])


@pytest.mark.parametrize(
    ("measured", "code", "said"), [(1, 0, "9 rows of 1 runs"), (0, 1, "no run could be measured")]
)
def test_study_maps_names_what_it_could_not_measure(
    monkeypatch, capsys, tmp_path, measured, code, said
):
    from mvl.core import run_folder
    from mvl.evidence import activation_records

    asked = []
    found = {
        "study": "quick",
        "runs": measured,
        "rows": 9,
        "absent": {"some/run": "its weights are not there"},
    }
    monkeypatch.setattr(
        activation_records, "record", lambda *words: asked.append(words[:5]) or found
    )
    assert (
        main.main(
            [
                "study",
                "maps",
                "quick",
                "--results-dir",
                str(tmp_path),
                "--data-dir",
                "d",
                "--cases",
                "3",
            ]
        )
        == code
    )
    assert asked == [("quick", tmp_path, run_folder.records_dir() / "quick", Path("d"), 3)]
    words = capsys.readouterr()
    assert said in words.out and "not measured: some/run: its weights are not there" in words.err


def test_an_unknown_notebook_parameter_is_wrong_usage(capsys):
    from mvl.publish.notebooks import list_notebooks

    if not list_notebooks():
        pytest.skip("no notebook")
    assert main.main(["notebook", list_notebooks()[0], "-p", "studdy", "quick"]) == 2
    assert "studdy" in capsys.readouterr().err


def test_claims_of_a_folder_that_is_not_there_are_refused(capsys, tmp_path):
    assert main.main(["claims", "--results-dir", str(tmp_path / "absent")]) == USAGE
    assert "absent: no such folder" in capsys.readouterr().err
