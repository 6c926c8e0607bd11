"""`make gpu` shows item by item: it ends without a GPU, goes on where it was, and a crash or a hang
costs one part."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mvl.bench import gpu_checks, gpu_children, gpu_record
from mvl.bench.gpu_checks import Asked, Item
from mvl.study import gpu_slots
from mvl.study.grid import study_runs

CHILD = """
import json, os, sys, time
asked = json.loads(sys.argv[2])
for part in asked["parts"]:
    print("a library's own line")
    print("@mvl " + json.dumps({"begin": part}), flush=True)
    if part == "crash":
        print("Fatal: illegal memory access", file=sys.stderr)
        os._exit(134)
    if part == "hang":
        time.sleep(60)
    state = {"refused": "refused", "bad": "failed"}.get(part, "done")
    line = {"part": part, "state": state, "facts": {"pid": os.getpid()}}
    print("@mvl " + json.dumps(line), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item `fake` whose parts are shown by the program above."""
    (tmp_path / "fake_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    item = Item(
        1,
        "fake_child",
        2.0,
        lambda asked: ["one", "crash", "two", "hang", "refused", "bad"],
        needs_card=False,
    )
    monkeypatch.setattr(gpu_checks, "ITEMS", {"fake": item})


def states(path: Path) -> dict[str, str]:
    """Part -> state of each line."""
    return {line["part"]: line["state"] for line in gpu_record.read_lines(path)}


def test_a_crash_and_a_hang_cost_one_part_each(
    child: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked("NVIDIA X", tmp_path / "gpu.json")
    gpu_checks.check_items(["fake"], asked)
    lines = gpu_record.read_lines(asked.record)
    assert states(asked.record) == {
        "one": "done",
        "crash": "failed: the process ended with 134",
        "two": "done",
        "hang": "failed: took more than 2 s",
        "refused": "refused",
        "bad": "failed",
    }
    assert all(line["card"] == "NVIDIA X" and line["at"] and line["commit"] for line in lines)
    assert next(line for line in lines if line["part"] == "crash")["facts"] == {
        "error": "Fatal: illegal memory access"
    }
    assert sorted(asked.failed) == ["fake bad", "fake crash", "fake hang"]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["part"] for line in printed] == [line["part"] for line in lines]


def test_a_second_call_shows_what_failed_and_what_is_missing_alone(
    child: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "gpu.json"
    for part, state in (("one", "done"), ("refused", "refused"), ("two", "failed")):
        gpu_record.keep_line(
            {"card": "NVIDIA X", "item": "fake", "part": part, "state": state, "facts": {}}, record
        )
    shown: list[list[str]] = []
    monkeypatch.setattr(gpu_checks, "show_parts", lambda asked, name, parts: shown.append(parts))
    gpu_checks.check_items(["fake"], Asked("NVIDIA X", record))
    gpu_checks.check_items(["fake"], Asked("NVIDIA Y", record))
    gpu_checks.check_items(["fake"], Asked("NVIDIA X", record, again=True))
    assert [len(parts) for parts in shown] == [4, 6, 6] and shown[0] == [
        "crash",
        "two",
        "hang",
        "bad",
    ]


def test_what_the_time_does_not_suffice_for_has_no_line(child: None, tmp_path: Path) -> None:
    asked = Asked("NVIDIA X", tmp_path / "gpu.json", deadline=time.monotonic() + 1.0)
    gpu_checks.show_parts(asked, "fake", ["one", "hang", "two"])
    assert set(states(asked.record)) <= {"one"} and not asked.failed


def test_a_process_that_cannot_begin_ends_the_item_and_not_never(
    child: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake_child.py").write_text("import no_such_module")
    asked = Asked("", tmp_path / "gpu.json")
    gpu_checks.show_parts(asked, "fake", ["one", "two"])
    assert states(asked.record) == {"one": "failed", "two": "failed"}


def test_without_a_gpu_what_needs_one_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        gpu_checks, "show_parts", lambda asked, name, parts: shown.append((name, parts))
    )
    monkeypatch.setattr(gpu_slots, "visible_gpus", lambda: ())
    assert gpu_checks.main(["--out", str(tmp_path / "gpu.json")]) == 0
    lines = gpu_record.read_lines(tmp_path / "gpu.json")
    assert {line["item"] for line in lines} == {
        "facts",
        "agree",
        "memory",
        "share",
        "steps",
        "attention",
    }
    assert {(line["card"], line["state"]) for line in lines} == {("CPU", "skipped: no GPU")}
    assert sorted((name, part) for name, parts in shown for part in parts) == [
        ("evaluate", ""),
        ("repeat", "cmunext"),
        ("repeat", "vit_baseline"),
        ("torchrun", ""),
    ]


def test_a_machine_without_a_gpu_leaves_the_record_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_record, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(gpu_checks, "CPU_RECORD", tmp_path / "cpu.json")
    monkeypatch.setattr(gpu_checks, "card_name", lambda: "")
    assert gpu_checks.main(["--items", "1", "5"]) == 0
    assert (
        not (tmp_path / "record.json").exists()
        and len(gpu_record.read_lines(tmp_path / "cpu.json")) == 2
    )


def test_the_items_are_those_of_the_book_and_have_numbers() -> None:
    assert set(gpu_checks.ITEMS) == set(gpu_record.TITLES)
    assert sorted(item.number for item in gpu_checks.ITEMS.values()) == list(range(1, 10))
    assert gpu_checks.named_item("5") == gpu_checks.named_item("steps") == "steps"
    asked = Asked("NVIDIA X", Path("x"))
    parts = {name: item.parts(asked) for name, item in gpu_checks.ITEMS.items()}
    assert sorted(parts["repeat"]) == sorted({config.system for config in study_runs("smoke")})
    assert parts["agree"] == parts["repeat"]
    assert len(parts["share"]) == 3


def test_the_cards_name_is_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *index*) echo 0;; *) echo "NVIDIA H100 80GB HBM3";; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpu_children.card_name() == "NVIDIA H100 80GB HBM3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_children.card_name() == ""


def test_then_the_time_that_is_left_goes_to_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr("mvl.study.launch.ensure_data", lambda study, data_dir: None)
    monkeypatch.setattr("mvl.study.workers.run_workers", lambda *words: asked.append(words) or 143)
    words = [
        "--items",
        "--then",
        "quick",
        "--minutes",
        "3",
        "--at-once",
        "12",
        "--results-dir",
        str(tmp_path),
        "--out",
        str(tmp_path / "x"),
    ]
    assert gpu_checks.main(words) == 0, "runs that the time cut off are resumable, not failed"
    [(study, results, data, launch, minutes)] = asked
    assert (study, results, data) == ("quick", tmp_path, None) and 2.5 < minutes <= 3
    assert (launch.jobs, launch.runs_per_gpu, launch.engine) == (12, 12, "workers")


def test_the_whole_way_to_a_line(tmp_path: Path) -> None:
    """A real child, in small, on this CPU."""
    asked = Asked("", tmp_path / "gpu.json", small=True)
    gpu_checks.show_parts(asked, "facts", [""])
    [line] = gpu_record.read_lines(asked.record)
    assert line["state"] == "done" and line["facts"]["matmul_bf16_tflops"] > 0
