"""GitHub's workflows parse, call nothing but make's targets, and publish the book."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from mvl.core.config import ROOT
from mvl.publish.records_archive import RELEASE

FOLDER = ROOT / ".github" / "workflows"
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())


def read(name):
    return yaml.load((FOLDER / name).read_text(), yaml.BaseLoader)  # plain words: `on` stays `on`


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_calls_only_make_targets_that_there_are(path):
    workflow = read(path.name)
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert int(job.get("timeout-minutes", 10)) <= 60 and job["runs-on"] == "ubuntu-latest"
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            made = re.fullmatch(r"make (\w+)(?: [A-Z_]+=\S+)*", step["run"])
            assert made and made[1] in TARGETS, step["run"]
        else:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), "pinned by commit"
            if "checkout" in step["uses"]:
                assert step["with"]["persist-credentials"] == "false"
    [python] = [step["with"] for step in steps(workflow) if "setup-python" in step.get("uses", "")]
    if path.name == "release.yml":
        assert "cache" not in python, "a cache that others can fill must not reach a release"
    else:
        assert python["cache"] == "pip" and (ROOT / python["cache-dependency-path"]).is_file()


def test_the_book_is_built_with_the_scans_and_published():
    workflow = read("book.yml")
    assert [step["run"].split()[1] for step in steps(workflow) if "run" in step] == [
        "setup",
        "data",
        "book",
    ]
    [upload] = [step for step in steps(workflow) if "upload-pages-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == "book/_build/html"
    assert not workflow["permissions"]
    jobs = workflow["jobs"]
    assert jobs["build"]["permissions"] == {"contents": "read", "pages": "read"}
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert workflow["jobs"]["deploy"]["needs"] == "build" and workflow["on"]["push"][
        "branches"
    ] == ["main"]


def test_a_tag_builds_attests_and_keeps_the_archives_and_may_do_nothing_else():
    workflow = read("release.yml")
    assert workflow["on"] == {"push": {"tags": ["v*"]}} and not workflow["permissions"]
    [job] = workflow["jobs"].values()
    assert job["permissions"] == {
        "contents": "read",
        "id-token": "write",
        "attestations": "write",
    }
    made = [step["run"].split()[1] for step in job["steps"] if "run" in step]
    assert made == ["setup", "data", "release"]
    attest, upload = job["steps"][-2:]
    assert "actions/attest-build-provenance@" in attest["uses"]
    folder = RELEASE.relative_to(ROOT).as_posix()
    assert attest["with"]["subject-path"] == f"{folder}/*.zip"
    assert upload["with"]["path"] == folder and "upload-artifact@" in upload["uses"]


def test_an_action_has_one_pin_in_all_workflows():
    pins = {}
    for path in FOLDER.glob("*.yml"):
        for step in steps(read(path.name)):
            if "uses" in step:
                name, _, commit = step["uses"].partition("@")
                assert pins.setdefault(name, commit) == commit, name


def test_ci_runs_everything():
    assert [step["run"].split()[1] for step in steps(read("ci.yml")) if "run" in step] == [
        "setup",
        "smoke",
        "test",
        "book",
        "check",
    ]
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make (\w+)", script, re.M) == ["smoke", "test", "book", "check"]


def test_make_check_covers_the_built_book_and_the_colab_set_up():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert all(
        part in recipe for part in ("ruff check", "mypy", "mvl.publish.book_check", "-m colab")
    )
    assert (
        "fetch Task04_Hippocampus"
        in re.search(r"^data:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    )


def test_an_install_that_waits_says_for_what():
    shown = re.search(r"^SHOWN := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    for line in (
        "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by",
        "INFO: pip is looking at multiple versions of soupsieve to determine which",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)",
        "Installing collected packages: torch",
    ):
        assert re.match(shown, line), line
    assert not re.match(shown, "  Downloading executing-2.3.0-py3-none-any.whl (29 kB)")


@pytest.mark.parametrize(("figures", "check"), [(0, 0), (1, 0), (0, 1)])
def test_make_reproduce_ends_with_the_address_of_the_book_and_fails_when_a_table_does(
    tmp_path, figures, check
):
    """The two tables are some hundred lines long; whoever reads their end needs the address."""
    recipe = re.search(r"^reproduce:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    last = recipe[recipe.index("\t@$(MVL) figures --check") + 2 :]
    (tmp_path / "address").write_text("file:///the/book/index.html\n")
    command = tmp_path / "mvl"
    command.write_text(f'[ "$1" = figures ] && exit {figures}\necho rows; exit {check}\n')
    for name, value in (
        ("$(MVL)", f"bash '{command}'"),
        ("$(REPRODUCED)", f"'{tmp_path / 'address'}'"),
        ("$(RERUN)", "rerun"),
        ("$(STUDY)", "quick"),
        ("$$", "$"),
    ):
        last = last.replace(name, value)
    done = subprocess.run(["bash", "-c", last], capture_output=True, text=True)
    assert bool(done.returncode) is bool(figures or check)
    assert done.stdout.splitlines()[-1].endswith("file:///the/book/index.html")
