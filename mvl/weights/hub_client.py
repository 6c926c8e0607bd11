"""Speaking with a model hub: addresses, tokens, redirects, byte ranges that go on after a broken
line, and what each refusal means."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from mvl.core.errors import MvlError
from mvl.weights.families import SourceError
from mvl.weights.safetensors_ranges import Span, cut_front

ATTEMPTS = 5
TIMEOUT_S = 30.0
CHUNK = 2**20
HOPS = 8
SMALL_LIMIT = 64_000_000
"Bytes that a config, an index or a tokenizer may have."
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Missing(SourceError):
    """The repository has no such file at this commit."""


class Busy(MvlError, ConnectionError):
    """An answer after which the same request may succeed."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: a redirect arrives as an error, so that each hop chooses its own headers."""


@dataclass(frozen=True)
class Reply:
    """An open answer."""

    status: int
    headers: Message
    body: Any
    "Readable, to be closed."
    hub: Message
    "Headers of the hub's own answer, where a redirect led elsewhere."


@dataclass
class HubClient:
    """One repository on one hub."""

    repo: str
    "owner/name."
    endpoint: str
    token: str | None = field(repr=False)
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
        kinds = {
            64: lambda: hashlib.sha256(data),
            40: lambda: hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False),
        }
        if len(tag) in kinds and (found := kinds[len(tag)]().hexdigest()) != tag:
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
        todo, failures = list(wanted), 0
        while todo:
            try:
                for chunk in self._stream(commit, file, todo):
                    todo = cut_front(todo, len(chunk))
                    yield chunk
            except BROKEN as error:
                failures += 1
                if failures == ATTEMPTS:
                    self._give_up(error, f"{file}, byte {todo[0][0]}")
                time.sleep(min(8.0, 0.5 * 2**failures))

    def read(self, commit: str) -> Callable[[str, int, int], tuple[bytes, int]]:
        """A reader of short spans at a commit, for `read_places`."""
        return lambda file, start, end: (
            b"".join(self.spans(commit, file, [(start, end)])),
            self.sizes[file],
        )

    def address(self, commit: str, file: str) -> str:
        """Where the hub resolves a file."""
        return f"{self.endpoint}/{self.repo}/resolve/{quote(commit, safe='')}/{quote(file)}"

    def open(self, url: str, span: Span | None = None, method: str = "GET") -> Reply:
        """One request and its redirects; the token goes to the hub alone, never to the host that a
        redirect names.

        Raises:
            SourceError: the hub refuses; says why and what to do.
            ConnectionError: worth trying again.
        """
        hub: Message | None = None
        for _ in range(HOPS):
            request = urllib.request.Request(url, method=method, headers=self._headers(url, span))
            try:
                reply = OPENER.open(request, timeout=TIMEOUT_S)
                return Reply(
                    reply.status,
                    reply.headers,
                    reply,
                    reply.headers if self._ours(url) or hub is None else hub,
                )
            except urllib.error.HTTPError as error:
                hub = error.headers if self._ours(url) else hub
                if error.code not in (301, 302, 303, 307, 308) or not error.headers.get("Location"):
                    error.close()
                    raise self.fault(error, url) from error
                if method == "HEAD" and not self._ours(urljoin(url, error.headers["Location"])):
                    return Reply(error.code, error.headers, error, error.headers)
                url = self._next(url, error)
        raise SourceError(
            f"{urlsplit(url).netloc}: more than {HOPS} redirects for {self.repo}; check HF_ENDPOINT"
            " and the proxy"
        )

    def fault(self, error: urllib.error.HTTPError, url: str) -> Exception:
        """What a refusal means, with its remedy; `Busy` where trying again may help."""
        code, name = error.code, error.headers.get("X-Error-Code") or ""
        text = error.headers.get("X-Error-Message") or ""
        expired = not self._ours(url) and code in (401, 403, 404, 410)
        if code in (408, 425, 429) or code >= 500 or expired:
            return Busy(f"HTTP {code} from {urlsplit(url).netloc}")
        page = f"{self.endpoint}/{self.repo}"
        refused = code == 401 and (text.startswith("Invalid") or (self.token and not name))
        known = {
            "GatedRepo": (
                f"is gated: accept its licence at {page}, wait until access is granted, and "
                + (
                    "see that the token belongs to that account and may read gated repositories"
                    if self.token
                    else (
                        "set HF_TOKEN to a read token of that account"
                        f" ({self.endpoint}/settings/tokens), or run `hf auth login`"
                    )
                )
            ),
            "RevisionNotFound": (
                f"has no such revision ({urlsplit(url).path.rpartition('/')[2]} was asked for): the"
                f" commit that was pinned is gone. Choose another from {page}/commits/main and give"
                f" it as {self.repo}@COMMIT"
            ),
            "RepoNotFound": (
                f"is not on {self.endpoint}, or is private: check the name; for a private model "
                + (
                    "use a token whose account may read it"
                    if self.token
                    else "set HF_TOKEN or run `hf auth login`"
                )
            ),
        }
        if refused:
            return SourceError(
                f"{self.repo}: the hub does not accept the token (mistyped, expired or revoked):"
                f" make a new one at {self.endpoint}/settings/tokens and set HF_TOKEN, or take the"
                " token away to read a public model"
            )
        if name == "EntryNotFound":
            return Missing(
                f"{self.repo} has no file"
                f" {urlsplit(url).path.partition('/resolve/')[2].partition('/')[2]}"
            )
        if name in known or code in (401, 404):
            return SourceError(f"{self.repo} {known.get(name, known['RepoNotFound'])}")
        return SourceError(
            f"{self.repo}: {urlsplit(url).netloc} answers HTTP {code} {text or error.reason}; see"
            f" {page}"
        )

    def _headers(self, url: str, span: Span | None) -> dict[str, str]:
        headers = {"User-Agent": "mvl", "Accept-Encoding": "identity"}
        if span:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if self.token and self._ours(url):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def _ours(self, url: str) -> bool:
        return _origin(url) == _origin(self.endpoint)

    def _next(self, url: str, error: urllib.error.HTTPError) -> str:
        error.close()
        target = urljoin(url, error.headers["Location"])
        if urlsplit(target).scheme not in ("https", urlsplit(self.endpoint).scheme):
            raise SourceError(
                f"{self.repo}: {urlsplit(url).netloc} redirects to"
                f" {urlsplit(target).scheme}://{urlsplit(target).netloc}; refused, check"
                " HF_ENDPOINT and the proxy"
            )
        return target

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

    def _retry(self, ask: Callable[[], Any], what: str) -> Any:
        for failures in range(1, ATTEMPTS):
            try:
                return ask()
            except BROKEN:
                time.sleep(min(8.0, 0.5 * 2**failures))
        try:
            return ask()
        except BROKEN as error:
            self._give_up(error, what)

    def _give_up(self, error: Exception, what: str) -> NoReturn:
        """After the last attempt: no way to the host at all, or a line that breaks."""
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


OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
    _NoRedirect,
):
    OPENER.add_handler(_handler())


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


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0),
    )


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
