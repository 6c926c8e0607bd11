"""Requests to a hub that redirects, refuses, stumbles or lies."""

from __future__ import annotations

import pytest

from mvl.weights import hub_client
from mvl.weights.families import SourceError
from mvl.weights.hub_client import HubClient, connect
from mvl.weights.hub_connection import Missing
from tests.weights.hub_server import GOOD

SHARD = "model-00001-of-00004.safetensors"


@pytest.fixture
def client(hub, wide_llama):
    """A client of a published model; `commit` beside it."""
    made = connect("meta/wide")
    made.commit = hub.add("meta/wide", wide_llama)
    return made


def read(client, *span):
    return b"".join(client.spans(client.commit, SHARD, [span]))


def test_spans_are_the_files_bytes(client, wide_llama, hub):
    data = (wide_llama / SHARD).read_bytes()
    assert (
        b"".join(client.spans(client.commit, SHARD, [(0, 10), (500, 900), (2000, 2001)]))
        == data[:10] + data[500:900] + data[2000:2001]
    )
    assert client.sizes[SHARD] == len(data) and client.received == 411 == hub.served
    assert [entry["range"] for entry in hub.log if entry["host"] == "storage"] == [
        "bytes=0-9",
        "bytes=500-899",
        "bytes=2000-2000",
    ]


def test_a_file_that_the_hub_serves_itself(client, wide_llama, hub):
    hub.direct = True
    assert read(client, 0, 100) == (wide_llama / SHARD).read_bytes()[:100] and not hub.paths(
        "storage"
    )


@pytest.mark.parametrize("codes", [[503], [429, 500, 502], [0, 403], [0, 404, 0, 410]])
def test_busy_servers_and_expired_addresses_are_asked_again(client, wide_llama, hub, codes):
    hub.fail = list(codes)
    assert read(client, 0, 100) == (wide_llama / SHARD).read_bytes()[:100]


def test_a_server_that_stays_busy(client, hub):
    hub.fail = [503] * 5
    with pytest.raises(
        SourceError,
        match=(
            r"byte 0: HTTP 503 from 127.0.0.1:\d+ \(5 attempts\); what came is kept, run the same"
            r" command again"
        ),
    ):
        read(client, 0, 100)


def test_whole_answer_read_past(client, wide_llama, hub):
    hub.no_range, told = True, []
    client.say = told.append
    data = (wide_llama / SHARD).read_bytes()
    hub.cuts = [40_000]
    assert (
        b"".join(client.spans(client.commit, SHARD, [(100, 30_000), (50_000, 60_000)]))
        == data[100:30_000] + data[50_000:60_000]
    )
    assert (
        len(told) == 1
        and f"does not serve byte ranges: all of {SHARD} ({len(data):,} bytes)" in told[0]
    )


def test_wrong_content_range(client, hub):
    hub.shifted = True
    with pytest.raises(
        SourceError,
        match=(
            "asked for bytes 0 to 1999, the server's Content-Range is 'bytes 1-2000/.*a proxy on"
            " the way is at fault"
        ),
    ):
        read(client, 0, 2000)


def test_portal(client, hub):
    hub.portal = True
    with pytest.raises(
        SourceError,
        match="expected the file, got text/html .*please log in.* log in to the network's portal",
    ):
        read(client, 0, 100)
    with pytest.raises(SourceError, match="log in to the network's portal"):
        client.small(client.commit, "config.json")


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_redirects_leave_the_web_nowhere(client, hub, target):
    hub.redirect = target
    with pytest.raises(
        SourceError,
        match=f"redirects to {target.partition(':')[0]}://.*; refused, check HF_ENDPOINT",
    ):
        read(client, 0, 100)


def test_redirects_in_a_circle(client, hub):
    hub.redirect = client.address(client.commit, SHARD)
    with pytest.raises(SourceError, match="more than 8 redirects"):
        read(client, 0, 100)


def test_renamed_repository_keeps_the_token_on_the_hub(client, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", GOOD)
    hub.repos["new/name"] = hub.repos.pop("meta/wide")
    hub.renamed = {"meta/wide": "new/name"}
    mine = connect("meta/wide")
    assert mine.json("/revision/main")["sha"] == client.commit and mine.small(
        client.commit, "config.json"
    ).startswith(b"{")
    assert len(b"".join(mine.spans(client.commit, SHARD, [(0, 8)]))) == 8
    assert {entry["token"] for entry in hub.log if entry["host"] == "hub"} == {f"Bearer {GOOD}"}
    assert {entry["token"] for entry in hub.log if entry["host"] == "storage"} == {None}


def test_small_files_are_checked_against_the_hubs_hash(client, hub, wide_llama, tmp_path):
    assert (
        client.small(client.commit, "tokenizer.json")
        == (wide_llama / "tokenizer.json").read_bytes()
    )
    (tmp_path / "other").write_text("other")
    hub.swapped = tmp_path / "other"
    for file in ("tokenizer.json", "config.json"):
        with pytest.raises(
            SourceError,
            match=(
                f"meta/wide/{file}: what arrived has hash [0-9a-f]+, the hub says [0-9a-f]+; run"
                " the same command"
            ),
        ):
            client.small(client.commit, file)


def test_missing_and_too_large_files(client, monkeypatch):
    with pytest.raises(Missing, match="has no file vocab.json"):
        client.small(client.commit, "vocab.json")
    monkeypatch.setattr(hub_client, "SMALL_LIMIT", 10)
    with pytest.raises(SourceError, match="has more than 10 bytes"):
        client.small(client.commit, "config.json")


def test_hash_without_content(client, hub, wide_llama):
    served = hub.served
    assert (
        len(client.etag(client.commit, SHARD)) == 64
        and len(client.etag(client.commit, "config.json")) == 40
    )
    assert hub.served == served and not hub.paths("storage")


def test_file_that_changes_under_way(client, hub, tmp_path):
    read(client, 0, 8)
    hub.stored[f"{client.commit}-{SHARD}"] = tmp_path / "longer"
    (tmp_path / "longer").write_bytes(b"x" * 9_000_000)
    hub.repos["meta/wide"]["commits"][client.commit][SHARD] = tmp_path / "longer"
    with pytest.raises(SourceError, match="has 9000000 bytes now, .* before; it changed under way"):
        read(client, 8, 16)


def test_token_is_not_shown():
    assert "secret" not in repr(HubClient("a/b", "https://x", "secret"))


def test_address_of_the_hub_must_be_one(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    with pytest.raises(SourceError, match="HF_ENDPOINT is 'huggingface.co', expected https://HOST"):
        connect("meta/wide")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nobody(hub, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        connect("meta/wide")
    assert hub.log == []
