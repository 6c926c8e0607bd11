"""As much of a Kubernetes API server as kubectl needs for Jobs: a pod is a process group of this
machine.

Not here: scheduling, volumes, images, limits, replaced pods. What a Job asks for is kept in
`Cluster.asked`; the end of its process is its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

JOBS = "/apis/batch/v1/namespaces/default/jobs"
KIND = {"group": "batch", "version": "v1", "kind": "Job"}
RESOURCE = {
    "name": "jobs",
    "singularName": "job",
    "namespaced": True,
    "kind": "Job",
    "verbs": ["create", "delete", "get", "list"],
}
STRICT = {
    "paths": {
        f"{JOBS}/x": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "x-kubernetes-group-version-kind": KIND,
            }
        }
    }
}
DISCOVERY: dict[str, Any] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "batch",
                "versions": [{"groupVersion": "batch/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "batch/v1", "version": "v1"},
            }
        ],
    },
    "/apis/batch/v1": {
        "kind": "APIResourceList",
        "groupVersion": "batch/v1",
        "resources": [RESOURCE],
    },
    "/openapi/v3": {"paths": {"apis/batch/v1": {"serverRelativeURL": "/openapi/v3/apis/batch/v1"}}},
    "/openapi/v3/apis/batch/v1": STRICT,
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
}


class Cluster(ThreadingHTTPServer):
    """Jobs by name, the processes that stand for their pods, and the manifests that were sent, in
    order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.asked: list[dict[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kubeconfig(self, path: Path) -> Path:
        """Write a configuration of kubectl that names this server."""
        here = {
            "clusters": [
                {"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}
            ],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}],
            "current-context": "here",
        }
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **here}))
        return path

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run what the Job's container would."""
        self.asked.append(job)
        name = job["metadata"]["name"] = f"{job['metadata']['generateName']}{len(self.asked)}"
        self.pods[name] = subprocess.Popen(
            job["spec"]["template"]["spec"]["containers"][0]["command"], start_new_session=True
        )
        self.jobs[name] = job
        return job

    def read(self, name: str) -> dict[str, Any]:
        """The Job with its condition as it stands."""
        code = self.pods[name].poll()
        ended = (
            [] if code is None else [{"type": "Failed" if code else "Complete", "status": "True"}]
        )
        return {**self.jobs[name], "status": {"conditions": ended}}

    def drain(self, name: str) -> None:
        """Send a pod's first process the signal with which a node is emptied."""
        os.kill(self.pods[name].pid, signal.SIGTERM)

    def stop(self) -> None:
        """End what still runs."""
        for pod in self.pods.values():
            if pod.poll() is None:
                os.killpg(pod.pid, signal.SIGKILL)
        self.shutdown()


class Handler(BaseHTTPRequestHandler):
    """Create, read and delete Jobs, and tell a client that it can."""

    server: Cluster
    protocol_version = "HTTP/1.1"

    def answer(self, value: dict[str, Any] | None) -> None:
        body = json.dumps(
            value
            or {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
        ).encode()
        self.send_response(200 if value else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.removeprefix(f"{JOBS}/")
        self.answer(self.server.read(name) if name in self.server.jobs else DISCOVERY.get(path))

    def sent(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def do_POST(self) -> None:
        self.answer(self.server.start(self.sent()))

    def do_DELETE(self) -> None:
        self.sent()
        name = self.path.partition("?")[0].removeprefix(f"{JOBS}/")
        job = self.server.jobs.pop(name, None)
        if job and self.server.pods[name].poll() is None:
            self.server.drain(name)
        self.answer(job and {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def log_message(self, *_: Any) -> None:
        """Say nothing on the terminal."""
