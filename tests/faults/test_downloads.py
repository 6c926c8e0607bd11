"""Group A: downloads from servers on this machine that misbehave; what has its final name is whole,
and the message says what to do."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mvl.datasets.download import download, fetch
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData, open_task
from mvl.weights.families import SourceError
from mvl.weights.hub import fetch_file, fetch_layer, find_source
from tests import tiny_checkpoints as models
from tests.datasets import test_download as room

LISTED = [f"A{n}" for n in range(1, 12)]
NOT_HERE: dict[str, str] = {}
server, hub, tiny_llama = room.server, models.hub, models.tiny_llama
COPY = """
import sys
from pathlib import Path
from mvl.datasets import download
download.CHUNK = 1000
download.download(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture
def place(request, tmp_path, tree_hash):
    """What a row may ask for; fixtures are made when they are."""
    return SimpleNamespace(
        root=tmp_path,
        hash=tree_hash,
        get=request.getfixturevalue,
        patch=request.getfixturevalue("monkeypatch"),
    )


def get(server: Any, folder: Path, **more: Any) -> Path:
    """The server's file, as the registry would describe it."""
    return download(server.url, folder / "Toy.tar", room.md5(server.body), **more)


def publish(place: Any) -> tuple[Any, Path]:
    """The toy task as an archive on the server, and an empty data root."""
    server, folder = place.get("server"), place.get("case_folder")
    (folder / "manifest.json").unlink()
    with tarfile.open(place.root / "made.tar", "w") as tar:
        tar.add(folder, "Toy")
    server.body = (place.root / "made.tar").read_bytes()
    task = dataclasses.replace(
        find_task("phantoms"), name="Toy", num_cases=12, url=server.url, md5=room.md5(server.body)
    )
    return task, place.root / "fresh"


def cut_line(place: Any) -> None:
    server = place.get("server")
    server.cuts = [1000] * 5
    said = (
        re.escape(server.url)
        + r": .*after 5000 bytes of 1024000 .*run the same command again to go on"
    )
    with pytest.raises(TaskError, match=said):
        get(server, place.root, size=len(server.body))
    assert [path.name for path in place.root.iterdir()] == ["Toy.tar.part"]
    assert get(server, place.root).read_bytes() == server.body and server.requests[1:5] == [
        f"bytes={n}000-" for n in range(1, 5)
    ]


def killed(place: Any) -> None:
    server = place.get("server")
    server.cuts, part = [500_000] * 5, place.root / "Toy.tar.part"
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COPY,
            server.url,
            str(place.root / "Toy.tar"),
            room.md5(server.body),
        ],
        stderr=subprocess.DEVNULL,
    )
    while not (part.is_file() and part.stat().st_size) and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert part.stat().st_size and not (place.root / "Toy.tar").exists()
    server.cuts, before = [], len(server.requests)
    assert get(server, place.root).read_bytes() == server.body and [
        path.name for path in place.root.iterdir()
    ] == ["Toy.tar"]
    assert server.requests[before].startswith("bytes=")


def flipped(place: Any) -> None:
    server = place.get("server")
    wanted, server.body = room.md5(server.body), bytes([server.body[0] ^ 1]) + server.body[1:]
    before = place.hash(place.root)
    with pytest.raises(
        TaskError,
        match=(
            f"{re.escape(server.url)}: .*md5 {room.md5(server.body)}, expected {wanted}, and was"
            " deleted; fetch again"
        ),
    ):
        download(server.url, place.root / "Toy.tar", wanted)
    assert place.hash(place.root) == before


def portal(place: Any) -> None:
    server = place.get("server")
    server.mode = "portal"
    with pytest.raises(
        TaskError,
        match=(
            r"Toy.tar: expected a tar archive, got text/html \(b'<html>please.*log in to the"
            r" network's portal"
        ),
    ):
        get(server, place.root)
    hub = place.get("hub")
    source, hub.portal = (
        find_source(f"meta/tiny@{hub.add('meta/tiny', place.get('tiny_llama'))}"),
        True,
    )
    with pytest.raises(
        SourceError,
        match=(
            r"meta/tiny: config.json: expected the file, got text/html .*log in to the network's"
            r" portal"
        ),
    ):
        fetch_file(source, "config.json")
    assert not [path for path in place.root.rglob("*") if path.is_file() and path.name != ".lock"]


def no_ranges(place: Any) -> None:
    server = place.get("server")
    server.mode = "no-range"
    (place.root / "Toy.tar.part").write_bytes(b"wrong" * 1000)
    assert get(server, place.root).read_bytes() == server.body and server.requests == [
        "bytes=5000-"
    ]


