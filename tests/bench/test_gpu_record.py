"""One line for each card, item and part; the book shows them, or that there is none."""

from __future__ import annotations

import json
from pathlib import Path

from mvl.bench import gpu_record


def test_a_newer_line_takes_the_place_of_its_own_kind_alone(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    line = {"card": "Tesla T4", "item": "memory", "part": "", "state": "failed", "facts": {}}
    gpu_record.keep_line(line, path)
    gpu_record.keep_line(line | {"card": "NVIDIA H100"}, path)
    gpu_record.keep_line(line | {"state": "done"}, path)
    assert [(one["card"], one["state"]) for one in gpu_record.read_lines(path)] == [
        ("NVIDIA H100", "failed"),
        ("Tesla T4", "done"),
    ]
    text = path.read_text().splitlines()
    assert (text[0], text[-1]) == ("[", "]") and json.loads(text[1].rstrip(","))[
        "card"
    ] == "NVIDIA H100"


def test_the_page_shows_every_line_or_that_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert "No GPU has been measured yet" in gpu_record.page(path)["gpu"]
    facts = {"seconds": 0.123456, "same_bytes": True, "system": "a|b"}
    for item in gpu_record.TITLES:
        gpu_record.keep_line(
            {"card": "Tesla T4", "item": item, "part": "vit", "state": "done", "facts": facts}, path
        )
    shown = gpu_record.page(path)["gpu"]
    assert shown.startswith("### Tesla T4") and all(
        f"**{title}.**" in shown for title in gpu_record.TITLES.values()
    )
    assert (
        "| part | state | same bytes | seconds | system |" in shown
        and "| vit | done | yes | 0.1235 | a/b |" in shown
    )
