"""Fetching from a server on this machine that misbehaves in every way that servers do."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import subprocess
import sys
import tarfile
import threading

import pytest

from mvl.datasets import download as download_module
from mvl.datasets.download import download, fetch, is_whole
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData
from mvl.datasets.verify import verify


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; `server.mode` says how."""

    def do_GET(self):
        server, body = self.server, self.server.body
        server.requests.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if server.mode == "missing":
            return self.send_error(404)
        if server.mode == "busy" and len(server.requests) < 3:
            return self.send_error(503)
        if server.mode == "portal":
            return self.reply(200, b"<html>please log in</html>", "text/html")
        if start and server.mode != "no-range":
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            return self.reply(
                206, body[start:], content_range=f"bytes {start}-{len(body) - 1}/{len(body)}"
            )
        return self.reply(200, body)

    def reply(self, code, data, kind="application/x-tar", content_range=None):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(data)
        self.wfile.write(data[:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download_module.time, "sleep", lambda _: None)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.handle_error = lambda *_: None  # a client that hangs up early is what some tests are about
    made.mode, made.cuts, made.requests, made.body = "plain", [], [], bytes(range(256)) * 4000
    made.url = f"http://127.0.0.1:{made.server_port}/Toy.tar"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def md5(data):
    return hashlib.md5(data).hexdigest()


def get(server, tmp_path, **more):
    return download(server.url, tmp_path / "Toy.tar", md5(server.body), **more)


def test_download_arrives_whole_and_once(server, tmp_path):
    told = []
    assert (
        get(server, tmp_path, report=lambda done, total: told.append((done, total))).read_bytes()
        == server.body
    )
    assert told[-1] == (len(server.body), len(server.body))
    get(server, tmp_path)
    assert server.requests == [None] and [p.name for p in tmp_path.iterdir()] == ["Toy.tar"]


def test_cut_lines_are_gone_on_with(server, tmp_path):
    server.cuts = [100_000, 200_000, 300_000]
    assert get(server, tmp_path).read_bytes() == server.body
    assert server.requests == [None, "bytes=100000-", "bytes=300000-", "bytes=600000-"]


def test_line_that_always_breaks_keeps_what_came_and_says_so(server, tmp_path):
    server.cuts = [1000] * 5
    with pytest.raises(
        TaskError,
        match=r"Toy.tar: .*after 5000 bytes of 1024000 .*run the same command again to go on",
    ):
        get(server, tmp_path, size=len(server.body))
    assert get(server, tmp_path).read_bytes() == server.body and server.requests[5] == "bytes=5000-"


def test_server_that_ignores_ranges_starts_anew(server, tmp_path):
    server.mode = "no-range"
    (tmp_path / "Toy.tar.part").write_bytes(b"wrong" * 1000)
    assert get(server, tmp_path).read_bytes() == server.body and server.requests == ["bytes=5000-"]


def test_beginning_that_does_not_belong_is_thrown_away(server, tmp_path):
    (tmp_path / "Toy.tar.part").write_bytes(b"wrong" * 1000)
    assert get(server, tmp_path).read_bytes() == server.body and server.requests == [
        "bytes=5000-",
        None,
    ]


def test_complete_and_overlong_beginnings(server, tmp_path):
    for data in (server.body, server.body + b"more"):
        (tmp_path / "Toy.tar.part").write_bytes(data)
        assert get(server, tmp_path).read_bytes() == server.body
        (tmp_path / "Toy.tar").unlink()


def test_wrong_bytes_are_deleted_and_both_sums_shown(server, tmp_path):
    with pytest.raises(TaskError, match=f"has md5 {md5(server.body)}, expected {'0' * 32}"):
        download(server.url, tmp_path / "Toy.tar", "0" * 32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("portal", r"expected a tar archive, got text/html.*please log in"),
        ("missing", "404.*registry.toml"),
    ],
)
def test_wrong_answers_are_named_at_once(server, tmp_path, mode, message):
    server.mode = mode
    with pytest.raises(TaskError, match=message):
        get(server, tmp_path)
    assert len(server.requests) == 1 and not (tmp_path / "Toy.tar").exists()


def test_busy_server_is_asked_again(server, tmp_path):
    server.mode = "busy"
    assert get(server, tmp_path).read_bytes() == server.body and len(server.requests) == 3


