"""A study is a grid of runs: which there are, and which are done."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvl.core.config import Config, ConfigError, did_you_mean, load_config, named

STUDY_KEYS = {
    "title",
    "tasks",
    "grid",
    "data",
    "model",
    "train",
    "overrides",
    "task_overrides",
    "fraction_overrides",
    "arms",
    "notebooks",
    "tuning",
}
SECTIONS = ("data", "model", "train", "tuning")
TABLES = ("overrides", "arms", "task_overrides", "fraction_overrides")
"Sections by name: of a system, an arm, a task or a fraction."
LISTS = ("tasks", "systems", "fractions", "folds", "seeds")
BLOCK_KEYS = {"name", "tasks", "systems", "fractions", "folds", "seeds"}


@dataclass(frozen=True)
class Study:
    """A study's YAML: title, tasks and named blocks of the grid."""

    name: str
    title: str
    tasks: tuple[str, ...]
    grid: tuple[dict[str, Any], ...]
    notebooks: tuple[str, ...]

    def block(self, name: str) -> dict[str, Any]:
        """The grid block of that name.

        Raises:
            ConfigError: there is none; lists those there are.
        """
        known = [str(block["name"]) for block in self.grid]
        if name not in known:
            raise ConfigError(
                f"study {self.name}: no grid block {name!r}{did_you_mean(name, known)}; it has"
                f" {', '.join(known)}"
            )
        return self.grid[known.index(name)]


def study_file(name: str) -> str:
    """Return what messages call a study's file: its path as it was given, or its place in the
    package."""
    return name if name.endswith((".yaml", ".yml")) else f"studies/{name}.yaml"


def load_study(name: str) -> Study:
    """Read `mvl/configs/studies/<name>.yaml`.

    Raises:
        ConfigError: no such study, an unknown or missing key, or a section without keys.
    """
    plan = named("studies", name)
    if unknown := sorted(set(plan) - STUDY_KEYS):
        raise ConfigError(
            f"{study_file(name)}: unknown key"
            f" {unknown[0]!r}{did_you_mean(unknown[0], sorted(STUDY_KEYS))}"
        )
    _check_sections(name, plan)
    _check_lists(name, plan, ("tasks", "grid"))
    for block in plan.get("grid", []):
        if set(block) - BLOCK_KEYS or not {"name", "systems"} <= set(block):
            raise ConfigError(
                f"{study_file(name)}: a grid block takes {', '.join(sorted(BLOCK_KEYS))}, and"
                f" needs name and systems; got {block}"
            )
    for block in plan.get("grid", []):
        _check_lists(name, block, LISTS)
    if not plan.get("tasks") or not plan.get("grid"):
        raise ConfigError(f"{study_file(name)}: needs tasks and grid")
    tasks = {*plan["tasks"], *(task for block in plan["grid"] for task in block.get("tasks", ()))}
    systems = {system for block in plan["grid"] for system in block["systems"]}
    try:
        fractions = {float(f) for block in plan["grid"] for f in block.get("fractions", [1.0])}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{study_file(name)}: fractions are numbers in (0, 1], such as 0.1 ({error})"
        ) from error
    for key, known in (
        ("overrides", systems),
        ("arms", systems),
        ("task_overrides", tasks),
        ("fraction_overrides", fractions),
    ):
        if unknown := sorted(set(plan.get(key) or {}) - known):
            hint = did_you_mean(str(unknown[0]), sorted(map(str, known)))
            raise ConfigError(
                f"{study_file(name)}: {key} names {unknown[0]!r}, which the grid has not{hint}"
            )
    return Study(
        Path(name).stem,
        plan.get("title", name),
        tuple(plan["tasks"]),
        tuple(plan["grid"]),
        tuple(plan.get("notebooks", ())),
    )


def _check_sections(name: str, plan: dict[str, Any]) -> None:
    """Nothing where every section, and every section of a table, has keys or is empty."""
    found = {key: plan[key] for key in (*SECTIONS, *TABLES) if key in plan}
    for key in TABLES:
        if isinstance(table := plan.get(key), dict):
            found |= {f"{key}: {inner}": section for inner, section in table.items()}
    for words, section in found.items():
        if not isinstance(section, dict | None):
            raise ConfigError(
                f"{study_file(name)}: {words} is {section!r}; give it keys with values"
            )


def _check_lists(name: str, part: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Nothing where each key, if it is there, holds a list: the letters of a word are no names."""
    for key in keys:
        if not isinstance(part.get(key, []), list):
            raise ConfigError(
                f"{study_file(name)}: {key} is {part[key]!r}; write a list, such as [{part[key]}]"
            )


def run_keys(name: str, block: str | None = None) -> list[tuple[str, str, float, int, int]]:
    """Task, system, fraction, fold and seed of every run of the study, or of one block, each once,
    in the order of the YAML."""
    study = load_study(name)
    keys = []
    for part in study.grid if block is None else [study.block(block)]:
        axes = (
            part.get("tasks", study.tasks),
            part["systems"],
            part.get("fractions", [1.0]),
            part.get("seeds", [0]),
            part.get("folds", [0]),
        )
        for task, system, fraction, seed, fold in itertools.product(*axes):
            keys.append((task, system, float(fraction), fold, seed))
    return list(dict.fromkeys(keys))


def study_runs(name: str, block: str | None = None) -> list[Config]:
    """Configs of every run of the study, or of one block, each once, in the order of the YAML."""
    return [load_config(name, *key) for key in run_keys(name, block)]
