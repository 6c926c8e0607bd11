"""The lock with hashes holds what constraints.txt pins, no more and no less, and nothing without a
hash."""

from __future__ import annotations

import re

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
