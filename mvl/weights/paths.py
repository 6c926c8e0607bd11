"""Where the weights of language models are kept."""

from __future__ import annotations

import os
from pathlib import Path

from mvl.core.config import ROOT


def weights_dir() -> Path:
    """Where fetched weights lie: `MVL_WEIGHTS`, else `data/raw/weights`."""
    return Path(os.environ.get("MVL_WEIGHTS") or ROOT / "data" / "raw" / "weights")
