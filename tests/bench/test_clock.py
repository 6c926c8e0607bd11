"""Durations and memory on a GPU are those of its work, not of its calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mvl.bench import clock


def test_on_a_gpu_time_is_taken_between_events_after_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            seen.append("event")

        def elapsed_time(self, other: object) -> float:
            assert seen[-1] == "synchronised"
            return 250.0

    fake = {
        "Event": Event,
        "synchronize": lambda: seen.append("synchronised"),
        "max_memory_allocated": lambda: 3e6,
        "reset_peak_memory_stats": lambda: seen.append("reset"),
    }
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**fake))
    assert clock.duration(lambda: seen.append("work"), "cuda") == 0.25
    assert seen == ["event", "work", "event", "synchronised"]
    assert clock.step_memory_mb(lambda: seen.append("step")) == 3.0
    assert seen[-2:] == ["reset", "step"]
