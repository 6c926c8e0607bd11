"""The lock with hashes holds what constraints.txt pins, no more and no less, and nothing without a
hash."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mvl.core.config import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M)


def pins() -> dict[str, str]:
    """Normal name and version of each line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in found}


def test_the_lock_has_the_versions_of_the_constraints_and_all_but_torch() -> None:
    locked = {canonicalize_name(name): version for name, version, _ in ENTRY.findall(LOCK)}
    wanted = pins()
    assert wanted.pop("torch")
    assert locked == wanted


def test_every_line_of_the_lock_is_a_comment_or_belongs_to_an_entry_with_a_hash() -> None:
    rest = ENTRY.sub("", LOCK)
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []


def test_contributing_names_the_version_of_torch_that_the_lock_leaves_out() -> None:
    assert f"torch=={pins()['torch']} --index-url" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_oldest_python_that_is_promised_can_install_every_pinned_version() -> None:
    """Otherwise pip tries other versions for minutes, and then refuses (Debian 12 has 3.11.2)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    refused = []
    for found in importlib.metadata.distributions():
        name, needed = canonicalize_name(found.metadata["Name"]), found.metadata["Requires-Python"]
        pinned = pins().get(name) == found.version
        if pinned and needed and oldest not in SpecifierSet(needed):
            refused.append(f"{name}=={found.version} needs Python {needed}")
    assert refused == []
