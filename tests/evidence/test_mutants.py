"""Mutation testing: what is mutated is there, verdicts are counted as they are, and a real run
finds what a test overlooks."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from mvl.core.config import ROOT
from mvl.evidence import mutants
from mvl.evidence.mutants import Layer

TOY = Layer("toy", ("mvl/toy.py",), ("tests/test_toy.py",))
CODE = '''"""A toy."""


def larger(a: int, b: int) -> int:
    """The larger of two."""
    return a if a > b else b


def unseen() -> int:
    """No test calls this."""
    return 3
'''
TEST = """from mvl.toy import larger


def test_larger() -> None:
    assert (larger(1, 2), larger(2, 1)) == (2, 2)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose test cannot tell `>` from `>=`, and never calls one function."""
    root = tmp_path / "project"
    for name, text in {
        "mvl/__init__.py": "",
        "mvl/toy.py": CODE,
        "tests/test_toy.py": TEST,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (root / "data").mkdir()
    return root


def with_codes(folder: Path, codes: dict[str, int | None]) -> Path:
    """A layer's folder as mutmut leaves it."""
    (folder / "mvl").mkdir(parents=True)
    (folder / "mvl" / "toy.py").write_text(CODE)
    (folder / "sources.sha256").write_text("0")
    meta = folder / "mutants" / "mvl" / "toy.py.meta"
    meta.parent.mkdir(parents=True)
    meta.write_text(json.dumps({"exit_code_by_key": codes}))
    return folder


def test_every_layer_names_files_and_tests_that_are_there() -> None:
    known = mutants.layers()
    assert {"networks", "objective", "metrics", "statistics", "splits", "augmentation"} <= set(
        known
    )
    for layer in known.values():
        assert all(list(ROOT.glob(pattern)) for pattern in layer.files), layer.name
        assert all((ROOT / path).exists() for path in layer.tests), layer.name


def test_settings_are_what_mutmut_reads() -> None:
    read = tomllib.loads(mutants.settings(TOY))["tool"]["mutmut"]
    assert read["only_mutate"] == ["mvl/toy.py"]
    assert read["pytest_add_cli_args_test_selection"] == ["tests/test_toy.py"]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("mvl.toy.x_larger__mutmut_12", "mvl.toy.larger"),
        ("mvl.toy.x__hidden__mutmut_1", "mvl.toy._hidden"),
        ("mvl.toy.xǁNet1ǁforward__mutmut_3", "mvl.toy.Net1.forward"),
    ],
)
def test_a_mutants_name_says_its_function(name: str, function: str) -> None:
    assert mutants.function_of(name) == function


def test_survivors_are_those_whose_tests_passed_or_were_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {f"mvl.toy.x_larger__mutmut_{i}": c for i, c in enumerate((1, 0, 33, 36, -11, 3), 1)}
    folder = with_codes(tmp_path / "toy", codes)
    monkeypatch.setattr(mutants, "change", lambda name, folder: f"- a\n+ {name[-1]}")
    (tmp_path / "why.toml").write_text(
        '[[survivor]]\nfunction = "mvl.toy.larger"\nchange = "- a\\n+ 2"\nreason = "the same"\n'
    )
    monkeypatch.setattr(mutants, "REASONS", tmp_path / "why.toml")
    known = mutants.reasons(tmp_path / "why.toml")
    monkeypatch.setattr(mutants, "reasons", lambda: known)
    found = mutants.summary(TOY, folder)
    assert (found["mutants"], found["killed"]) == (6, 4)
    assert [(s["change"], s["tested"], s["reason"]) for s in found["survivors"]] == [
        ("- a\n+ 2", True, "the same"),
        ("- a\n+ 3", False, ""),
    ]


@pytest.mark.parametrize(
    "codes", [{"mvl.toy.x_larger__mutmut_1": None}, {"mvl.toy.x_larger__mutmut_1": 255}, {}]
)
def test_without_every_verdict_there_is_no_figure(
    tmp_path: Path, codes: dict[str, int | None]
) -> None:
    with pytest.raises(mutants.MutantsError, match="have no verdict"):
        mutants.verdicts(TOY, with_codes(tmp_path / "toy", codes))


