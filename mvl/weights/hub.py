"""Parts of hub models: only the asked tensors of a checkpoint travel, pinned to a commit, and are
kept as a small checkpoint of their own."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from mvl.core.config import ROOT, did_you_mean
from mvl.core.files import (
    RunError,
    atomic_write,
    now,
    sha256_bytes,
    sha256_file,
    swap,
    sync_folder,
    waiting_lock,
    write_json,
)
from mvl.weights.families import SourceError, make_config, wanted
from mvl.weights.hub_checkpoint import (
    Checkpoint,
    Names,
    Plan,
    find_checkpoint,
    plan_rows,
    plan_tensors,
)
from mvl.weights.hub_client import HubClient, connect
from mvl.weights.hub_store import write_planned
from mvl.weights.paths import weights_dir
from mvl.weights.safetensors_ranges import SINGLE, read_tensors

REGISTRY = ROOT / "data" / "sources.toml"
Say = Callable[[str], Any]


@dataclass(frozen=True)
class HubSource:
    """A model on a hub."""

    name: str
    "As in `data/sources.toml`, or owner/name@revision."
    repo: str
    revision: str
    "Commit, 40 hex digits."
    licence: str = ""
    family: str = ""
    "`model_type` of its config."
    hidden: int = 0
    "Width."
    layers: int = 0
    intermediate: int = 0
    "Hidden width of its MLP; 0: not listed."
    heads: int = 0
    kv_heads: int = 0
    gated: bool = False
    note: str = ""


def tell(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


@cache
def load_sources() -> dict[str, HubSource]:
    """The hub models of `data/sources.toml` by name."""
    return {
        name: HubSource(name, **row) for name, row in tomllib.loads(REGISTRY.read_text()).items()
    }


def is_hub_source(name: str) -> bool:
    """True for a name of `data/sources.toml` and for owner/name@revision."""
    return name in load_sources() or re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", name) is not None


def find_source(name: str) -> HubSource:
    """The hub model called `name`: a row of `data/sources.toml`, or owner/name@COMMIT.

    Raises:
        SourceError: neither; hints at the nearest.
    """
    if name in load_sources():
        return load_sources()[name]
    if not is_hub_source(name) or ".." in name:
        hint = did_you_mean(name, list(load_sources()))
        raise SourceError(
            f"unknown hub model {name!r}{hint}; known: {', '.join(load_sources())}, or"
            " OWNER/NAME@COMMIT (40 hex digits)"
        )
    repo, revision = name.split("@")
    return HubSource(name, repo, revision)


def source_dir(source: HubSource) -> Path:
    """`<weights>/hub/<owner>--<name>/<commit>`: what has been fetched of it."""
    return weights_dir() / "hub" / source.repo.replace("/", "--") / source.revision


def fetch_file(source: HubSource, name: str, say: Say = tell, beside: str = "") -> Path:
    """One small file of the model, e.g. config.json or tokenizer.json, fetched on first use;
    `beside`: what else will be wanted.

    Raises:
        SourceError: refused, missing, offline or damaged; says what to do.
    """
    if (found := _kept(source, name)) is not None:
        return found
    with _lock(source):
        return _file(
            source,
            name,
            lambda: _connected(source, say, " and ".join(filter(None, (name, beside)))),
        )


def fetch_layer(source: HubSource, layer: int, say: Say = tell) -> Path:
    """Folder with config.json and the tensors that a block needs: one layer's (negative counts from
    the end) and the final norm.

    Raises:
        SourceError: no such layer, or as `fetch_part`.
    """
    path = fetch_file(source, "config.json", say, f"the tensors of layer {layer}")
    config = make_config(json.loads(path.read_text()), str(path))
    count = config.num_hidden_layers
    if not -count <= layer < count:
        raise SourceError(f"{source.name} has layers 0 to {count - 1}; there is no layer {layer}")
    return fetch_part(source, wanted(config, layer % count), f"layer-{layer % count}", say)


def fetch_part(source: HubSource, names: Names, what: str, say: Say = tell) -> Path:
    """Folder with config.json, one model.safetensors of the tensors whose names `names` accepts,
    and manifest.json; whole or absent.

    Of two processes one fetches and the other waits; what is there already needs no connection.

    Raises:
        SourceError: as `fetch_file`; or no tensor is wanted, or the checkpoint is not what its
            index says.
    """
    return _fetch(
        source, names, what, lambda hub, checkpoint: plan_tensors(hub, checkpoint, names), say
    )


def fetch_rows(
    source: HubSource, tensor: str | Names, rows: Sequence[int], say: Say = tell
) -> Tensor:
    """Those rows of the matrix of that name, or whose name is accepted, (len(rows), width) in the
    stored dtype; only they travel.

    Raises:
        SourceError: as `fetch_part`; or the model has no such matrix or row.
    """
    unique = sorted(set(rows))
    names: Names = (lambda name: name == tensor) if isinstance(tensor, str) else tensor
    what = f"rows-{sha256_bytes(json.dumps(unique).encode())[:16]}"
    folder = _fetch(
        source, names, what, lambda hub, checkpoint: plan_rows(hub, checkpoint, names, unique), say
    )
    found = next(tensor for _, tensor in read_tensors(folder, names))
    return found[[unique.index(row) for row in rows]]


def _fetch(
    source: HubSource,
    names: Names,
    what: str,
    plan: Callable[[HubClient, Checkpoint], Plan],
    say: Say,
) -> Path:
    folder = source_dir(source) / what
    if _whole(folder, names):
        return folder
    with _lock(source):
        if _whole(folder, names):
            return folder
        hub, info = _connected(
            source, say, what if _kept(source, "config.json") else f"config.json and {what}"
        )
        config = _file(source, "config.json", lambda: (hub, info))
        checkpoint = find_checkpoint(hub, source.revision, info)
        todo = plan(hub, checkpoint)
        say(_announced(source, checkpoint, todo, what))
        partial = folder.with_name(f".{what}.partial")
        digest = write_planned(hub, checkpoint, todo, partial / SINGLE)
        atomic_write(partial / "config.json", config.read_bytes())
        write_json(
            partial / "manifest.json",
            _manifest(source, checkpoint, todo, digest, sha256_file(partial / "config.json")),
        )
        _move(partial, folder)
    return folder


def _move(partial: Path, folder: Path) -> None:
    """Move the finished download to its final folder."""
    try:
        swap(partial, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise SourceError(
            f"{folder}: what arrived is whole but could not be moved there from {partial.name}"
            f" ({error.strerror}); free that name or fix the folder's permissions, then run the"
            " same command again"
        ) from error


def _announced(source: HubSource, checkpoint: Checkpoint, plan: Plan, what: str) -> str:
    origin = f"{source.repo}@{checkpoint.commit[:8]}" + (
        f", its conversion {checkpoint.conversion}" if checkpoint.conversion else ""
    )
    return (
        f"{origin}, {what}: {plan.size / 1e6:,.1f} MB of the model's {checkpoint.size / 1e6:,.1f}"
        f" MB travel ({len(plan.tensors)} of {len(checkpoint.files)} tensors)"
    )


def _connected(source: HubSource, say: Say, lacking: str) -> tuple[HubClient, dict[str, Any]]:
    """A client and what the hub says of the pinned revision.

    Raises:
        SourceError: the revision is a branch, or the hub answers with another commit.
    """
    hub = connect(source.repo, say, lacking)
    info = hub.json(f"/revision/{source.revision.replace('/', '%2F')}")
    commit = str(info.get("sha"))
    if commit != source.revision and re.fullmatch("[0-9a-f]{40}", source.revision):
        raise SourceError(
            f"{source.repo}: pinned to {source.revision}, the hub answers with {commit}: the"
            f" revision has moved. Compare the two at {hub.endpoint}/{source.repo}/commits/main,"
            f" then give {source.repo}@{commit} if it will do"
        )
    if commit != source.revision:
        raise SourceError(
            f"{source.repo}@{source.revision} is not pinned to a commit, so that it may change:"
            f" give {source.repo}@{commit}, which is what {source.revision} means now"
        )
    return hub, info


def _manifest(
    source: HubSource, checkpoint: Checkpoint, plan: Plan, digest: str, config: str
) -> dict[str, Any]:
    tensors = {
        name: {"dtype": dtype, "shape": list(shape)}
        for name, (dtype, shape) in plan.tensors.items()
    }
    return {
        "repo": source.repo,
        "revision": source.revision,
        "commit": checkpoint.commit,
        "conversion": checkpoint.conversion,
        "fetched": now(),
        "bytes": plan.size,
        "model_bytes": checkpoint.size,
        "names": list(checkpoint.files),
        "tensors": tensors,
        "files": {SINGLE: digest, "config.json": config},
    }


def _whole(folder: Path, names: Names) -> bool:
    """True when the folder holds just the tensors that `names` wants, as its manifest says.

    Raises:
        SourceError: a file differs from its recorded hash.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        wanted, files = {name for name in manifest["names"] if names(name)}, dict(manifest["files"])
        held = set(manifest["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise SourceError(
                f"{folder / name}: absent or changed since it was fetched; delete {folder} and"
                " fetch again"
            )
    return held == wanted


def _kept(source: HubSource, name: str) -> Path | None:
    """A small file that is there with the hash it came with."""
    path = source_dir(source) / "files" / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise SourceError(f"{name!r} leaves the model's folder; refused")
    try:
        digest = json.loads((path.parent / f"{path.name}.json").read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not path.is_file() or sha256_file(path) != digest:
        raise SourceError(
            f"{path}: absent or changed since it was fetched; delete {path.parent} and fetch again"
        )
    return path


def _file(
    source: HubSource, name: str, connected: Callable[[], tuple[HubClient, dict[str, Any]]]
) -> Path:
    """`fetch_file` for whoever holds the lock."""
    if (found := _kept(source, name)) is not None:
        return found
    data, path = connected()[0].small(source.revision, name), source_dir(source) / "files" / name
    atomic_write(path, data)
    write_json(path.parent / f"{path.name}.json", {"sha256": sha256_bytes(data)})
    return path


@contextmanager
def _lock(source: HubSource) -> Iterator[None]:
    try:
        with waiting_lock(source_dir(source).parent / ".lock"):
            yield
    except RunError as error:
        raise SourceError(
            f"{weights_dir()}: cannot write there; set MVL_WEIGHTS to a writable folder"
        ) from error
