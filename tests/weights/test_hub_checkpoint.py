"""Finding a hub model's tensors: index, one file, the hub's own conversion of pickles, or a
refusal."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from mvl.weights.families import SourceError
from mvl.weights.hub import fetch_part, find_source
from mvl.weights.hub_checkpoint import Checkpoint, Plan, plan_tensors
from mvl.weights.hub_client import connect

PICKLE = b"never opened: not even a pickle"


def norm(name):
    return name == "model.norm.weight"


@pytest.fixture
def pickled(wide_llama, tmp_path):
    """A model that has config.json and pytorch_model.bin."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(wide_llama / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(PICKLE)
    return folder


@pytest.fixture
def converted(pickled, wide_llama, tmp_path):
    """The same with a safetensors copy."""
    folder = shutil.copytree(pickled, tmp_path / "converted")
    save_file(
        {
            name: t
            for shard in wide_llama.glob("*.safetensors")
            for name, t in load_file(shard).items()
        },
        folder / "model.safetensors",
    )
    return folder


def fetch(hub, folder):
    commit = hub.add("old/pickle", folder) if folder else hub.repos["old/pickle"]["refs"]["main"]
    return fetch_part(find_source(f"old/pickle@{commit}"), norm, "norm")


def test_conversion_by_the_hubs_own_converter_is_read(hub, pickled, converted, capsys):
    commit = hub.add("old/pickle", pickled)
    for number in (1, 2):
        hub.repos["old/pickle"]["discussions"].append(
            {
                "num": number,
                "title": "a question",
                "status": "open",
                "isPullRequest": False,
                "author": {"name": "reader"},
            }
        )
    proposal = hub.propose("old/pickle", converted)
    folder = fetch(hub, None)
    assert set(load_file(folder / "model.safetensors")) == {"model.norm.weight"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["revision"], manifest["commit"], manifest["conversion"]) == (
        commit,
        proposal,
        "refs/pr/3",
    )
    assert f"old/pickle@{proposal[:8]}, its conversion refs/pr/3, norm:" in capsys.readouterr().err
    assert hub.paths("storage") and not any(
        "pytorch_model" in path for path in hub.paths("storage")
    )


def test_without_conversion_pickles_are_refused(hub, pickled):
    with pytest.raises(
        SourceError,
        match=(
            r"only as pickle \(pytorch_model.bin\), which is never opened: have it converted at"
            r" https://.*/convert"
        ),
    ):
        fetch(hub, pickled)


@pytest.mark.parametrize(
    "more", [{"author": "stranger"}, {"status": "closed"}, {"title": "Better weights"}]
)
def test_proposals_by_others_are_not_trusted(hub, pickled, converted, more):
    hub.add("old/pickle", pickled)
    hub.propose("old/pickle", converted, **more)
    with pytest.raises(SourceError, match="only as pickle"):
        fetch(hub, None)


def test_conversion_of_other_weights_is_refused(hub, pickled, converted):
    hub.add("old/pickle", pickled)
    (converted / "pytorch_model.bin").write_bytes(b"other weights")
    hub.propose("old/pickle", converted)
    with pytest.raises(
        SourceError,
        match=(
            "its conversion refs/pr/3 was made from other weights: pin the commit that was"
            " converted"
        ),
    ):
        fetch(hub, None)


def test_no_weights_at_all(hub, pickled):
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(
        SourceError, match=r"holds no safetensors \(config.json\); choose a model that does"
    ):
        fetch(hub, pickled)


def test_index_that_lies(hub, wide_llama, tmp_path):
    folder = shutil.copytree(wide_llama, tmp_path / "lying")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    other = next(
        file
        for file in index["weight_map"].values()
        if file != index["weight_map"]["model.norm.weight"]
    )
    index["weight_map"]["model.norm.weight"] = other
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        SourceError, match=f"{other} lacks model.norm.weight, which the index says it holds"
    ):
        fetch(hub, folder)


def test_neighbours_are_asked_for_at_once(hub, wide_llama):
    commit, client = hub.add("meta/wide", wide_llama), connect("meta/wide")
    index = json.loads((wide_llama / "model.safetensors.index.json").read_text())["weight_map"]
    plan = plan_tensors(
        client, Checkpoint(commit, index, 0), lambda name: name.startswith("model.layers.2.")
    )
    assert (
        len(plan.tensors) == 9 and len(plan.pieces) == len({file for file, *_ in plan.pieces}) == 2
    )
    assert plan.size == sum(
        t.numel() * 4
        for shard in wide_llama.glob("*.safetensors")
        for n, t in load_file(shard).items()
        if n in plan.tensors
    )
    assert Plan({}, []).size == 0
