"""The browser: what a page logs, asks and shows comes back, on the screen and in the colours
that were asked for."""

from __future__ import annotations

import pytest

from mvl.publish.browser import Browser, BrowserError, find_browser, leaves

needs_chromium = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome")


@pytest.mark.parametrize(
    ("address", "out"),
    [
        ("file:///a.html", False),
        ("data:text/css,", False),
        ("http://127.0.0.1:8000/", False),
        ("https://cdn.example/x.js", True),
        ("http://x.example", True),
        ("ws://x.example", True),
    ],
)
def test_what_leaves_the_machine(address, out):
    assert leaves(address) is out


def test_no_browser_is_an_error_that_names_the_remedy(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert find_browser() is None
    with pytest.raises(BrowserError, match="CHROMIUM="):
        Browser()


def test_the_environment_names_a_browser(monkeypatch, tmp_path):
    own = tmp_path / "my-chrome"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CHROMIUM", str(own))
    assert find_browser() == str(own)
    own.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BrowserError, match="did not start"):
        Browser()


@needs_chromium
def test_a_page_is_seen_as_on_a_phone_in_the_dark(tmp_path):
    (tmp_path / "good.html").write_text(
        "<!doctype html><html lang=en><title>t</title><p>fine</p></html>"
    )
    (tmp_path / "bad.html").write_text(
        "<!doctype html><html lang=en><title>t</title><div"
        " style='width:700px'>x</div><script>console.error('lost', 7);"
        " fetch('https://cdn.example/a.js').catch(() => 0); throw new"
        " Error('broken')</script></html>"
    )
    with Browser() as browser:
        browser.show(390, 844, True)
        browser.open((tmp_path / "bad.html").as_uri())
        assert browser.evaluate(
            "[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]"
        ) == [390, True]
        faults = browser.faults()
        assert any("lost 7" in fault for fault in faults) and any(
            "broken" in fault for fault in faults
        )
        assert "request: https://cdn.example/a.js" in faults
        with pytest.raises(BrowserError, match="nothing"):
            browser.evaluate("nothing.there")
        browser.open((tmp_path / "good.html").as_uri())
        browser.show(1440, 900, False)
        assert browser.evaluate(
            "Promise.resolve([innerWidth, matchMedia('(prefers-color-scheme: dark)').matches])"
        ) == [1440, False]
        assert browser.faults() == []
