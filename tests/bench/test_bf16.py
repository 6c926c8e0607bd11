"""Steps in bf16 are measured beside fp32, where the processor has the units."""

from __future__ import annotations

import pytest

from mvl.bench import bf16


def test_bf16_is_not_measured_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "has_units", lambda: False)
    assert list(bf16.rows(lambda *words: pytest.fail("measured"))) == []
    monkeypatch.setattr(bf16, "has_units", lambda: True)
    found = list(bf16.rows(lambda *words: {"ratio": 0.4}))
    assert [bar for _, bar, _ in found] == [0.5, 0.5, 0.55]


def test_a_bf16_step_is_measured_beside_the_fp32_one() -> None:
    found = bf16.probe_bf16("vit_baseline", "hippocampus", [16, 16, 16], 1, repeats=1)
    assert found["ratio"] == pytest.approx(found["bf16_seconds"] / found["fp32_seconds"])
