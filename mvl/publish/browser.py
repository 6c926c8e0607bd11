"""One headless Chromium with one page, by Playwright: for the book's checks and the article."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
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
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--allow-file-access-from-files=false",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
"""Names resolve to nothing, so that a page cannot reach the network even where there is one;
SwiftShader draws WebGL without a GPU."""


class BrowserError(MvlError, RuntimeError):
    """There is no Chromium, or it did not answer; the message names the remedy."""


def find_browser() -> str | None:
    """Find a Chromium: `$CHROMIUM`, else the first of the usual names; None where there is none, or
    where Playwright, which drives it, is not installed."""
    if find_spec("playwright") is None:
        return None
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
                " (and `pip install playwright`, which drives it)"
            )
        from playwright.sync_api import Error, sync_playwright

        self.error = Error
        self.said: list[str] = []
        self.playwright = sync_playwright().start()
        try:
            self.chromium = self.playwright.chromium.launch(
                executable_path=path, args=list(FLAGS), timeout=1000 * timeout_s
            )
            self.page = self.chromium.new_page(reduced_motion="reduce")
        except Error as error:
            self.playwright.stop()
            raise BrowserError(f"{path} did not start: {error}") from error
        self.page.set_default_timeout(1000 * timeout_s)
        self.page.on("pageerror", lambda error: self.said.append(f"exception: {error}"))
        self.page.on("console", self._console)
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "assert"):
            self.said.append(f"console: {message.text} {message.location.get('url', '')}".strip())

    def _request(self, request: Any) -> None:
        if leaves(request.url):
            self.said.append(f"request: {request.url}")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.chromium.close()
        self.playwright.stop()

    def show(self, width: int, height: int, dark: bool) -> None:
        """Be a screen of that size, CSS pixels, and colour scheme, for the page that is open and
        the next ones."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        # Styles have followed once two frames are drawn.
        self.evaluate(
            "new Promise(done => { requestAnimationFrame(() => requestAnimationFrame(() =>"
            " done(null))); setTimeout(done, 1000, null); })"
        )

    def open(self, address: str) -> None:
        """Load a page; returns once it is loaded and its formulas are set.

        Raises:
            BrowserError: no such page, or it does not load in time.
        """
        self.said.clear()
        try:
            self.page.goto(address)
        except self.error as error:
            raise BrowserError(f"{address}: {error}") from error
        self.evaluate(
            "(window.MathJax && MathJax.startup && MathJax.startup.promise ||"
            " Promise.resolve()).then(() => null)"
        )

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression on the page, awaited when it is a promise.

        Raises:
            BrowserError: it threw.
        """
        try:
            return self.page.evaluate(script)
        except self.error as error:
            raise BrowserError(str(error)) from error

    def faults(self) -> list[str]:
        """Errors on the console and requests that left the machine, since the page was opened or
        this was asked last."""
        out = list(dict.fromkeys(self.said))
        self.said.clear()
        return out


def leaves(address: str) -> bool:
    """True when a request for the address goes out of the machine."""
    return not address.startswith(
        ("file:", "data:", "blob:", "about:", "chrome:", "http://127.0.0.1", "http://localhost")
    )
