"""The table of systems: what `mvl systems` and the book's list of systems print."""

from __future__ import annotations

from typing import Any

from mvl.config import Config, build, check, named, system_names
from mvl.models import build_system, parameter_counts


def system_config(name: str) -> Config:
    """The config of a system at its own defaults, the released sizes: no study has changed it."""
    parts = {key: value for key, value in named("systems", name).items() if key in ("data", "model", "train")}
    return check(build(Config, {"study": "defaults", "system": name, **parts}, f"systems/{name}.yaml"))


def describe_systems() -> list[dict[str, Any]]:
    """Per system: name, title, source, spatial dims, and trainable, frozen and total parameters for one channel and one class."""
    return [describe_system(name) for name in system_names()]


def describe_system(name: str) -> dict[str, Any]:
    """One row of the table."""
    config, text = system_config(name), named("systems", name)
    facts = {"name": name, "title": text.get("title", name), "source": text.get("source", ""), "spatial_dims": len(config.data.img_size)}
    return facts | parameter_counts(build_system(config, 1, 1))
