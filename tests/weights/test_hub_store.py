"""A fetch that is cut, killed or short of room goes on where it was."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections import namedtuple

import pytest
from safetensors.torch import load_file

from mvl.weights import hub_client, hub_store
from mvl.weights.families import SourceError
from mvl.weights.hub import fetch_part, find_source, source_dir


def all_of_layer_one(name):
    return name.startswith("model.layers.1.")


@pytest.fixture
def source(hub, wide_llama):
    return find_source(f"meta/wide@{hub.add('meta/wide', wide_llama)}")


def fetched(source):
    return load_file(
        fetch_part(source, all_of_layer_one, "layer-1", lambda _: None) / "model.safetensors"
    )


def tensor_requests(hub):
    """Byte ranges longer than a header that the storage host was asked for."""
    spans = [
        tuple(map(int, entry["range"][6:].split("-")))
        for entry in hub.log
        if entry["host"] == "storage"
    ]
    return [(start, end + 1) for start, end in spans if end - start > 5000]


def right(found, wide_llama):
    wanted = {
        name: tensor
        for shard in wide_llama.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
        if all_of_layer_one(name)
    }
    return set(found) == set(wanted) and all(found[name].equal(wanted[name]) for name in wanted)


def test_cut_line_is_gone_on_with(hub, source, wide_llama):
    hub.cuts = [10**9] * 2 + [100_000, 300_000]  # index and header, then the tensors
    assert right(fetched(source), wide_llama)
    first, second, third = tensor_requests(hub)[:3]
    assert second == (first[0] + 100_000, first[1]) and third == (first[0] + 400_000, first[1])


def test_line_that_always_breaks_says_so_and_keeps_what_came(hub, source, wide_llama):
    hub.cuts = [10**9] * 2 + [100_000] * hub_client.ATTEMPTS
    with pytest.raises(
        SourceError,
        match=(
            r"byte \d+: the line broke .* \(5 attempts\); what came is kept, run the same command"
            r" again to go on"
        ),
    ):
        fetched(source)
    partial = source_dir(source) / ".layer-1.partial"
    assert (
        json.loads((partial / "progress.json").read_text())["bytes"] == 500_000
        and not (source_dir(source) / "layer-1").exists()
    )
    first, asked = tensor_requests(hub)[0], len(tensor_requests(hub))
    assert (
        right(fetched(source), wide_llama)
        and tensor_requests(hub)[asked] == (first[0] + 500_000, first[1])
        and not partial.exists()
    )


def test_killed_fetch_goes_on(hub, source, wide_llama, monkeypatch):
    monkeypatch.setattr(hub_store, "RECORD_EVERY", 200_000)
    monkeypatch.setattr(hub_client, "CHUNK", 50_000)
    if not (pid := os.fork()):
        notes, note = [], hub_store._note

        def and_die(*arguments):
            notes.append(note(*arguments))
            if len(notes) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return notes[-1]

        hub_store._note = and_die
        fetched(source)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    first, asked = tensor_requests(hub)[0], len(tensor_requests(hub))
    assert right(fetched(source), wide_llama) and tensor_requests(hub)[asked] == (
        first[0] + 600_000,
        first[1],
    )


@pytest.mark.parametrize("damage", ["flipped", "shorter", "header", "commit", "no note"])
def test_beginning_that_does_not_fit_is_thrown_away(hub, source, wide_llama, damage):
    hub.cuts = [10**9] * 2 + [100_000] * hub_client.ATTEMPTS
    with pytest.raises(SourceError):
        fetched(source)
    partial = source_dir(source) / ".layer-1.partial"
    path, note, data = (
        partial / "model.safetensors",
        partial / "progress.json",
        bytearray((partial / "model.safetensors").read_bytes()),
    )
    if damage in ("flipped", "header"):
        data[-1 if damage == "flipped" else 20] ^= 1
    path.write_bytes(data[:-1] if damage == "shorter" else data)
    if damage == "commit":
        note.write_text(json.dumps({**json.loads(note.read_text()), "commit": "0" * 40}))
    if damage == "no note":
        note.unlink()
    first, asked = tensor_requests(hub)[0], len(tensor_requests(hub))
    assert right(fetched(source), wide_llama) and tensor_requests(hub)[asked] == first


def test_no_room(hub, source, monkeypatch):
    monkeypatch.setattr(
        hub_store.shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 9, 1)
    )
    with pytest.raises(
        SourceError,
        match=r"\d+ bytes needed, 1 free; free space, or set MVL_WEIGHTS to a folder with room",
    ):
        fetched(source)


def test_disk_that_fills_up_under_way(hub, source, wide_llama, monkeypatch):
    monkeypatch.setattr(hub_client, "CHUNK", 50_000)
    if not (pid := os.fork()):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (320_000, 320_000))
        try:
            fetched(source)
        except SourceError as error:
            message = (
                "model.safetensors: could not be written (File too large); free space, then run the"
                " same command again"
            )
            os._exit(0 if message in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    first, asked = tensor_requests(hub)[0], len(tensor_requests(hub))
    assert right(fetched(source), wide_llama) and tensor_requests(hub)[asked] == (
        first[0] + 300_000,
        first[1],
    )
