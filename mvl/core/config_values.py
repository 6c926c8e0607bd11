"""Settings from YAML as typed values: never rounded, never guessed; an unknown key names itself."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from mvl.core.block_config import KINDS
from mvl.core.errors import USAGE, MvlError

CONFIG_DIR = Path(__file__).parent.parent / "configs"
ROOT = Path(__file__).resolve().parents[2]
"The clone's top folder: `data/`, `notebooks/` and `book/` lie beside the package."


class ConfigError(MvlError, ValueError):
    """A configuration key, value or file is wrong; the message names it and the remedy."""

    exit_code = USAGE


CHOICES = {
    "resample": ("resize", "pad_crop"),
    "labels": ("foreground", "all"),
    "kind": KINDS,
    "augmentation": ("rotate_intensity", "flip_rot90", "released_planes", "one_plane"),
    "split": ("folds", "copies", "persons"),
    "select": ("val", "train_loss", "test"),
    "label_noise": ("none", "boundary", "region"),
    "backbone": ("cmunext", "unet"),
    "loss": ("dice_ce", "bce_dice", "bce_dice_released"),
    "final_norm": ("unit", "loaded", "none"),
    "block_position": ("bottleneck", "after_embedding"),
    "mapper": ("lora", "linear"),
    "optimizer": ("adamw", "adam", "sgd"),
    "schedule": ("one_cycle", "poly", "constant"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
}
"Allowed words of the fields that take one of a few."


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint such as ` (did you mean 'lr'?)`, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(cls: type, values: dict[str, Any], where: str) -> Any:
    """Make the dataclass `cls` from nested dicts.

    Raises:
        ConfigError: unknown key, wrong type or a word outside `CHOICES`; the message names `where`
            and the key.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping, got {values!r}")
    hints, fields = _hints(cls), {f.name for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), sorted(fields))}"
            )
    return cls(**{k: coerce(hints[k], v, f"{where}.{k}") for k, v in values.items()})


# Annotations are text, which Python compiles again at every call: most of the time of a config.
_hints = cache(get_type_hints)


def coerce(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (bool, int, float, str, a tuple of one of them, or a dataclass); never
    rounds, never guesses."""
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return tuple(coerce(get_args(kind)[0], v, where) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        hint = (
            " (write a float in YAML as 1.0e-3, with dot and sign)"
            if kind is float and isinstance(value, str)
            else ""
        )
        raise ConfigError(f"{where}: expected {kind.__name__}, got {value!r}{hint}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {value!r} is not finite")
    choices = CHOICES.get(where.rsplit(".", 1)[-1])
    if choices and value not in choices:
        raise ConfigError(
            f"{where}: {value!r} is not one of"
            f" {', '.join(choices)}{did_you_mean(value, list(choices))}"
        )
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config, tuples as lists, ready for YAML or JSON."""

    out: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        out[each.name] = list(value) if isinstance(value, tuple) else value
    return out


def merge(base: dict[str, Any], *overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts merged key by key, later ones winning."""
    out = dict(base)
    for override in overrides:
        for key, value in override.items():
            both = isinstance(value, dict) and isinstance(out.get(key), dict)
            out[key] = merge(out[key], value) if both else value
    return out


class _SafeLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader (the same in C: 10 times faster) that refuses a key which stands twice: the
    first value would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if isinstance(key, str) and keys.count(key) > 1]:
            where = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"the key {twice[0]!r} stands twice in one mapping, from line {where}"
            )
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Parse a text once: the runs of a study ask hundreds of times for the same few files."""
    return yaml.load(text, Loader=_SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        ConfigError: missing file, not YAML, or not a mapping; names the file.
    """
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ConfigError(
            f"{path}: no such file{did_you_mean(path.stem, known)}; known: {', '.join(known)}"
        )
    try:
        # a copy: what one caller changes is not another's
        loaded = copy.deepcopy(_parsed(path.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not in UTF-8; save it so") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping at the top")
    return loaded
