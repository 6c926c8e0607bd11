"""The planner counts what is computed, agrees with the recorded runs, and refuses a disk that is
too small."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvl.bench import gpus, plan, plan_text, systems, work
from mvl.cli import main
from mvl.core import run_folder
from mvl.core.config import ROOT, ConfigError, load_config, system_names
from mvl.models import describe
from mvl.study import grid

UNDERPLANNED = ("swinunetr", "unetpp")
"Their memory is planned at 0.59 and 0.74 of the recorded, as book/scale.md says."


@pytest.fixture(autouse=True)
def recorded_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of the records, whatever this one is."""
    peaks = sorted(row["peak_gflops"] for row in systems.read_bench()["systems"].values())
    monkeypatch.setattr(plan, "cpu_peak", lambda: peaks[len(peaks) // 2])


def line(
    card: str,
    seconds: float,
    gflop: float,
    precision: str = "fp32",
    mode: str = "eager",
    state: str = "done",
) -> dict[str, object]:
    """A line of data/gpu.json as item `steps` writes it."""
    facts = {"precision": precision, "mode": mode, "seconds": seconds, "gflop": gflop}
    return {"card": card, "item": "steps", "part": "x", "state": state, "facts": facts}


def test_a_card_that_was_measured_is_planned_as_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, h100, t4 = (
        load_config("quick", "phantoms", "vit_baseline"),
        plan.find_device("h100"),
        plan.find_device("t4"),
    )
    assumed = plan.seconds(config, t4)
    lines = [
        line("NVIDIA H100 80GB HBM3", 0.002, 1.0),
        line("NVIDIA H100 80GB HBM3", 1.0, 30e3),
        line("NVIDIA H100 80GB HBM3", 0.1, 40e3, "tf32"),
        line("NVIDIA H100 80GB HBM3", 0.001, 40e3, mode="graph"),
        line("NVIDIA H100 80GB HBM3", 0.0001, 1e9, state="failed"),
    ]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(lines))
    monkeypatch.setattr(gpus.gpu_record, "RECORD", path)
    cost, (trained, seen) = work.work_of(config), work.visits(config)
    wanted = (trained * cost.trained + seen * cost.seen) / 30e3 + 0.002 * plan.launches(config)
    assert plan.seconds(config, h100) == pytest.approx(wanted)
    assert (
        plan.assumptions([config], h100)[0]
        == "30 TFLOP/s in fp32 and 2 ms of a step beside: measured on NVIDIA H100 80GB HBM3 by"
        " `make gpu`"
    )
    assert (
        plan.seconds(config, t4) == assumed
        and "assumed, not measured" in plan.assumptions([config], t4)[0]
    )
    half = replace(config, train=replace(config.train, precision="bf16"))
    assert "247 TFLOP/s in bf16 and 10 ms" in plan.assumptions([half], h100)[0], (
        "that precision was not measured"
    )


def test_each_precision_has_its_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus.gpu_record, "RECORD", tmp_path / "none.json")
    rates = {
        kind: gpus.speed(plan.find_device("h100"), kind).gflops
        for kind in ("fp32", "tf32", "bf16", "fp16")
    }
    assert rates["fp32"] < rates["tf32"] < rates["bf16"] == rates["fp16"]
    assert (
        gpus.speed(plan.find_device("t4"), "fp16").gflops
        > 7 * gpus.speed(plan.find_device("t4"), "bf16").gflops
    )


