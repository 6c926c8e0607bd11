"""What each system is made of, and how many parameters it trains."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from mvl.core.config import CONFIG_DIR, Config, build, check, load_config, named, system_names
from mvl.weights.listed_sizes import described


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
    from mvl.weights.hub import is_hub_source

    config, text = system_config(name), named("systems", name)
    block = config.model.token_block
    if is_hub_source(block.source) or block.source == "minilm-l6":
        config = replace(
            config,
            model=replace(
                config.model,
                token_block=replace(block, kind="random", source=str(described(block.source))),
            ),
        )
    facts = {
        "name": name,
        "title": text.get("title", name),
        "source": text.get("source", ""),
        "spatial_dims": len(config.data.img_size),
    }
    return facts | count_parameters(config, 1, 1)


def switches(name: str) -> list[str]:
    """What a system's YAML changes in the model and in the labels, in its own words:
    `token_block.kind: random`."""

    def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
        lines: list[str] = []
        for key, value in values.items():
            words = json.dumps(value).replace('"', "")
            lines += (
                flat(value, f"{prefix}{key}.")
                if isinstance(value, dict)
                else [f"{prefix}{key}: {words}"]
            )
        return lines

    text = named("systems", name)
    return flat(text.get("model", {})) + flat(
        {k: v for k, v in text.get("data", {}).items() if k.startswith("label_noise")}
    )


def listed_parameters(name: str) -> tuple[str, str]:
    """Trained and frozen parameters as the head of a system's YAML gives them, which a test
    compares with the network."""
    line = (CONFIG_DIR / "systems" / f"{name}.yaml").read_text().splitlines()[1]
    trained, frozen = re.findall(r"([\d,]+) (?:parameters trained|frozen)", line)
    return trained, frozen
