"""The shape types refuse what they should."""

from __future__ import annotations

import pytest
import torch

from mvl.core import shapes


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (shapes.Image, torch.zeros(1, 2, 4, 4), torch.zeros(3)),
        (shapes.Labels, torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4)),
        (shapes.Logits, torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 3, 4, dtype=torch.int64)),
        (shapes.Tokens, torch.zeros(2, 5, 8), torch.zeros(2, 5)),
    ],
)
def test_a_type_takes_its_shape_alone(kind: type, good: torch.Tensor, bad: torch.Tensor) -> None:
    assert isinstance(good, kind) and not isinstance(bad, kind)


def test_a_labels_channel_is_one() -> None:
    assert not isinstance(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), shapes.Labels)