def seven_bytes(place: Any) -> None:
    server = place.get("server")
    (place.root / "Toy.tar").write_bytes(b"7 bytes")
    assert get(server, place.root).read_bytes() == server.body
    from mvl.datasets.registry import load_tasks

    assert [task.name for task in load_tasks().values() if task.url and not task.md5] == []


def rotted(place: Any) -> None:
    hub = place.get("hub")
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.get('tiny_llama'))}")
    blob = fetch_layer(source, 1) / "model.safetensors"
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    for body in (bytes(data), bytes(data[:1000])):
        blob.write_bytes(body)
        with pytest.raises(
            SourceError,
            match=(
                rf"{re.escape(str(blob))}: absent or changed since it was fetched; delete .* and"
                r" fetch again"
            ),
        ):
            fetch_layer(source, 1)
    from mvl.datasets.verify import verify

    folder = place.get("case_folder")
    scan = folder / "imagesTr" / "toy_003.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-4])
    assert [finding.path for finding in verify(open_task("Toy", folder.parent))] == [str(scan)]


def not_moved(place: Any) -> None:
    server = place.get("server")
    (place.root / "Toy.tar").mkdir()
    (place.root / "Toy.tar" / "in the way").write_bytes(b"")
    with pytest.raises(
        TaskError,
        match=(
            r"/Toy.tar: what arrived is whole but could not be moved .*permissions, then run the"
            r" same command again"
        ),
    ):
        get(server, place.root)
    assert (place.root / "Toy.tar.part").read_bytes() == server.body
    hub = place.get("hub")
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.get('tiny_llama'))}")
    place.patch.setattr(Path, "replace", denied)
    with pytest.raises(
        SourceError,
        match=(
            r"layer-1: what arrived is whole but could not be moved there .*Permission denied.*run"
            r" the same command"
        ),
    ):
        fetch_layer(source, 1)


def denied(*_: Any) -> None:
    """A rename that the system refuses."""
    raise PermissionError(13, "Permission denied")


def refused(place: Any) -> None:
    server, hub, folder = place.get("server"), place.get("hub"), place.get("tiny_llama")
    server.mode = "missing"
    with pytest.raises(
        TaskError, match=r"Toy.tar: .*404.*the address has moved; correct data/registry.toml"
    ):
        get(server, place.root)
    gated = find_source(f"meta/gated@{hub.add('meta/gated', folder, gated=True)}")
    with pytest.raises(SourceError, match=r"is gated: accept its licence at http.*/meta/gated"):
        fetch_file(gated, "config.json") and fetch_layer(gated, 1)
    place.patch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(
        SourceError,
        match=r"does not accept the token \(mistyped, expired or revoked\): make a new one",
    ) as told:
        fetch_file(gated, "tokenizer.json")
    assert "hf_expired" not in str(told.value)
    place.patch.delenv("HF_TOKEN")
    with pytest.raises(
        SourceError, match="the commit that was pinned is gone. Choose another from"
    ):
        fetch_file(find_source(f"meta/gated@{'0' * 40}"), "config.json")


def offline(place: Any) -> None:
    hub = place.get("hub")
    source = find_source(f"meta/tiny@{hub.add('meta/tiny', place.get('tiny_llama'))}")
    place.patch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        SourceError,
        match=(
            "meta/tiny: config.json and the tensors of layer 1 is not fetched yet, and"
            " HF_HUB_OFFLINE is set"
        ),
    ):
        fetch_layer(source, 1)
    assert (
        not [path for path in place.root.rglob("*") if path.is_file() and path.name != ".lock"]
        and not hub.log
    )
    place.patch.delenv("HF_HUB_OFFLINE")
    fetch_layer(source, 1)
    place.patch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.log)
    assert fetch_layer(source, 1).is_dir() and len(hub.log) == asked
    with pytest.raises(SourceError, match="meta/tiny: layer-0 is not fetched yet"):
        fetch_layer(source, 0)


def two_at_once(place: Any) -> None:
    task, root = publish(place)
    found: list[Path] = []
    pair = [
        threading.Thread(target=lambda: found.append(fetch(TaskData(task, root), progress=False)))
        for _ in range(2)
    ]
    [thread.start() for thread in pair]
    [thread.join() for thread in pair]
    assert found == [root / "Toy"] * 2 and place.get("server").requests == [None]
    assert sorted(path.name for path in root.iterdir()) == [".Toy.lock", "Toy"]


CHECKS = {
    "A1": cut_line,
    "A2": killed,
    "A3": flipped,
    "A4": portal,
    "A5": no_ranges,
    "A6": seven_bytes,
    "A7": rotted,
    "A8": not_moved,
    "A9": refused,
    "A10": offline,
    "A11": two_at_once,
}


@pytest.mark.parametrize("row", CHECKS)
def test_download(row, place):
    CHECKS[row](place)


def test_every_row_is_here():
    assert {*CHECKS, *NOT_HERE} == set(LISTED)
