"""Files of a repository on a model hub: small ones whole and checked, large ones by byte ranges
that go on after a broken line."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from mvl.weights.families import SourceError
from mvl.weights.hub_connection import HubConnection, Reply
from mvl.weights.safetensors_ranges import Span, cut_front

ATTEMPTS = 5
CHUNK = 2**20
SMALL_LIMIT = 64_000_000
"Bytes that a config, an index or a tokenizer may have."
Answer = TypeVar("Answer")
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass
class HubClient(HubConnection):
    """The files of one repository."""

    received: int = 0
    "Bytes of bodies so far."
    sizes: dict[str, int] = field(default_factory=dict)
    "Bytes of each file that was asked for."
    unranged: set[str] = field(default_factory=set)
    "Files that only come whole."
    say: Callable[[str], Any] = lambda text: None

    def json(self, path: str) -> Any:
        """The JSON under `/api/models/<repo><path>`."""
        url = f"{self.endpoint}/api/models/{self.repo}{path}"
        raw = self._small(url, url)[0]
        try:
            return json.loads(raw)
        except ValueError as error:
            raise SourceError(
                f"{url}: expected JSON, got {raw[:60]!r}; log in to the network's portal, or check"
                " HF_ENDPOINT"
            ) from error

    def small(self, commit: str, file: str) -> bytes:
        """A whole small file, checked against the hash that the hub states for it."""
        data, headers = self._small(self.address(commit, file), file)
        tag = _etag(headers)
        found = ""
        if len(tag) == 64:
            found = hashlib.sha256(data).hexdigest()
        elif len(tag) == 40:  # git's name of a file: sha1 over its length and content
            named = b"blob %d\0" % len(data) + data
            found = hashlib.sha1(named, usedforsecurity=False).hexdigest()
        if found != tag:
            raise SourceError(
                f"{self.repo}/{file}: what arrived has hash {found}, the hub says {tag}; run the"
                " same command again"
            )
        return data

    def etag(self, commit: str, file: str) -> str:
        """The hub's hash of a file, without its content."""

        def ask() -> str:
            reply = self.open(self.address(commit, file), method="HEAD")
            reply.body.close()
            return _etag(reply.hub)

        return self._retry(ask, file)

    def spans(self, commit: str, file: str, wanted: list[Span]) -> Iterator[bytes]:
        """Bytes of ascending spans of a file, one request for each; a broken line is gone on with
        where it broke.

        Raises:
            SourceError: refused, or still broken after several attempts.
        """
        todo = list(wanted)
        failures = 0
        while todo:
            try:
                for chunk in self._stream(commit, file, todo):
                    todo = cut_front(todo, len(chunk))
                    yield chunk
            except BROKEN as error:
                failures += 1
                self._wait_or_give_up(failures, error, f"{file}, byte {todo[0][0]}")

    def read(self, commit: str) -> Callable[[str, int, int], tuple[bytes, int]]:
        """A reader of short spans at a commit, for `read_places`."""
        return lambda file, start, end: (
            b"".join(self.spans(commit, file, [(start, end)])),
            self.sizes[file],
        )

    def address(self, commit: str, file: str) -> str:
        """Where the hub resolves a file."""
        return f"{self.endpoint}/{self.repo}/resolve/{quote(commit, safe='')}/{quote(file)}"

    def _stream(self, commit: str, file: str, todo: list[Span]) -> Iterator[bytes]:
        """The first span's bytes; all spans' where the server sends the whole file, which is read
        past, not kept."""
        reply = self.open(self.address(commit, file), todo[0])
        with reply.body:
            _refuse_html(reply, self.repo, file)
            if reply.status == 206:
                self._note_size(file, self._range_total(reply, file, todo[0]))
                yield from self._exactly(reply.body, todo[0][1] - todo[0][0])
                return
            self._note_size(file, int(reply.headers.get("Content-Length") or 0))
            if file not in self.unranged:
                self.unranged.add(file)
                self.say(
                    f"{urlsplit(self.endpoint).netloc} does not serve byte ranges: all of {file} "
                    f"({self.sizes[file]:,} bytes) travels, only the wanted part is kept"
                )
            at = 0
            for start, end in list(todo):
                for _ in self._exactly(reply.body, start - at):
                    pass
                yield from self._exactly(reply.body, end - start)
                at = end

    def _exactly(self, body: Any, count: int) -> Iterator[bytes]:
        while count:
            chunk = body.read(min(CHUNK, count))
            if not chunk:
                raise ConnectionError(f"the line broke with {count} bytes to come")
            self.received += len(chunk)
            count -= len(chunk)
            yield chunk

    def _range_total(self, reply: Reply, file: str, span: Span) -> int:
        said = reply.headers.get("Content-Range") or ""
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", said.strip())
        if not match or (int(match[1]), int(match[2]) + 1) != span:
            raise SourceError(
                f"{self.repo}/{file}: asked for bytes {span[0]} to {span[1] - 1}, the server's"
                f" Content-Range is {said!r}; a proxy on the way is at fault, use another network"
                " or HF_ENDPOINT"
            )
        return int(match[3] if match[3] != "*" else reply.hub.get("X-Linked-Size") or 0)

    def _note_size(self, file: str, size: int) -> None:
        if self.sizes.setdefault(file, size) != size:
            raise SourceError(
                f"{self.repo}/{file}: has {size} bytes now, {self.sizes[file]} before; it changed"
                " under way, fetch again"
            )

    def _small(self, url: str, what: str) -> tuple[bytes, Message]:
        def ask() -> tuple[bytes, Message]:
            reply = self.open(url)
            with reply.body:
                _refuse_html(reply, self.repo, what)
                data = reply.body.read(SMALL_LIMIT + 1)
            self.received += len(data)
            if len(data) > SMALL_LIMIT:
                raise SourceError(
                    f"{self.repo}: {what} has more than {SMALL_LIMIT} bytes; not what it should be,"
                    f" see {self.endpoint}/{self.repo}"
                )
            if len(data) < int(reply.headers.get("Content-Length") or 0):
                raise ConnectionError(f"the line broke after {len(data)} bytes")
            return data, reply.hub

        return self._retry(ask, what)

    def _retry(self, ask: Callable[[], Answer], what: str) -> Answer:
        failures = 0
        while True:
            try:
                return ask()
            except BROKEN as error:
                failures += 1
                self._wait_or_give_up(failures, error, what)

    def _wait_or_give_up(self, failures: int, error: Exception, what: str) -> None:
        """Wait, longer each time, before the next attempt.

        Raises:
            SourceError: it was the last one: no way to the host at all, or a line that breaks.
        """
        if failures < ATTEMPTS:
            time.sleep(min(8.0, 0.5 * 2**failures))
            return
        reason = getattr(error, "reason", error)
        if isinstance(error, urllib.error.URLError):
            raise SourceError(
                f"no connection to {urlsplit(self.endpoint).netloc} ({reason}): check the network"
                " and HTTPS_PROXY; or fetch on a machine that has one, copy its weights folder"
                " here and set MVL_WEIGHTS to it"
            ) from error
        raise SourceError(
            f"{self.repo}: {what}: {reason} ({ATTEMPTS} attempts); what came is kept, run the same"
            " command again to go on"
        ) from error


