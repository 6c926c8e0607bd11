"""Sizes of the layers that the table of systems lists without reading weights."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from mvl.core import files

MINILM: dict[str, Any] = {
    "family": "bert",
    "hidden": 384,
    "layers": 6,
    "intermediate": 1536,
    "heads": 12,
    "kv_heads": 12,
}
SMOLLM2: dict[str, Any] = {
    "family": "llama",
    "hidden": 576,
    "layers": 30,
    "intermediate": 1536,
    "heads": 9,
    "kv_heads": 3,
}
SIZES = {"minilm-l6": MINILM, "smollm2-135m": SMOLLM2}
"Sizes of the models that packages carry; hub models have theirs in `data/sources.toml`."


def has_listed_sizes(name: str) -> bool:
    """Whether a model's layer can be built without any file of it."""
    from mvl.weights.hub import find_source, is_hub_source

    return name in SIZES or (is_hub_source(name) and find_source(name).intermediate > 0)


@cache
def described(name: str) -> Path:
    """A folder with a `config.json` of a model from its listed sizes: enough to count its layer
    without fetching it."""
    from mvl.weights.hub import HubSource, find_source

    hub = HubSource(name, "", "", **SIZES[name]) if name in SIZES else find_source(name)
    facts = {
        "model_type": hub.family,
        "hidden_size": hub.hidden,
        "intermediate_size": hub.intermediate,
        "num_hidden_layers": hub.layers,
        "num_attention_heads": hub.heads,
        "num_key_value_heads": hub.kv_heads,
    }
    folder = Path(tempfile.mkdtemp(prefix="mvl-config-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files.write_json(folder / "config.json", facts)
    return folder
