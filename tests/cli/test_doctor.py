"""The doctor names what is there and what is missing, and gives away nothing about the machine."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from mvl.cli import doctor
from mvl.core import privacy
from mvl.core.config import ROOT


@pytest.fixture(scope="module")
def facts():
    """One report for the module: it imports torch."""
    return doctor.report()


def test_the_report_is_json_and_has_what_a_bug_report_needs(facts):
    said = json.loads(json.dumps(facts, allow_nan=False))
    assert {
        "mvl",
        "python",
        "packages",
        "torch",
        "data",
        "weights",
        "disk_free_gb",
        "missing",
    } <= set(said)
    assert facts["torch"]["devices"][0] == "cpu"


def test_the_report_gives_away_no_path_or_host(facts):
    text = json.dumps(facts) + doctor.show(facts)
    for secret in (str(ROOT), str(Path.home()) + "/", f'"{os.uname().nodename}"'):
        assert secret not in text


def test_data_are_found_where_they_lie(tmp_path):
    folder = tmp_path / "Task02_Heart"
    folder.mkdir()
    assert doctor.data_found(tmp_path)["tasks"]["Task02_Heart"] is None
    (folder / "dataset.json").write_text("{}")
    assert doctor.data_found(tmp_path)["tasks"]["Task02_Heart"].endswith("Task02_Heart")
    assert doctor.data_found(tmp_path)["tasks"]["ISIC2017_256"] is None
    (tmp_path / "ISIC2017_256").mkdir()  # pictures have no dataset.json
    assert doctor.data_found(tmp_path)["tasks"]["ISIC2017_256"].endswith("ISIC2017_256")


def test_absent_weights_are_missing_with_their_remedy(tmp_path, monkeypatch, facts):
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path))
    found = doctor.weights_found()
    assert found["path"] is None
    assert {"what": "weights smollm2-135m", "remedy": "mvl fetch weights"} in doctor.missing(
        {**facts, "weights": found}
    )


def test_an_absent_extra_and_package_are_missing_with_their_remedy(monkeypatch, facts):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "snakemake" else find(name)
    )
    broken = {**facts, "packages": {**facts["packages"], "peft": None}}
    remedies = {item["what"]: item["remedy"] for item in doctor.missing(broken)}
    assert "[workflow]" in remedies["extra workflow"]
    assert remedies["package peft"] == "make setup"
    assert "extra docs" not in remedies


def test_a_full_disk_is_missing_space(facts):
    assert "disk space" in [item["what"] for item in doctor.missing({**facts, "disk_free_gb": 0.1})]
    assert "disk space" not in [
        item["what"] for item in doctor.missing({**facts, "disk_free_gb": 100.0})
    ]


def test_every_missing_thing_is_shown(facts):
    shown = doctor.show({**facts, "missing": [{"what": "a thing", "remedy": "do this"}]})
    assert "a thing: do this" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (str(ROOT / "data" / "raw"), "./data/raw"),
        (str(Path.home() / "x"), "~/x"),
        ("/somewhere/else/file", ".../file"),
    ],
)
def test_paths_are_redacted(monkeypatch, text, shown):
    monkeypatch.delenv("MVL_DATA", raising=False)
    assert privacy.redact(text) == shown


def test_the_data_variable_is_named_not_its_value(monkeypatch):
    monkeypatch.setenv("MVL_DATA", "/secret/place")
    assert privacy.redact("/secret/place/Task02_Heart") == "$MVL_DATA/Task02_Heart"
