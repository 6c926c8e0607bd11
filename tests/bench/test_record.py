"""Rows of the bench name their machine, and rows of several machines stand side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvl.bench import plan, systems
from mvl.bench import record as record_module
from mvl.bench.record import architecture, bf16_table, machine_words, machines, precision

HERE = {
    "processor": "new",
    "device": "cpu",
    "model": "New",
    "cpu_capability": "AVX512",
    "fp32_gflops": 80.0,
    "bf16_gflops": 200.0,
}
THERE = {**HERE, "processor": "old", "model": "Old", "bf16_gflops": None}


def test_every_row_of_the_record_names_its_processor_and_its_peaks() -> None:
    record = systems.whole_record()
    rows = [*record["bars"], *(row for each in record["systems"].values() for row in each)]
    rows += [row for study in record["studies"].values() for each in study.values() for row in each]
    assert rows
    for row in rows:
        assert set(row["machine"]) >= set(HERE)
        assert row["machine"]["fp32_gflops"] > 0
    assert len(machines(record)) >= 1


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of another machine, and this one called `new`."""
    path = tmp_path / "bench.json"
    row: dict[str, Any] = {"seconds": 1.0, "peak_gflops": 90.0, "share": 0.5, "machine": THERE}
    bar = {"what": "a bar", "value": 0.5, "machine": THERE}
    path.write_text(json.dumps({"bars": [bar], "systems": {"unet": [row]}, "studies": {}}))
    monkeypatch.setattr(systems, "BENCH", path)
    monkeypatch.setattr(systems, "write_header", lambda name: None)
    monkeypatch.setattr(record_module, "machine", lambda: HERE)
    return path


def test_a_second_machine_stands_beside_the_first(record: Path) -> None:
    fresh = {"seconds": 2.0, "peak_gflops": 80.0, "share": 0.4}
    for _ in range(2):
        systems.record_bench([{"what": "a bar", "value": 0.6}], {"unet": fresh})
        systems.record_bench([], {"unet": fresh}, "smoke")
    whole = systems.whole_record()
    assert [row["machine"]["processor"] for row in whole["systems"]["unet"]] == ["old", "new"]
    assert [row["value"] for row in whole["bars"]] == [0.5, 0.6]
    assert whole["studies"]["smoke"]["unet"] == [{**fresh, "machine": HERE}]
    assert systems.read_bench()["systems"]["unet"]["seconds"] == 1.0
    assert machines(whole) == [THERE, HERE]


def test_the_plan_takes_the_peak_of_its_own_processor(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems.record_bench([], {"unet": {"seconds": 2.0, "peak_gflops": 80.0, "share": 0.4}})
    for processor, peak in (("new", 80.0), ("old", 90.0)):
        monkeypatch.setattr(
            plan.machine, "platform_facts", lambda name=processor: {"processor": name}
        )
        assert plan.cpu_peak.__wrapped__() == peak


def test_a_machine_is_told_with_the_peaks_that_are_known() -> None:
    peaks = "a matrix product of 80 GFLOP/s in fp32 and 200 GFLOP/s in bf16"
    assert machine_words(HERE) == f"New, AVX512, {peaks}"
    assert "bf16" not in machine_words(THERE)


def test_zen_4_and_zen_5_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset({"avx512f"})
    monkeypatch.setattr(precision, "processor_flags", lambda: flags)
    assert architecture("AMD EPYC", "25") == " (Zen 4)"
    assert architecture("AMD EPYC", "26") == " (Zen 5)"
    assert architecture("Intel(R) Xeon(R)", "6") == ""
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset[str]())
    assert architecture("AMD EPYC", "25") == ""


def test_the_table_of_bf16_says_what_was_missed() -> None:
    took = {"fp32_seconds": 1.0, "bf16_seconds": 0.6}
    bar = {"what": "a step: bf16 / fp32", "value": 0.6, "bar": 0.5, "met": False}
    other = {"what": "mvl --help", "value": 0.1, "bar": 0.5, "met": True, "machine": HERE}
    text = bf16_table({"bars": [{**bar, "measured": took, "machine": HERE}, other]})
    row = text.splitlines()[2:]
    assert len(row) == 1 and row[0].startswith("| a step | New, AVX512")
    assert row[0].endswith("| 1.000 | 0.600 | 0.60 | 0.5 (missed) |")
