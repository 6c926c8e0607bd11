"""One seed for each random draw, from the run's seed and the draw's name."""

from __future__ import annotations

import hashlib
import json


def draw_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that is a function of (seed, purpose...) alone: no generator state to save."""
    text = json.dumps([seed, *map(str, purpose)]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
