"""A card is known by its own name."""

from __future__ import annotations

import pytest

from mvl.bench import gpus


@pytest.mark.parametrize(
    ("card", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", ""),
        ("NVIDIA GeForce RTX 3090", ""),
    ],
)
def test_a_card_is_found_by_a_word_of_its_name(card: str, device: str) -> None:
    assert gpus.device_of_card(card) == device


def test_nothing_is_measured_where_there_is_no_line() -> None:
    other = {"card": "Tesla T4", "item": "facts", "part": "", "state": "done", "facts": {}}
    assert gpus.measured([other], "t4", "fp32") is None
