"""A model hub on this machine: API, resolve with redirects to a storage host on another port,
ranges, refusals, and the ways it may misbehave."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

GOOD = "hf_goodtoken"
STORED = (".safetensors", ".bin", "tokenizer.json")
"Endings of files that lie on the storage host."


def commit_of(*words) -> str:
    """A made-up commit."""
    return hashlib.sha1("/".join(words).encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One answer of either host."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server.hub
        path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
        hub.log.append(
            {
                "host": self.server.role,
                "method": self.command,
                "path": path,
                "range": self.headers.get("Range"),
                "token": self.headers.get("Authorization"),
            }
        )
        if hub.fail and (code := hub.fail.pop(0)):
            return self.refuse(code)
        if self.server.role == "storage":
            return self.send_file(hub.swapped or hub.stored[path.strip("/")], {})
        for old, new in hub.renamed.items():
            if f"/{old}/" in path:
                return self.send_bytes(307, b"", {"Location": self.path.replace(old, new)})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (GOOD, "hf_other"):
            return self.refuse(401, message="Invalid credentials in Authorization header")
        if found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(revision|discussions)(?:/(.+))?", path
        ):
            return self.answer_api(hub.repos.get(found[1]), *found.groups(), query)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            return self.answer_file(hub.repos.get(found[1]), *found.groups(), token)
        return self.refuse(404)

    def answer_api(self, repo, name, kind, revision, query):
        if repo is None:
            return self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        if kind == "discussions":
            page, size = int(query["p"][0]), 2
            rows = repo["discussions"][page * size : (page + 1) * size]
            return self.send_json(
                {"discussions": rows, "count": len(repo["discussions"]), "start": page * size}
            )
        commit = repo["refs"].get(revision, revision)
        if commit not in repo["commits"]:
            return self.refuse(404, "RevisionNotFound")
        return self.send_json(
            {
                "id": name,
                "sha": repo["answers"].get(commit, commit),
                "gated": repo["gated"],
                "siblings": [{"rfilename": file} for file in repo["commits"][commit]],
            }
        )

    def answer_file(self, repo, name, commit, file, token):
        if repo is None:
            return self.refuse(404 if token else 401, "RepoNotFound")
        if repo["gated"] and token != GOOD:
            return self.refuse(
                403 if token else 401, "GatedRepo", "Access to this model is restricted"
            )
        if commit not in repo["commits"]:
            return self.refuse(404, "RevisionNotFound")
        source = repo["commits"][commit].get(file)
        if source is None:
            return self.refuse(404, "EntryNotFound")
        hub, size = self.server.hub, source.stat().st_size
        if not file.endswith(STORED) or hub.direct:
            data = b"" if hub.direct else source.read_bytes()
            tag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            return self.send_file(
                hub.swapped or source,
                {"X-Repo-Commit": commit, **({} if hub.direct else {"ETag": f'W/"{tag}"'})},
            )
        key = f"{commit}-{file}"
        hub.stored[key] = source
        digest = (
            hashlib.sha256(source.read_bytes()).hexdigest() if size < 2**24 else "not looked at"
        )
        headers = {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(size),
            "Location": hub.redirect or f"{hub.storage_url}/{key}",
        }
        return self.send_bytes(302, b"", headers)

    def send_file(self, source: Path, headers):
        hub, size = self.server.hub, source.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if hub.portal:
            return self.send_bytes(
                200, b"<html>please log in</html>", {"Content-Type": "text/html"}
            )
        start, end, code = 0, size, 200
        if asked and not hub.no_range:
            start, end, code = int(asked[1]), min(int(asked[2]) + 1, size), 206
            shift = 1 if hub.shifted and end - start > 1000 else 0
            headers = {
                **headers,
                "Content-Range": f"bytes {start + shift}-{end + shift - 1}/{size}",
            }
        with open(source, "rb") as file:
            file.seek(start)
            return self.send_stream(code, file, end - start, headers)

    def send_stream(self, code, file, count, headers):
        hub = self.server.hub
        self.send_response(code)
        for key, value in {"Content-Length": str(count), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.cuts and count > 1000:
            count = min(count, hub.cuts.pop(0))
        while count and (chunk := file.read(min(2**20, count))):
            hub.served += len(chunk)  # before they leave: whoever has them may ask at once
            self.wfile.write(chunk)
            count -= len(chunk)
        self.close_connection = True

    def send_json(self, value):
        self.send_bytes(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code, error="", message=""):
        self.send_bytes(
            code,
            b"",
            {
                **({"X-Error-Code": error} if error else {}),
                **({"X-Error-Message": message} if message else {}),
            },
        )

    def send_bytes(self, code, data, headers):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.server.hub.served += len(data)
        self.wfile.write(data if self.command == "GET" else b"")

    def log_message(self, *_):
        pass


class HubServer:
    """Both hosts; attributes say how they behave."""

    def __init__(self):
        self.repos, self.stored, self.log, self.served = {}, {}, [], 0
        self.cuts, self.fail, self.redirect = [], [], ""
        self.no_range = self.shifted = self.portal = self.direct = False
        self.renamed, self.swapped = {}, None
        self.servers = [self._start(role) for role in ("hub", "storage")]
        self.url, self.storage_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self.servers
        )

    def _start(self, role):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.hub, server.role, server.handle_error = self, role, lambda *_: None
        threading.Thread(
            target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}
        ).start()
        return server

    def add(self, name: str, folder: Path, gated=False, ref="main") -> str:
        """Publish a folder's files as a new commit of a repository; its hash."""
        repo = self.repos.setdefault(
            name, {"commits": {}, "refs": {}, "answers": {}, "discussions": [], "gated": gated}
        )
        commit = commit_of(name, ref, str(len(repo["commits"])))
        repo["commits"][commit] = {
            path.name: path for path in sorted(folder.iterdir()) if path.is_file()
        }
        repo["refs"][ref] = commit
        return commit

    def propose(
        self,
        name: str,
        folder: Path,
        number=3,
        author="SFconvertbot",
        status="open",
        title="Adding `safetensors` variant of this model",
    ):
        """A pull request with a folder's files."""
        rows = self.repos[name]["discussions"]
        rows.append(
            {
                "num": number,
                "title": title,
                "status": status,
                "isPullRequest": True,
                "author": {"name": author},
            }
        )
        return self.add(name, folder, ref=f"refs/pr/{number}")

    def paths(self, host="hub"):
        """Last part of what was asked of a host, in order."""
        return [entry["path"].rpartition("/")[2] for entry in self.log if entry["host"] == host]

    def close(self):
        """Stop both."""
        for server in self.servers:
            server.shutdown()
            server.server_close()
