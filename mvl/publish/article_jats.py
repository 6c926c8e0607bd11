"""The article as JATS, the XML of journals and archives, where MyST's tool and Node are found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import yaml

from mvl.core.files import atomic_write
from mvl.publish.cards import read_citation

JATS = "article.xml"
START = "from mystmd_py.main import main; main()"
TIMEOUT_S = 300
HASHED = re.compile(r'xlink:href="files/([\w-]+)-[0-9a-f]{32}\.svg"')
"A figure as the tool copies it; the site has it under its own name."


def has_tool() -> bool:
    """Whether `mystmd` is installed and Node is there, which the tool would offer to fetch from the
    network."""
    return find_spec("mystmd_py") is not None and shutil.which("node") is not None


def write_jats(text: str, figures: Path, site: Path) -> Path | None:
    """Write an article in Markdown as `article.xml` into a built site, which has its figures; None,
    with a word on stderr, where the tool is not found or fails."""
    if not has_tool():
        print(f"[book] no package mystmd or no Node: the book has no {JATS}", file=sys.stderr)
        return None
    authors = [{"name": _name(author)} for author in read_citation()["authors"]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = {"version": 1, "project": {"license": "MIT", "authors": authors}}
        (folder / "myst.yml").write_text(yaml.safe_dump(settings))
        # what only the page has: the place of the link to its PDF
        (folder / "article.md").write_text(re.sub(r"</?span[^>]*>", "", text))
        for name in re.findall(r"\]\(([\w-]+\.svg)\)", text):
            shutil.copy(figures / name, folder)
        command = [sys.executable, "-c", START, "build", "article.md", "--jats"]
        try:
            subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_S)
            made = (folder / "_build" / "exports" / JATS).read_text(encoding="utf-8")
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"[book] myst made no {JATS}: {error}", file=sys.stderr)
            return None
    out = site / JATS
    atomic_write(out, HASHED.sub(r'xlink:href="\1.svg"', made))
    return out


def _name(author: dict[str, str]) -> str:
    return author.get("name") or f"{author['given-names']} {author['family-names']}"
