"""Requests to a model hub: redirects, the token's way, and what each refusal means."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import urljoin, urlsplit

from mvl.core.errors import MvlError
from mvl.weights.families import SourceError
from mvl.weights.safetensors_ranges import Span

TIMEOUT_S = 30.0
HOPS = 8


class Missing(SourceError):
    """The repository has no such file at this commit."""


class Busy(MvlError, ConnectionError):
    """An answer after which the same request may succeed."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: a redirect arrives as an error, and each hop chooses its own headers."""


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
class HubConnection:
    """Where one repository of one hub is asked for, and with which token."""

    repo: str
    "owner/name."
    endpoint: str
    token: str | None = field(repr=False)

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
                said = reply.headers if self._ours(url) or hub is None else hub
                return Reply(reply.status, reply.headers, reply, said)
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
        code = error.code
        name = error.headers.get("X-Error-Code") or ""
        text = error.headers.get("X-Error-Message") or ""
        host = urlsplit(url).netloc
        # A redirect's address is good for a while only: the hub gives a new one.
        expired = not self._ours(url) and code in (401, 403, 404, 410)
        if code in (408, 425, 429) or code >= 500 or expired:
            return Busy(f"HTTP {code} from {host}")

        page = f"{self.endpoint}/{self.repo}"
        tokens = f"{self.endpoint}/settings/tokens"
        if code == 401 and (text.startswith("Invalid") or (self.token and not name)):
            return SourceError(
                f"{self.repo}: the hub does not accept the token (mistyped, expired or revoked):"
                f" make a new one at {tokens} and set HF_TOKEN, or take the token away to read a"
                " public model"
            )
        if name == "EntryNotFound":
            file = urlsplit(url).path.partition("/resolve/")[2].partition("/")[2]
            return Missing(f"{self.repo} has no file {file}")
        if name == "GatedRepo":
            remedy = (
                "see that the token belongs to that account and may read gated repositories"
                if self.token
                else f"set HF_TOKEN to a read token of that account ({tokens}), or run `hf auth"
                " login`"
            )
            return SourceError(
                f"{self.repo} is gated: accept its licence at {page}, wait until access is granted,"
                f" and {remedy}"
            )
        if name == "RevisionNotFound":
            asked = urlsplit(url).path.rpartition("/")[2]
            return SourceError(
                f"{self.repo} has no such revision ({asked} was asked for): the commit that was"
                f" pinned is gone. Choose another from {page}/commits/main and give it as"
                f" {self.repo}@COMMIT"
            )
        if name == "RepoNotFound" or code in (401, 404):
            remedy = (
                "use a token whose account may read it"
                if self.token
                else "set HF_TOKEN or run `hf auth login`"
            )
            return SourceError(
                f"{self.repo} is not on {self.endpoint}, or is private: check the name; for a"
                f" private model {remedy}"
            )
        return SourceError(
            f"{self.repo}: {host} answers HTTP {code} {text or error.reason}; see {page}"
        )

    def _headers(self, url: str, span: Span | None) -> dict[str, str]:
        headers = {"User-Agent": "mvl", "Accept-Encoding": "identity"}
        if span:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if self.token and self._ours(url):  # never to the host that a redirect names
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


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0),
    )
