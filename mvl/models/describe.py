"""What each system is made of, and how many parameters it trains."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from mvl.core.block_config import LAYER_KINDS
from mvl.core.config import CONFIG_DIR, Config, build, check, load_config, named, system_names
from mvl.weights.listed_sizes import described, has_listed_sizes


def system_config(name: str, study: str | None = None) -> Config:
    """The config of a system at its own defaults, the released sizes, or on the first task of a
    study, with what the study changes.

    Raises:
        ConfigError: unknown system or study.
    """
    if study:
        return load_config(study, named("studies", study)["tasks"][0], name)
    parts = {
        key: value
        for key, value in named("systems", name).items()
        if key in ("data", "model", "train")
    }
    return check(
        build(Config, {"study": "defaults", "system": name, **parts}, f"systems/{name}.yaml")
    )


def describe_systems() -> list[dict[str, Any]]:
    """Per system: name, title, source, spatial dims, and trainable, frozen and total parameters for
    one channel and one class."""
    return [describe_system(name) for name in system_names()]


def describe_system(name: str) -> dict[str, Any]:
    """One row of the table."""
    from mvl.models.build import count_parameters

    config = system_config(name)
    text = named("systems", name)
    facts = {
        "name": name,
        "title": text.get("title", name),
        "source": text.get("source", ""),
        "spatial_dims": len(config.data.img_size),
    }
    return facts | count_parameters(without_files(config), 1, 1)


def without_files(config: Config, with_words: bool = True) -> Config:
    """The config with a block of the same sizes that needs no file of a model: drawn from the
    listed sizes.

    A block with text guidance keeps its source, whose tokenizer it needs; `with_words=False` takes
    the words away instead.
    """
    block = config.model.token_block
    if not with_words:
        block = replace(block, text_guidance=False, words="")
    if has_listed_sizes(block.source) and not block.text_guidance:
        kind = "random" if block.kind in LAYER_KINDS else block.kind
        block = replace(block, kind=kind, source=str(described(block.source)), layer=0)
    return replace(config, model=replace(config.model, token_block=block))


def switches(name: str) -> list[str]:
    """What a system's YAML changes in the model and in the labels, in its own words:
    `token_block.kind: random`."""
    text = named("systems", name)
    labels = {k: v for k, v in text.get("data", {}).items() if k.startswith("label_noise")}
    return [
        f"{key}: {json.dumps(value)}".replace('"', "")
        for key, value in dotted({**text.get("model", {}), **labels}).items()
    ]


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict, their names joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def listed_parameters(name: str) -> tuple[str, str]:
    """Trained and frozen parameters as the head of a system's YAML gives them, which a test
    compares with the network."""
    line = (CONFIG_DIR / "systems" / f"{name}.yaml").read_text().splitlines()[1]
    trained, frozen = re.findall(r"([\d,]+) (?:parameters trained|frozen)", line)
    return trained, frozen