def connect(
    repo: str, say: Callable[[str], Any] = lambda text: None, lacking: str = "something of it"
) -> HubClient:
    """A client for `repo` at `HF_ENDPOINT` with the user's token (`HF_TOKEN`, else the token file);
    `lacking`: what it is for.

    Raises:
        SourceError: `HF_HUB_OFFLINE` is set, or the token cannot be one.
    """
    if any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        raise SourceError(
            f"{repo}: {lacking} is not fetched yet, and HF_HUB_OFFLINE is set: unset it and fetch, "
            "or copy the weights folder of a machine that has it here and set MVL_WEIGHTS to it"
        )
    from huggingface_hub import get_token

    token = get_token() or None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise SourceError(
            "HF_TOKEN (or the token file) holds blanks or other signs that no token has; set it"
            " again"
        )
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https"):
        raise SourceError(
            f"HF_ENDPOINT is {endpoint!r}, expected https://HOST; set it right or unset it"
        )
    return HubClient(repo, endpoint, token, say=say)


def _etag(headers: Message) -> str:
    tag = (
        str(headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    )
    return tag if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tag) else ""


def _refuse_html(reply: Reply, repo: str, file: str) -> None:
    if reply.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise SourceError(
            f"{repo}: {file}: expected the file, got {reply.headers.get_content_type()}"
            f" ({reply.body.read(60)!r}); log in to the network's portal, or check HF_ENDPOINT"
        )
