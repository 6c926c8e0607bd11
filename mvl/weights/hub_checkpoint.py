"""Where a hub model's tensors lie, the hub's own safetensors conversion of pickled weights
included, and which bytes are the wanted ones."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mvl.weights.families import SourceError
from mvl.weights.hub_client import HubClient
from mvl.weights.safetensors_ranges import (
    DTYPES,
    INDEX,
    SINGLE,
    Place,
    merged,
    read_index,
    read_places,
)

BOT, TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
"""Author and title of the pull request in which the hub's converter puts a safetensors copy of
pickled weights."""
CONVERTER = "https://huggingface.co/spaces/safetensors/convert"
Names = Callable[[str], bool]
"Accepts a tensor by its name."


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's tensors lie."""

    commit: str
    "The source's, or that of its safetensors conversion."
    files: dict[str, str]
    "File of each tensor."
    size: int
    "Bytes of all tensors."
    conversion: str = ""
    "`refs/pr/N` where the tensors come from a conversion."


@dataclass(frozen=True)
class Plan:
    """What travels, in order: tensors with dtype and shape, and the (file, start, end) that make
    them up."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    pieces: list[tuple[str, int, int]]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(end - start for _, start, end in self.pieces)


def find_checkpoint(hub: HubClient, revision: str, info: dict[str, Any]) -> Checkpoint:
    """Where the model's tensors lie: its safetensors, else the hub's own conversion of the same
    weights.

    Raises:
        SourceError: neither is there; weights that are pickles are never opened.
    """
    files, commit, conversion = _files(info), revision, ""
    if not files & {INDEX, SINGLE}:
        commit, conversion, files = _conversion(hub, revision, files)
    if INDEX in files:
        names, size = read_index(hub.small(commit, INDEX), f"{hub.repo}/{INDEX}")
        return Checkpoint(commit, names, size, conversion)
    places = read_places(SINGLE, hub.read(commit))
    return Checkpoint(
        commit,
        dict.fromkeys(places, SINGLE),
        sum(p.end - p.start for p in places.values()),
        conversion,
    )


def _conversion(hub: HubClient, revision: str, files: set[str]) -> tuple[str, str, set[str]]:
    """(commit, ref, files) of the pull request of the hub's converter, made from the very pickles
    of the pinned commit.

    Source: transformers/safetensors_conversion.py (title and author). Differs: the pickles' hashes
    are compared instead of the parent commits, so that an edited model card does no harm; a
    conversion is never ordered, since that hands the user's token to another host.
    """
    pickles = sorted(file for file in files if re.fullmatch(r"pytorch_model[\w.-]*\.bin", file))
    if not pickles:
        raise SourceError(
            f"{hub.repo} holds no safetensors ({', '.join(sorted(files)[:8]) or 'no file'}); choose"
            " a model that does"
        )
    remedy = (
        f"only as pickle ({pickles[0]}), which is never opened: have it converted at {CONVERTER}"
        " and fetch again, or convert it on a machine that you trust and give the folder as source"
    )
    for row in _discussions(hub):
        if (
            row.get("isPullRequest")
            and row.get("title") == TITLE
            and (row.get("author") or {}).get("name") == BOT
            and row.get("status") in ("open", "merged")
        ):
            ref = f"refs/pr/{int(row['num'])}"
            info = hub.json(f"/revision/{ref.replace('/', '%2F')}")
            found, commit = _files(info), str(info.get("sha"))
            same = all(
                hub.etag(revision, file) == hub.etag(commit, file) != ""
                for file in pickles
                if file in found
            )
            if found & {INDEX, SINGLE} and set(pickles) <= found and same:
                return commit, ref, found
            remedy = (
                f"only as pickle, and its conversion {ref} was made from other weights: pin the"
                " commit that was converted, or choose another model"
            )
    raise SourceError(f"{hub.repo} has its weights {remedy}")


def _discussions(hub: HubClient) -> Iterator[dict[str, Any]]:
    for page in range(20):
        value = hub.json(f"/discussions?p={page}&type=pull_request&author={BOT}")
        yield from value["discussions"]
        if not value["discussions"] or value.get("start", 0) + len(
            value["discussions"]
        ) >= value.get("count", 0):
            return


def _files(info: dict[str, Any]) -> set[str]:
    return {str(row["rfilename"]) for row in info.get("siblings") or []}


def plan_tensors(hub: HubClient, checkpoint: Checkpoint, names: Names) -> Plan:
    """The tensors whose names are accepted, by file and place in it.

    Raises:
        SourceError: none is, or a file lacks one that the index says it holds.
    """
    wanted = {name for name in checkpoint.files if names(name)}
    if not wanted:
        raise SourceError(
            f"{hub.repo}: none of its {len(checkpoint.files)} tensors is wanted (e.g."
            f" {next(iter(checkpoint.files), 'none')}); its names are not those of its model type,"
            " choose another model"
        )
    places = _places(hub, checkpoint, wanted)
    pieces = [
        (file, *span)
        for file, of in itertools.groupby(places.items(), lambda item: item[1].file)
        for span in merged((place.start, place.end) for _, place in of)
    ]
    return Plan({name: (place.dtype, place.shape) for name, place in places.items()}, pieces)


def plan_rows(hub: HubClient, checkpoint: Checkpoint, names: Names, rows: list[int]) -> Plan:
    """Ascending rows of the one matrix whose name is accepted, as a tensor of its name.

    Raises:
        SourceError: the model has no such matrix or row.
    """
    if len(found := [name for name in checkpoint.files if names(name)]) != 1:
        few = ", ".join(list(checkpoint.files)[:3])
        raise SourceError(
            f"{hub.repo} has {len(found)} tensors of the wanted name, expected one; it holds"
            f" {few}, ..."
        )
    tensor = found[0]
    place = _places(hub, checkpoint, {tensor})[tensor]
    if len(place.shape) != 2 or not rows or not 0 <= rows[0] <= rows[-1] < place.shape[0]:
        raise SourceError(
            f"{hub.repo}: {tensor} has shape {list(place.shape)}; it has no rows"
            f" {rows[:4]}...{rows[-1:]}"
        )
    width = place.shape[1] * DTYPES[place.dtype].itemsize
    spans = merged((place.start + row * width, place.start + (row + 1) * width) for row in rows)
    return Plan(
        {tensor: (place.dtype, (len(rows), place.shape[1]))},
        [(place.file, *span) for span in spans],
    )


def _places(hub: HubClient, checkpoint: Checkpoint, wanted: set[str]) -> dict[str, Place]:
    """Where the wanted tensors lie, by file and place in it; only the headers of the files that
    hold them are read."""
    found: dict[str, Place] = {}
    for file in sorted({checkpoint.files[name] for name in wanted}):
        found |= {
            name: place
            for name, place in read_places(file, hub.read(checkpoint.commit)).items()
            if checkpoint.files.get(name) == file
        }
    if missing := sorted(wanted - set(found)):
        raise SourceError(
            f"{hub.repo}: {checkpoint.files[missing[0]]} lacks {missing[0]}, which the index says"
            " it holds; choose another commit"
        )
    return {name: place for name, place in found.items() if name in wanted}