def test_grouped_heads_are_planned_with_repeated_keys_and_without_scores() -> None:
    """Llama's layer has 32 heads and 8 of keys and values: repeated they are as large as the
    queries, and the scores are not kept."""
    layer = work.work_of(load_config("paper", "Task02_Heart", "medvisionllama_v3"))
    without = work.work_of(load_config("paper", "Task02_Heart", "vit_baseline"))
    tokens, width = (128 // 8) ** 3, 4096
    kept = layer.saved_mb - without.saved_mb
    queries_keys_values = 3 * 4 * tokens * width / 1e6
    scores = 4 * 32 * tokens**2 / 1e6
    assert queries_keys_values < kept < scores


def recorded(study: str) -> dict[str, list[dict[str, str]]]:
    """Finished runs on all the training cases, by system."""
    rows = defaultdict(list)
    with open(run_folder.records_dir() / study / "runs.csv") as file:
        for row in csv.DictReader(file):
            if row["state"] == "done" and row["cpu_s"] and float(row["fraction"]) == 1:
                rows[row["system"]].append(row)
    return rows


@pytest.mark.parametrize("study", ["hippocampus", "busi"])
def test_the_prediction_is_within_a_quarter_of_the_recorded_runs(study: str) -> None:
    cpu, rows = plan.find_device("cpu"), recorded(study)
    assert rows
    for system, done in rows.items():
        config = load_config(study, done[0]["task"], system)

        def mean(column, done=done):
            return sum(float(row[column]) for row in done) / len(done)

        assert plan.seconds(config, cpu) == pytest.approx(mean("cpu_s"), rel=0.25), system
        if system not in UNDERPLANNED:
            assert plan.memory_mb(config, cpu) == pytest.approx(mean("peak_memory_mb"), rel=0.25), (
                system
            )


@pytest.mark.parametrize("study", ["hippocampus2_tuned", "isic"])
def test_many_cases_predicted_at_once_are_planned_for(study: str) -> None:
    """In bf16 a CPU predicts up to 32 cases together, which can hold more than a step."""
    cpu = plan.find_device("cpu")
    for system, done in recorded(study).items():
        config = load_config(study, done[0]["task"], system)
        found = sum(float(row["peak_memory_mb"]) for row in done) / len(done)
        assert found / 1.25 < plan.memory_mb(config, cpu) < 1.25 * found or system == "swinunetr"


def test_bytes_are_counted_until_they_are_let_go() -> None:
    with work.LiveBytes() as live:
        first = torch.zeros(1000)
        second = first + 1
        view = second.view(10, 100)
        assert live.now == 8000, "a view holds nothing of its own"
        del first, second
        assert live.now == 4000
        del view
        torch.zeros(500)
    assert live.now == 0 and live.most == 8000


def test_a_step_measured_at_the_studys_sizes_goes_before_the_systems_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(systems, "BENCH", tmp_path / "bench.json")
    monkeypatch.setattr(systems, "write_header", lambda name: None)
    plan.share_of_peak.cache_clear()
    systems.record_bench([], {"unet": {"share": 0.8}, "unetr": {"share": 1.1}})
    systems.record_bench([], {"unetr": {"share": 0.3}}, "studies/hippocampus.yaml")
    assert [plan.share_of_peak("unetr", study) for study in ("hippocampus", "paper")] == [0.3, 1.1]
    assert (
        plan.share_of_peak("unet", "hippocampus") == 0.8
        and plan.share_of_peak("vit_depth", "paper") == 0.8
    )
    plan.share_of_peak.cache_clear()


def test_cases_are_those_of_the_committed_split() -> None:
    split = json.loads((ROOT / "data" / "splits" / "Task04_Hippocampus.json").read_text())
    fold, blocks = split["folds"][0], [len(block) for block in split["blocks"]]
    assert work.cases(load_config("hippocampus", "Task04_Hippocampus", "vit_baseline")) == {
        "train": len(fold["train"]),
        "val": sum(blocks[k] for k in fold["val"]),
        "test": blocks[fold["test"]],
    }


def test_hours_follow_epochs_cases_and_device() -> None:
    config, cpu = load_config("quick", "phantoms", "vit_baseline"), plan.find_device("cpu")
    longer = replace(
        config, train=replace(config.train, train_epochs=2 * config.train.train_epochs)
    )
    assert plan.seconds(longer, cpu) == pytest.approx(2 * plan.seconds(config, cpu), rel=0.02)
    assert plan.seconds(replace(config, fraction=0.1), cpu) < plan.seconds(config, cpu) / 2
    h100, t4 = plan.find_device("h100"), plan.find_device("t4")
    beside = gpus.LAUNCH_S * plan.launches(config)
    assert (plan.seconds(config, t4) - beside) / (
        plan.seconds(config, h100) - beside
    ) == pytest.approx(h100.fp32 / t4.fp32)
    assert plan.launches(longer) > 1.9 * plan.launches(config) - 2 * work.cases(config)["test"]
    assert plan.find_device("8xH100").count == 8


def test_the_papers_block_is_counted_without_its_files() -> None:
    cost = work.work_of(load_config("paper", "Task02_Heart", "medvisionllama_v3"))
    assert cost.frozen == pytest.approx(218e6, rel=0.01)  # 436 MB in 16 bits
    tokens = (128 // 8) ** 3
    # two operations per weight and token, before attention
    assert cost.seen > 2 * cost.frozen * tokens / 1e9


def test_attention_is_counted_as_fused_and_nothing_as_computed_twice() -> None:
    """A training step is three forward passes but for the first layer's input; the scores that
    fusing saves would be 268 MB a block."""
    cost = work.work_of(load_config("paper", "Task02_Heart", "vit_baseline"))
    scores = 4 * 4 * (128 // 8) ** 6 / 1e6
    assert cost.trained == pytest.approx(3 * cost.seen, rel=0.01) and cost.saved_mb < 2 * scores


@pytest.mark.parametrize("name", ["h10", "0xh100", "cuda"])
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device .*known: cpu, h100, h200, a100, l4, t4"):
        plan.find_device(name)


def test_a_disk_that_is_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "quick", "--results-dir", str(tmp_path), "--json"]
    assert main.main(words) == 0
    value = json.loads(capsys.readouterr().out)
    assert (
        value["runs"] == len(grid.study_runs("quick"))
        and value["download_bytes"] == 0
        and value["disk_fits"]
    )
    monkeypatch.setattr(plan, "free_bytes", lambda folder: 1_000_000)
    assert main.main(["plan", "quick", "--results-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "core-hours" in shown.out and "0.0 GB are free; free space" in shown.err


def test_memory_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpus.GPUS, "t4", replace(gpus.GPUS["t4"], memory_mb=100.0))
    value = plan.plan("quick", "2xt4")
    assert not value["memory_fits"] and "raise train.accumulate" in plan_text.plan_as_text(value)
    assert value["wall_hours"] == pytest.approx(value["hours"] / 2) and not math.isnan(
        value["hours"]
    )


def test_every_system_and_epochs_enlarge_the_plan_and_not_the_study() -> None:
    own, larger = plan.chosen("paper"), plan.chosen("paper", 200, True)
    assert {c.train.train_epochs for c in own} == {100} and {
        c.train.train_epochs for c in larger
    } == {200}
    names = [run_folder.run_name(c) for c in larger]
    assert len(set(names)) == len(names) and {run_folder.run_name(c) for c in own} < set(names)
    full = {(c.task, c.system, c.fold) for c in larger if c.fraction == 1}
    dims = {name: len(describe.system_config(name).data.img_size) for name in system_names()}
    wanted = {name for name, axes in dims.items() if axes == 3} - set(systems.NEVER_TRAINED)
    assert {system for _, system, _ in full} == wanted and len(full) == len(wanted) * 10 * 5
    assert {c.model.token_block.source for c in larger} == {"llama-3.1-8b"} and all(
        c.data.img_size == (128, 128, 128) for c in larger
    )
    flat = plan.chosen("busi", every_system=True)
    assert {dims[system] for system in {c.system for c in flat} & set(dims)} == {2}


def test_the_options_of_the_command_reach_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = []
    for words in ([], ["--epochs", "40"]):
        assert main.main(["plan", "quick", "--results-dir", str(tmp_path), "--json", *words]) == 0
        value = json.loads(capsys.readouterr().out)
        hours.append((value["epochs"], value["hours"]))
    assert hours[1][0] == [40] and hours[1][1] > hours[0][1]