def test_other_size_than_registered_and_full_disk_stop_before_the_body(
    server, tmp_path, monkeypatch
):
    with pytest.raises(TaskError, match="offers 1024000 bytes, expected 5"):
        get(server, tmp_path, size=5)
    monkeypatch.setattr(
        download_module.shutil, "disk_usage", lambda _: type("", (), {"free": 10})()
    )
    with pytest.raises(TaskError, match="1024000 bytes needed, 10 free"):
        get(server, tmp_path)


@pytest.fixture
def published(toy, server, tmp_path):
    """The toy task as an archive on the server, and an empty data root."""
    task, root = toy
    (root / "Toy" / "manifest.json").unlink()
    (root / "Toy" / "imagesTr" / "._phantom_000.nii.gz").write_bytes(b"dropping")
    with tarfile.open(tmp_path / "made.tar", "w") as tar:
        tar.add(root / "Toy", "Toy")
    server.body = (tmp_path / "made.tar").read_bytes()
    return dataclasses.replace(task, url=server.url, md5=md5(server.body)), tmp_path / "fresh"


def test_fetch_makes_a_whole_verified_task_and_then_does_nothing(published, server):
    task, root = published
    server.cuts = [200_000]
    folder = fetch(TaskData(task, root), progress=False)
    assert (
        folder == root / "Toy"
        and is_whole(TaskData(task, root))
        and len(TaskData(task, root).cases) == 12
        and verify(TaskData(task, root)) == []
    )
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert len(files) == 24 and sorted(
        p.name for p in root.iterdir() if not p.name.startswith(".")
    ) == ["Toy"]
    asked = len(server.requests)
    assert (
        fetch(TaskData(task, root), progress=False) == folder and len(server.requests) == asked == 2
    )


def test_stopped_extraction_never_passes_for_whole(published, monkeypatch):
    task, root = published
    from mvl.datasets import unpack

    write, count = unpack._write, []

    def dies(tar, info, folder):
        count.append(info)
        if len(count) > 8:
            raise KeyboardInterrupt
        write(tar, info, folder)

    monkeypatch.setattr(unpack, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch(TaskData(task, root), progress=False)
    assert not (root / "Toy").exists() and not is_whole(TaskData(task, root))
    monkeypatch.setattr(unpack, "_write", write)
    (root / "Toy.partial-left-by-sigkill").mkdir()
    assert (
        is_whole(TaskData(task, fetch(TaskData(task, root), progress=False).parent))
        and list(root.glob("*.partial-*")) == []
    )


def test_folder_that_is_there_but_not_whole_is_left_alone(published):
    task, root = published
    (root / "Toy").mkdir(parents=True)
    (root / "Toy" / ".DS_Store").write_bytes(b"x")
    with pytest.raises(TaskError, match=r"not whole.*move it away"):
        fetch(TaskData(task, root), progress=False)
    assert [p.name for p in (root / "Toy").iterdir()] == [".DS_Store"]


def test_archive_that_lacks_a_case_is_refused(published, server, tmp_path):
    task, root = published
    with tarfile.open(tmp_path / "less.tar", "w") as tar:
        tar.add(
            tmp_path / "data" / "Toy",
            "Toy",
            filter=lambda m: None if m.name.endswith("labelsTr/phantom_007.nii.gz") else m,
        )
    server.body = (tmp_path / "less.tar").read_bytes()
    with pytest.raises(TaskError, match=r"12 cases, expected 12, phantom_007.nii.gz is absent"):
        fetch(TaskData(dataclasses.replace(task, md5=md5(server.body)), root), progress=False)
    assert not (root / "Toy").exists()


def test_two_processes_fetch_once(published, server):
    task, root = published
    code = (
        "import dataclasses, sys; from pathlib import Path\nfrom mvl.datasets.registry import"
        " find_task; from mvl.datasets.download import fetch\nfrom mvl.datasets.task_data import"
        " TaskData\ntask ="
        " dataclasses.replace(find_task('phantoms'), name='Toy', num_cases=12, url=sys.argv[1],"
        " md5=sys.argv[2])\nprint(fetch(TaskData(task, Path(sys.argv[3])), progress=False))"
    )
    command = [sys.executable, "-c", code, task.url, task.md5, str(root)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.communicate()[0].strip() for child in children] == [str(root / "Toy")] * 2
    assert server.requests == [None]


def test_read_only_data_that_are_whole_need_no_lock(toy, monkeypatch):
    task, root = toy
    monkeypatch.setattr(download_module, "waiting_lock", lambda _: pytest.fail("wanted to write"))
    assert fetch(TaskData(task, root), progress=False) == root / "Toy"