def test_changed_sources_start_anew_and_unchanged_ones_go_on(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "toy"
    mutants.prepare(TOY, folder, project)
    assert (folder / "mutants" / "data").is_symlink()
    (folder / "mutants" / "kept").touch()
    mutants.prepare(TOY, folder, project)
    assert (folder / "mutants" / "kept").is_file()
    (project / "tests" / "test_toy.py").write_text(TEST + "\n")
    mutants.prepare(TOY, folder, project)
    assert not (folder / "mutants" / "kept").exists()
    assert (folder / "tests" / "test_toy.py").read_text() == TEST + "\n"


@pytest.mark.slow
def test_a_real_run_finds_what_the_tests_overlook(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "toy"
    mutants.run(TOY, folder, root=project)
    found = mutants.summary(TOY, folder)
    alive = {(s["function"], s["change"]): s["tested"] for s in found["survivors"]}
    overlooked = ("mvl.toy.larger", "- return a if a > b else b\n+ return a if a >= b else b")
    assert alive == {overlooked: True, ("mvl.toy.unseen", "- return 3\n+ return 4"): False}
    assert found["killed"] == found["mutants"] - 2 > 0


def test_tests_that_fail_by_themselves_are_no_result(tmp_path: Path, project: Path) -> None:
    (project / "tests" / "test_toy.py").write_text("def test_larger() -> None:\n    assert False\n")
    with pytest.raises(mutants.MutantsError, match="mutmut on toy ended"):
        mutants.run(TOY, tmp_path / "toy", root=project)


def test_the_table_shows_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    absent = tmp_path / "absent.json"
    assert mutants.table(absent).count("not measured") == len(mutants.layers())
    assert mutants.survivors(absent) == "None is recorded."
    survivor = {"function": "mvl.x.f", "change": "- a | b\n+ a & b", "tested": True, "reason": ""}
    row = {"made": 300, "seed": None, "mutants": 300, "killed": 299, "survivors": [survivor]}
    (tmp_path / "m.json").write_text(json.dumps({"layers": {"objective": row}}))
    assert "| 300 | 299 (99.7%) | 95% | 0 of 1 |" in mutants.table(tmp_path / "m.json")
    assert "`a \\| b` → `a & b` | no reason yet |" in mutants.survivors(tmp_path / "m.json")


def test_a_sample_is_a_function_of_its_seed_and_grows_by_adding() -> None:
    names = {f"mvl.toy.x_larger__mutmut_{i}" for i in range(50)}
    ten = mutants.drawn(names, TOY, 10, 0)
    assert len(set(ten)) == 10 and set(ten) <= names
    assert mutants.drawn(sorted(names, reverse=True), TOY, 20, 0)[:10] == ten
    assert mutants.drawn(names, TOY, 10, 1) != ten


def test_a_sample_is_judged_by_its_own_mutants_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"mvl.toy.x_larger__mutmut_{i}" for i in range(1, 9)]
    asked = mutants.drawn(names, TOY, 3, 0)
    codes = {name: 1 if name in asked[:2] else 0 if name == asked[2] else None for name in names}
    folder = with_codes(tmp_path / "toy", codes)
    monkeypatch.setattr(mutants, "change", lambda name, folder: "- a\n+ b")
    found = mutants.summary(TOY, folder, 3, 0)
    assert (found["made"], found["mutants"], found["killed"], found["seed"]) == (8, 3, 2, 0)
    with pytest.raises(mutants.MutantsError, match="have no verdict"):
        mutants.verdicts(TOY, folder, 4, 0)
    monkeypatch.setattr(mutants, "layers", lambda: {"toy": TOY})
    (tmp_path / "m.json").write_text(json.dumps({"layers": {"toy": found}}))
    line = mutants.table(tmp_path / "m.json").splitlines()[-1]
    assert "| 3 of 8, drawn by seed 0 | 2 (66.7%; 95 % interval 9.4% to 99.2%) |" in line


def test_only_mutants_of_the_sample_without_a_verdict_are_tested(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"mvl.toy.x_larger__mutmut_{i}" for i in range(1, 9)]
    asked = mutants.drawn(names, TOY, 3, 0)
    folder = tmp_path / "toy"
    mutants.prepare(TOY, folder, project)
    meta = folder / "mutants" / "mvl" / "toy.py.meta"
    meta.parent.mkdir(parents=True, exist_ok=True)
    meta.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(names) | {asked[0]: 1}}))
    seen: list[list[str]] = []

    def mutmut(folder: Path, jobs: int, names: list[str]) -> subprocess.CompletedProcess[str]:
        seen.append(list(names))
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(mutants, "_mutmut", mutmut)
    mutants.run(TOY, folder, root=project, sample=3)
    meta.write_text(json.dumps({"exit_code_by_key": dict.fromkeys(names, 0)}))
    mutants.run(TOY, folder, root=project, sample=3)
    assert seen == [asked[1:]]


@pytest.mark.slow
def test_a_real_sample_is_tested_and_nothing_beside_it(tmp_path: Path, project: Path) -> None:
    folder = tmp_path / "toy"
    mutants.run(TOY, folder, root=project, sample=2)
    codes = mutants.all_codes(TOY, folder)
    asked = mutants.drawn(codes, TOY, 2, 0)
    assert len(codes) > 2
    assert {name for name, code in codes.items() if mutants.has_verdict(code)} == set(asked)


def test_a_published_record_meets_the_target_and_explains_its_survivors() -> None:
    for name, row in mutants.read_record().items():
        assert row["killed"] >= mutants.TARGET * row["mutants"], name
        assert [s["change"] for s in row["survivors"] if not s["reason"]] == [], name


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(mutants.MutantsError, match="unknown layer 'objectiv'"):
        mutants.main(["objectiv"])
