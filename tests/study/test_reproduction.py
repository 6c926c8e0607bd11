"""The reproduction check passes what reproduces and fails what does not."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
from scipy.stats import t

from mvl.core import files, run_folder
from mvl.core.config import Config, load_config
from mvl.study import reproduction, tables
from mvl.study.reproduction import check, main, pooled_sd, report, seed_sd


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_run = _sibling("test_tables").make_run
RECORD = (0.00, 0.01, 0.02)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    configs = [
        load_config("hippocampus", "Task04_Hippocampus", system, 1.0, 0, seed)
        for system in ("vit_baseline", "medvisionllama_v3", "medvisionllama_v3_random")
        for seed in (0, 1, 2)
    ]
    monkeypatch.setattr(tables, "study_runs", lambda name: configs)
    return configs


def fill(results: Path, configs: list[Config], extra: float = 0.0, machine: str = "a") -> None:
    """Seeds 0, 1, 2 of every arm differ by 0.01 Dice, so the seed sd is 0.01; `extra` moves every
    run."""
    for config in configs:
        make_run(results, config, RECORD[config.seed] + extra, machine)


def verdicts(tmp_path: Path) -> set[str]:
    return {c.verdict for c in check("hippocampus", tmp_path / "rerun", tmp_path / "record")}


def test_identical_is_bitwise(
    study: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("record", "rerun"):
        fill(tmp_path / name, study)
    checks = check("hippocampus", tmp_path / "rerun", tmp_path / "record")
    assert {c.verdict for c in checks} == {"bitwise"}
    assert len(checks) == 9 * 3 + 3 * 8
    assert main("hippocampus", tmp_path / "rerun", tmp_path / "record") == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("hippocampus: reproduces (51 quantities")
    )


def test_what_may_not_repeat_on_its_gpu_is_compared_within_tolerances(
    study: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("record", "rerun"):
        fill(tmp_path / name, study)
    for config, mode in zip(study, ("strict", "strict", *["warn"] * 6), strict=False):
        path = run_folder.run_dir(tmp_path / "rerun", config) / "status.json"
        files.write_json(path, json.loads(path.read_text()) | {"deterministic": mode})
    checks = check("hippocampus", tmp_path / "rerun", tmp_path / "record")
    assert sum(c.quantity.endswith("weights_sha256") for c in checks) == 3, (
        "hashes of the other six are not compared"
    )
    assert main("hippocampus", tmp_path / "rerun", tmp_path / "record") == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert "2 strict" in said and "6 warn" in said and "1 made before this was recorded" in said


def test_another_card_is_another_platform(study: list[Config], tmp_path: Path) -> None:
    for name, card in (("record", "Tesla T4"), ("rerun", "NVIDIA L4")):
        fill(tmp_path / name, study)
        for config in study:
            folder = run_folder.run_dir(tmp_path / name, config)
            status = run_folder.read_status(folder)
            said = json.loads((folder / "environment.json").read_text())
            files.write_json(folder / "environment.json", said | {"gpu": {"card": card}})
            run_folder.seal(
                folder,
                {
                    key: status[key]
                    for key in ("best_epoch", "runtime_s", "peak_memory_mb", "parameters")
                },
            )
    assert verdicts(tmp_path) == {"within"}


def test_published_record_has_no_weights_and_is_enough(study: list[Config], tmp_path: Path) -> None:
    fill(tmp_path / "rerun", study)
    tables.record("hippocampus", tmp_path / "rerun", tmp_path / "record")
    assert verdicts(tmp_path) == {"bitwise"}


def test_same_platform_tolerates_nothing(
    study: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("record", "rerun"):
        fill(tmp_path / name, study)
    make_run(tmp_path / "rerun", study[4], RECORD[1] + 1e-12)
    failed = [c for c in check("hippocampus", tmp_path / "rerun", tmp_path / "record") if c.failed]
    assert {c.verdict for c in failed} == {"differs"}
    assert {"weights_sha256", "cases_sha256", "dice"} <= {
        word for c in failed for word in c.quantity.split()
    }
    assert main("hippocampus", tmp_path / "rerun", tmp_path / "record") == 1
    assert "does NOT reproduce" in capsys.readouterr().out.splitlines()[-1]


def test_other_platform_uses_the_seeds_of_the_record(study: list[Config], tmp_path: Path) -> None:
    """sd 0.01 with 6 degrees of freedom, n = 3, and Student's t at a chance of 1 % over the study's
    means."""
    fill(tmp_path / "record", study)
    fill(tmp_path / "rerun", study, extra=0.0, machine="b")
    checks = check("hippocampus", tmp_path / "rerun", tmp_path / "record")
    dice = next(c for c in checks if "vit_baseline" in c.quantity and " dice " in c.quantity)
    family = sum(c.tolerance is not None and " n_test " not in c.quantity for c in checks)
    assert 2 * t.sf(dice.tolerance / (0.01 * math.sqrt(2 / 3)), 6) == pytest.approx(0.01 / family)
    fill(tmp_path / "rerun", study, extra=0.99 * dice.tolerance, machine="b")
    assert verdicts(tmp_path) == {"within"}
    fill(tmp_path / "rerun", study, extra=1.01 * dice.tolerance, machine="b")
    assert {
        c.quantity.split()[1]
        for c in check("hippocampus", tmp_path / "rerun", tmp_path / "record")
        if c.failed
    } == {"dice"}


def test_missing_run_fails(study: list[Config], tmp_path: Path) -> None:
    fill(tmp_path / "record", study)
    fill(tmp_path / "rerun", study[:-1])
    failed = [c for c in check("hippocampus", tmp_path / "rerun", tmp_path / "record") if c.failed]
    assert {c.verdict for c in failed} == {"missing"}
    assert failed[0].quantity.endswith("medvisionllama_v3_random/fraction-1.0_fold-0_seed-2")
    fill(tmp_path / "rerun", study)
    files.write_json(
        run_folder.run_dir(tmp_path / "rerun", study[0]) / "status.json", {"state": "diverged"}
    )
    assert "missing" in verdicts(tmp_path)


def test_damaged_record_and_no_record_fail(study: list[Config], tmp_path: Path) -> None:
    fill(tmp_path / "rerun", study)
    assert verdicts(tmp_path) == {"no record"}
    fill(tmp_path / "record", study)
    path = run_folder.run_dir(tmp_path / "record", study[0]) / "cases.csv"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert "no record" in verdicts(tmp_path)


def test_runs_that_were_never_recorded_do_not_fail(study: list[Config], tmp_path: Path) -> None:
    fill(tmp_path / "record", study[:6])
    fill(tmp_path / "rerun", study)
    assert verdicts(tmp_path) == {"bitwise", "not recorded"}


def row(fraction: float, system: str, seed: int, dice: float, fold: int = 0) -> dict:
    return {
        "task": "t",
        "system": system,
        "fraction": fraction,
        "fold": fold,
        "seed": seed,
        "dice": dice,
    }


def test_seed_sd_never_takes_folds_for_seeds() -> None:
    rows = [
        row(1.0, "a", 0, 0.8),
        row(1.0, "a", 1, 0.82),
        row(1.0, "a", 0, 0.6, fold=1),
        row(1.0, "b", 0, 0.1),
    ]
    assert pooled_sd(rows, "dice") == (pytest.approx(math.sqrt(0.0002)), 1)


def test_tolerance_falls_back_and_says_so() -> None:
    full = [row(1.0, "a", s, d) for s, d in enumerate((0.80, 0.81, 0.82, 0.83, 0.84, 0.85))]
    few = [row(0.1, "a", 0, 0.5), row(0.1, "a", 1, 0.6)]
    sd, _, note = seed_sd([*full, *few], "dice", 1.0)
    assert sd == pytest.approx(pooled_sd(full, "dice")[0])
    assert "this fraction (5" in note
    sd, _, note = seed_sd([*full, *few], "dice", 0.1)
    assert sd == pytest.approx(math.sqrt(0.005))
    assert "all fractions (6" in note
    sd, _, note = seed_sd([row(1.0, "a", 0, 0.8), row(1.0, "b", 0, 0.9)], "dice", 1.0)
    assert sd == pytest.approx(math.sqrt(0.005))
    assert "no arm has several seeds" in note
    assert seed_sd([row(1.0, "a", 0, 0.8)], "dice", 1.0)[0] is None


def test_one_recorded_run_cannot_say_how_far_others_may_be(
    study: list[Config], tmp_path: Path
) -> None:
    fill(tmp_path / "record", study[:1])
    fill(tmp_path / "rerun", study[:1], machine="b")
    assert "no tolerance" in verdicts(tmp_path)


def test_report_names_each_failure(study: list[Config], tmp_path: Path) -> None:
    fill(tmp_path / "record", study)
    fill(tmp_path / "rerun", study[1:], machine="b")
    text = report("hippocampus", check("hippocampus", tmp_path / "rerun", tmp_path / "record"))
    assert "MISSING: hippocampus/runs/" in text
    assert "tolerance: seeds at this fraction (6 degrees of freedom)" in text
    assert set(reproduction.FAILURES) == {
        "differs",
        "outside",
        "missing",
        "no record",
        "no tolerance",
    }


def test_a_record_before_the_decathlons_metrics_is_compared_in_its_own_columns(
    study: list[Config], tmp_path: Path
) -> None:
    """The rerun has two columns more; what the record has must still be the same, bit for bit."""
    for config in study:
        make_run(tmp_path / "record", config, RECORD[config.seed])
        make_run(tmp_path / "rerun", config, RECORD[config.seed], decathlon=True)
    assert verdicts(tmp_path) == {"bitwise"}
    make_run(tmp_path / "rerun", study[4], RECORD[1] + 1e-12, decathlon=True)
    assert verdicts(tmp_path) == {"bitwise", "differs"}


def test_the_decathlons_metrics_are_compared_where_the_record_has_them(
    study: list[Config], tmp_path: Path
) -> None:
    for name in ("record", "rerun"):
        for config in study:
            make_run(tmp_path / name, config, RECORD[config.seed], decathlon=True)
    checks = check("hippocampus", tmp_path / "rerun", tmp_path / "record")
    assert {c.verdict for c in checks} == {"bitwise"} and any(
        "nsd_decathlon" in c.quantity for c in checks
    )
    make_run(tmp_path / "rerun", study[0], RECORD[0])
    assert verdicts(tmp_path) == {"bitwise", "differs"}
