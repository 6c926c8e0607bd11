"""Parts of hub models, fetched from a hub on this machine."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file

from mvl.weights.families import FAMILIES, SourceError
from mvl.weights.hub import (
    fetch_file,
    fetch_layer,
    fetch_part,
    fetch_rows,
    find_source,
    is_hub_source,
    load_sources,
    source_dir,
)
from tests.weights.hub_server import GOOD, commit_of

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def layer_two(name):
    return name.startswith("model.layers.2.") or name == NORM


def whole(folder):
    """Every tensor of a local checkpoint."""
    return {
        name: tensor
        for shard in folder.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }


def publish(hub, folder, name="meta/wide", **more):
    return find_source(f"{name}@{hub.add(name, folder, **more)}")


def same(found, wanted):
    return set(found) == set(wanted) and all(
        torch.equal(found[name], wanted[name]) for name in wanted
    )


def test_only_the_wanted_tensors_travel(hub, wide_llama):
    source, told = publish(hub, wide_llama), []
    folder = fetch_part(source, layer_two, "layer-2", told.append)
    wanted = {name: tensor for name, tensor in whole(wide_llama).items() if layer_two(name)}
    assert same(load_file(folder / "model.safetensors"), wanted) and len(wanted) == 10
    size = sum(tensor.numel() * 4 for tensor in wanted.values())
    index = [wide_llama / name for name in ("config.json", "model.safetensors.index.json")]
    assert (
        hub.served <= 1.02 * size and sum(path.stat().st_size for path in index) < hub.served - size
    )
    # revision, config, index; length, header and tensors of three shards, each with its redirect
    assert len(hub.log) <= 3 + 6 * 3
    assert told == [
        f"meta/wide@{source.revision[:8]}, layer-2: 2.4 MB of the model's 10.5 MB travel (10 of 39"
        " tensors)"
    ]


def test_what_is_there_needs_no_connection(hub, wide_llama, monkeypatch):
    source = publish(hub, wide_llama)
    first, asked = fetch_part(source, layer_two, "layer-2"), len(hub.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_part(source, layer_two, "layer-2") == first and len(hub.log) == asked
    assert sorted(path.name for path in first.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert not list(first.parent.glob(".*partial"))


def test_manifest_says_where_it_comes_from(hub, wide_llama):
    source = publish(hub, wide_llama)
    manifest = json.loads((fetch_part(source, layer_two, "layer-2") / "manifest.json").read_text())
    assert (manifest["repo"], manifest["revision"], manifest["commit"], manifest["conversion"]) == (
        "meta/wide",
        *[source.revision] * 2,
        "",
    )
    assert len(manifest["names"]) == 39 and set(manifest["files"]) == {
        "config.json",
        "model.safetensors",
    }
    assert manifest["tensors"][NORM] == {"dtype": "F32", "shape": [256]}


def test_another_choice_under_the_same_word_is_fetched(hub, wide_llama):
    source = publish(hub, wide_llama)
    fetch_part(source, layer_two, "part")
    assert set(load_file(fetch_part(source, NORM.__eq__, "part") / "model.safetensors")) == {NORM}


def test_changed_file_is_not_used(hub, wide_llama):
    source = publish(hub, wide_llama)
    path = fetch_part(source, layer_two, "layer-2") / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        SourceError,
        match=(
            r"model.safetensors: absent or changed since it was fetched; delete .*layer-2 and fetch"
            r" again"
        ),
    ):
        fetch_part(source, layer_two, "layer-2")


def test_one_file_checkpoint(hub, wide_llama, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "one").mkdir()
    save_file(whole(wide_llama), tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").write_text((wide_llama / "config.json").read_text())
    found = load_file(
        fetch_part(publish(hub, tmp_path / "one"), layer_two, "layer-2") / "model.safetensors"
    )
    assert (
        same(found, {name: tensor for name, tensor in whole(wide_llama).items() if layer_two(name)})
        and hub.served < 2.5e6
    )


def test_server_without_ranges_is_read_past(hub, wide_llama):
    hub.no_range, told = True, []
    folder = fetch_part(publish(hub, wide_llama), layer_two, "layer-2", told.append)
    assert same(
        load_file(folder / "model.safetensors"),
        {name: tensor for name, tensor in whole(wide_llama).items() if layer_two(name)},
    )
    assert any(
        "does not serve byte ranges: all of model-00002-of-00004.safetensors" in line
        for line in told
    )
    assert not any("00001" in path for path in hub.paths("storage"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2.4e6


def test_layer_counts_from_either_end(hub, wide_llama):
    source = publish(hub, wide_llama)
    assert fetch_layer(source, -1).name == "layer-3" and fetch_layer(source, 3).name == "layer-3"
    with pytest.raises(SourceError, match="has layers 0 to 3; there is no layer 4"):
        fetch_layer(source, 4)


def test_rows_of_an_embedding(hub, wide_llama):
    source, rows = publish(hub, wide_llama), [7, 499, 3, 3, 8]
    assert torch.equal(fetch_rows(source, EMBEDDING, rows), whole(wide_llama)[EMBEDDING][rows])
    assert hub.served < 25_000 and fetch_rows(
        source, lambda name: name == EMBEDDING, [0]
    ).shape == (1, 256)
    with pytest.raises(SourceError, match=r"shape \[500, 256\]; it has no rows \[500\]"):
        fetch_rows(source, EMBEDDING, [500])
    with pytest.raises(SourceError, match="has 0 tensors of the wanted name"):
        fetch_rows(source, "nothing", [0])


def test_small_files_are_kept_and_checked(hub, wide_llama):
    source = publish(hub, wide_llama)
    path = fetch_file(source, "tokenizer.json")
    assert (
        path.read_text() == (wide_llama / "tokenizer.json").read_text()
        and fetch_file(source, "tokenizer.json") == path
    )
    assert hub.paths("hub").count("tokenizer.json") == 1
    path.write_text("{}")
    with pytest.raises(
        SourceError, match="tokenizer.json: absent or changed since it was fetched; delete"
    ):
        fetch_file(source, "tokenizer.json")
    with pytest.raises(SourceError, match="meta/wide has no file vocab.json"):
        fetch_file(source, "vocab.json")
    with pytest.raises(SourceError, match="leaves the model's folder"):
        fetch_file(source, "../config.json")


def test_token_goes_to_the_hub_alone_and_nowhere_else(
    hub, wide_llama, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("HF_TOKEN", GOOD)
    fetch_part(publish(hub, wide_llama, gated=True), layer_two, "layer-2")
    assert {entry["token"] for entry in hub.log if entry["host"] == "hub"} == {f"Bearer {GOOD}"}
    assert {entry["token"] for entry in hub.log if entry["host"] == "storage"} == {None}
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and GOOD.encode() in path.read_bytes()
    ]
    assert GOOD not in "".join(capsys.readouterr())


REFUSALS = {
    "no token": (
        {"gated": True},
        "",
        "wide is gated: accept its licence at http://.*/meta/wide, .* set HF_TOKEN to a read token",
    ),
    "no access": (
        {"gated": True},
        "hf_other",
        "wide is gated: .* see that the token belongs to that account",
    ),
    "bad token": (
        {},
        "hf_expired",
        (
            "does not accept the token .*: make a new one at http://.*/settings/tokens and set"
            " HF_TOKEN"
        ),
    ),
    "odd token": ({}, "hf_go odtoken", "HF_TOKEN .* holds blanks"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusals_to_who_asks(hub, wide_llama, monkeypatch, what):
    more, token, message = REFUSALS[what]
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match=message) as caught:
        fetch_part(publish(hub, wide_llama, **more), layer_two, "layer-2")
    assert not token or token not in str(caught.value)


def test_repository_that_is_not_there(hub):
    with pytest.raises(
        SourceError,
        match=(
            "meta/none is not on http://.*, or is private: check the name; for a private model set"
            " HF_TOKEN"
        ),
    ):
        fetch_file(find_source(f"meta/none@{'0' * 40}"), "config.json")


def test_revision_that_is_gone(hub, wide_llama):
    publish(hub, wide_llama)
    with pytest.raises(
        SourceError,
        match=(
            rf"has no such revision \({'0' * 40} was asked for\): the commit that was pinned is"
            r" gone"
        ),
    ):
        fetch_file(find_source(f"meta/wide@{'0' * 40}"), "config.json")


def test_revision_that_moved(hub, wide_llama):
    source, other = publish(hub, wide_llama), commit_of("other")
    hub.repos["meta/wide"]["answers"][source.revision] = other
    with pytest.raises(
        SourceError,
        match=f"pinned to {source.revision}, the hub answers with {other}: the revision has moved",
    ):
        fetch_part(source, layer_two, "layer-2")


def test_branch_is_not_a_pin(hub, wide_llama):
    commit = publish(hub, wide_llama).revision
    with pytest.raises(
        SourceError,
        match=(
            "meta/wide@main is not pinned to a commit, so that it may change: give"
            f" meta/wide@{commit}"
        ),
    ):
        fetch_file(find_source("meta/wide@main"), "config.json")


def test_offline_and_no_connection(hub, wide_llama, monkeypatch):
    source = publish(hub, wide_llama)
    hub.close()
    with pytest.raises(
        SourceError,
        match=(
            "no connection to 127.0.0.1:.* check the network and HTTPS_PROXY; or fetch on a machine"
            " that has one"
        ),
    ):
        fetch_file(source, "config.json")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        SourceError,
        match=(
            "not fetched yet, and HF_HUB_OFFLINE is set: unset it and fetch, or copy the weights"
            " folder"
        ),
    ):
        fetch_file(source, "config.json")


def test_two_processes_fetch_once(hub, wide_llama):
    source, children = publish(hub, wide_llama), []
    for _ in range(2):
        if not (pid := os.fork()):
            try:
                os._exit(
                    0 if fetch_part(source, layer_two, "layer-2", lambda _: None).is_dir() else 1
                )
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    assert hub.paths().count("config.json") == 1 and hub.served < 2.41e6
    assert same(
        load_file(fetch_part(source, layer_two, "layer-2") / "model.safetensors"),
        {name: tensor for name, tensor in whole(wide_llama).items() if layer_two(name)},
    )


def test_unwritable_folder_is_named(hub, wide_llama, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MVL_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(
        SourceError, match="file: cannot write there; set MVL_WEIGHTS to a writable folder"
    ):
        fetch_file(publish(hub, wide_llama), "config.json")


def test_nothing_wanted(hub, wide_llama):
    with pytest.raises(
        SourceError, match=r"none of its 39 tensors is wanted \(e.g. lm_head.weight\)"
    ):
        fetch_part(publish(hub, wide_llama), lambda name: False, "none")


def test_every_named_model_is_pinned_and_of_a_known_family():
    assert set(load_sources()) >= {
        "llama-3.1-8b",
        "llama-3.2-1b",
        "deepseek-r1-distill-qwen-1.5b",
        "qwen2.5-0.5b",
        "mistral-7b",
        "gemma-2-2b",
        "biogpt",
        "clinicalbert",
        "biobert",
    }
    for name, source in load_sources().items():
        assert re.fullmatch("[0-9a-f]{40}", source.revision) and source.family in FAMILIES, name
        assert source.hidden and source.layers and source.licence, name
        assert find_source(name) == source and is_hub_source(name)


@pytest.mark.parametrize("name", ["llama-3.1-8", "a/b", "a/b@../../c", "smollm2-135m"])
def test_unknown_names(name):
    with pytest.raises(
        SourceError, match="unknown hub model .*known: llama-3.1-8b, .*or OWNER/NAME@COMMIT"
    ):
        find_source(name)


def test_command_says_what_travels_and_prints_where_it_lies(hub, wide_llama, capsys):
    from mvl.cli.main import main

    words = ["fetch", "weights", "--source", publish(hub, wide_llama).name, "--layer", "-2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert (
        said.out.strip().endswith("layer-2")
        and "layer-2: 2.4 MB of the model's 10.5 MB travel" in said.err
    )
    assert (
        main([*words[:-1], "9"]) == 1
        and "has layers 0 to 3; there is no layer 9" in capsys.readouterr().err
    )
    assert (
        main(["fetch", "weights", "--source", "llama-3.1-8"]) == 1
        and "did you mean 'llama-3.1-8b'" in capsys.readouterr().err
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_and_rows_of_every_family_are_the_checkpoints_own(hub, tiny, family):
    from mvl.weights.sources import load_layer, load_rows

    name, local = publish(hub, tiny(family), f"random/{family}").name, str(tiny(family))
    found, wanted = load_layer(name, 1), load_layer(local, 1)
    assert (
        same(found.layer, wanted.layer)
        and same(found.final_norm, wanted.final_norm)
        and len(wanted.layer) >= 9
    )
    assert torch.equal(load_rows(name, [5, 2, 5]), load_rows(local, [5, 2, 5]))
    manifest = json.loads((source_dir(find_source(name)) / "layer-1" / "manifest.json").read_text())
    assert (
        manifest["bytes"] < 0.5 * manifest["model_bytes"]
        and not (source_dir(find_source(name)) / "layer-2").exists()
    )
