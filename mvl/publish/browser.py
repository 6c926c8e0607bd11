"""A headless Chromium, driven through its DevTools protocol over a pipe: no driver, no package,
nothing but the browser itself."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from mvl.core.errors import MvlError

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--allow-file-access-from-files=false",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-pipe",
)
"""Names resolve to nothing, so that a page cannot reach the network even where there is one;
SwiftShader draws WebGL without a GPU."""
AS_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    " os.execv(sys.argv[3], sys.argv[3:])"
)
"The browser reads commands from file 3 and answers on file 4."


class BrowserError(MvlError, RuntimeError):
    """There is no Chromium, or it did not answer; the message names the remedy."""


def find_browser() -> str | None:
    """Find a Chromium: `$CHROMIUM`, else the first of the usual names; None where there is none."""
    names = (os.environ.get("CHROMIUM", ""), *NAMES)
    return next(filter(None, map(shutil.which, filter(None, names))), None)


class Browser:
    """One Chromium and one page in it; use it in a `with`.

    Raises:
        BrowserError: no Chromium, or it does not answer within `timeout_s`.
    """

    def __init__(self, timeout_s: float = 180.0) -> None:
        path = find_browser()
        if path is None:
            raise BrowserError(
                "no Chromium or Chrome found; install one, or name it by CHROMIUM=/path/to/chrome"
            )
        self.timeout_s, self.number, self.events, self.session = (
            timeout_s,
            0,
            list[dict[str, Any]](),
            "",
        )
        self.scratch = tempfile.TemporaryDirectory(
            prefix="mvl-chromium-", ignore_cleanup_errors=True
        )
        self._start(path)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    def _start(self, path: str) -> None:
        ours, theirs = os.pipe(), os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 30) for end in (theirs[0], ours[1])]
        words = [path, *FLAGS, f"--user-data-dir={self.scratch.name}"]
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", AS_3_AND_4, *map(str, high), *words],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (*high, theirs[0], ours[1]):
            os.close(end)
        self.reads, self.writes, self.buffer = ours[0], theirs[1], b""

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reads)
        os.close(self.writes)
        self.scratch.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result; events that come meanwhile are
        kept in `events`.

        Raises:
            BrowserError: the browser refused the call, or did not answer in time.
        """
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + self.timeout_s
        while (answer := self._receive(end, method)).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message')}")
        return answer["result"]

    def _receive(self, end: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reads], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self.reads, 1 << 20) if ready else b""
            if not data:
                raise BrowserError(
                    f"Chromium {'ended' if ready else 'did not answer'} while waiting for"
                    f" {waiting_for}"
                )
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def show(self, width: int, height: int, dark: bool) -> None:
        """Be a screen of that size, CSS pixels, and colour scheme, for the page that is open and
        the next ones."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                {"name": "prefers-reduced-motion", "value": "reduce"},
            ],
        )
        self.evaluate(
            "new Promise(done => { requestAnimationFrame(() => requestAnimationFrame(() =>"
            " done(null))); setTimeout(done, 1000, null); })"
        )

    def open(self, address: str) -> None:
        """Load a page; returns once it is loaded and its formulas are set.

        Raises:
            BrowserError: no such page, or it does not load in time.
        """
        self.events.clear()
        begun = self.send("Page.navigate", url=address)
        if fault := begun.get("errorText"):
            raise BrowserError(f"{address}: {fault}")
        end, loaded = (
            time.monotonic() + self.timeout_s,
            {
                "name": "load",
                "loaderId": begun.get("loaderId"),
            },
        )
        while not any(
            event.get("method") == "Page.lifecycleEvent"
            and loaded.items() <= event["params"].items()
            for event in self.events
        ):
            self.events.append(self._receive(end, f"the load of {address}"))
        self.evaluate(
            "(window.MathJax && MathJax.startup && MathJax.startup.promise ||"
            " Promise.resolve()).then(() => null)"
        )

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression on the page, awaited when it is a promise.

        Raises:
            BrowserError: it threw.
        """
        done = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if fault := done.get("exceptionDetails"):
            raise BrowserError(f"{fault.get('exception', {}).get('description', fault['text'])}")
        return done["result"].get("value")

    def faults(self) -> list[str]:
        """Errors on the console and requests that left the machine, since the page was opened or
        this was asked last."""
        out, events = list[str](), list(self.events)
        self.events.clear()
        for event in events:
            match event.get("method"), event.get("params", {}):
                case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                    out.append(
                        "exception:"
                        f" {details.get('exception', {}).get('description', details['text'])}"
                    )
                case "Runtime.consoleAPICalled", {"type": "error" | "assert", "args": words}:
                    said = [str(word.get("value", word.get("description"))) for word in words]
                    out.append(f"console: {' '.join(said)}")
                case "Log.entryAdded", {"entry": {"level": "error", "text": text} as entry}:
                    out.append(f"console: {text} {entry.get('url', '')}".strip())
                case "Network.requestWillBeSent", {"request": {"url": address}} if leaves(address):
                    out.append(f"request: {address}")
        return list(dict.fromkeys(out))


def leaves(address: str) -> bool:
    """True when a request for the address goes out of the machine."""
    return not address.startswith(
        ("file:", "data:", "blob:", "about:", "chrome:", "http://127.0.0.1", "http://localhost")
    )
