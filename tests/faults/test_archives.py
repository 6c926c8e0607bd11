"""Group B: archives that may hold anything; nothing is written outside the folder, and nothing half
unpacked passes for whole."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mvl.datasets.download import fetch, is_whole
from mvl.datasets.registry import find_task
from mvl.datasets.task import TaskError
from mvl.datasets.task_data import TaskData
from mvl.datasets.unpack import extract
from mvl.datasets.verify import verify
from tests.datasets import test_download as room
from tests.datasets.test_unpack import HOSTILE, archive_of, member
from tests.faults.figures import record_figure

LISTED = [f"B{n}" for n in range(1, 10)]
NOT_HERE: dict[str, str] = {}
server = room.server
DIES = """
import dataclasses, os, sys
from pathlib import Path
from mvl.datasets import download, unpack
from mvl.datasets.registry import find_task
from mvl.datasets.task_data import TaskData
write, count = unpack._write, []
def dies(*words):
    count.append(1)
    if len(count) > 10:
        os.kill(os.getpid(), 9)
    write(*words)
unpack._write = dies
task = dataclasses.replace(find_task("phantoms"), name="Toy", num_cases=12)
task = dataclasses.replace(task, url=sys.argv[1], md5=sys.argv[2])
download.fetch(TaskData(task, Path(sys.argv[3])), progress=False)
"""


@pytest.fixture
def place(request, tmp_path, tree_hash):
    """What a row may ask for; fixtures are made when they are."""
    return SimpleNamespace(root=tmp_path, hash=tree_hash, get=request.getfixturevalue)


def publish(
    place: Any, change: Any = lambda folder: None, keep: Any = lambda info: info
) -> tuple[Any, Path]:
    """The toy task, changed, as an archive on the server; the task and an empty data root."""
    server, folder = place.get("server"), place.get("case_folder")
    (folder / "manifest.json").unlink()
    change(folder)
    with tarfile.open(place.root / "made.tar", "w") as tar:
        tar.add(folder, "Toy", filter=keep)
    server.body = (place.root / "made.tar").read_bytes()
    task = dataclasses.replace(
        find_task("phantoms"), name="Toy", num_cases=12, url=server.url, md5=room.md5(server.body)
    )
    return task, place.root / "fresh"


def confined(place: Any, *names: str) -> None:
    """Archives of `HOSTILE` write nothing, and say which archive, what and what to do."""
    for name in names:
        bad, message = HOSTILE[name]
        archive = archive_of(place.root / f"{name}.tar", member("T/good"), bad)
        before = place.hash(place.root)
        with pytest.raises(
            TaskError, match=rf"{name}.tar: member.* {message}.*nothing was unpacked\. .*[dD]elete"
        ) as told:
            extract(archive, place.root / "out" / "in")
        assert place.hash(place.root) == before and str(archive) in str(told.value)


def bombs(place: Any) -> None:
    zeros = io.BytesIO()
    with tarfile.open(fileobj=zeros, mode="w") as tar:
        info, data = member("T/zeros", bytes(2**24))
        tar.addfile(info, io.BytesIO(data))
    (place.root / "bomb.tar").write_bytes(gzip.compress(zeros.getvalue()))
    liar, _ = member("T/big")
    liar.size = 2**50
    (place.root / "liar.tar").write_bytes(liar.tobuf() + bytes(1024))
    before = place.hash(place.root)
    for name in ("bomb", "liar"):
        with pytest.raises(TaskError, match=rf"{name}.tar.*(delete it and fetch again|free space)"):
            extract(place.root / f"{name}.tar", place.root / "out")
    assert place.hash(place.root) == before


def killed(place: Any) -> None:
    task, root = publish(place)
    done = subprocess.run(
        [sys.executable, "-c", DIES, task.url, task.md5, str(root)], capture_output=True
    )
    assert (
        done.returncode == -9
        and list(root.glob("Toy.partial-*"))
        and not (root / "Toy").exists()
        and not is_whole(TaskData(task, root))
    )
    assert is_whole(TaskData(task, fetch(TaskData(task, root), progress=False).parent))
    assert sorted(path.name for path in root.iterdir()) == [".Toy.lock", "Toy"]


def droppings(place: Any) -> None:
    def change(folder: Path) -> None:
        for name in ("._toy_000.nii.gz", ".DS_Store", "Thumbs.db"):
            (folder / "imagesTr" / name).write_bytes(b"dropping")

    task, root = publish(place, change)
    folder = fetch(TaskData(task, root), progress=False)
    assert len(list((folder / "imagesTr").iterdir())) == 12 == len(TaskData(task, root).cases)


def rotten_member(place: Any) -> None:
    def change(folder: Path) -> None:
        scan = folder / "imagesTr" / "toy_004.nii.gz"
        data = bytearray(scan.read_bytes())
        data[len(data) // 2] ^= 4
        scan.write_bytes(bytes(data))

    task, root = publish(place, change)
    folder = fetch(TaskData(task, root), progress=False)
    findings = verify(TaskData(task, root))
    assert [finding.path for finding in findings] == [
        str(folder / "imagesTr" / "toy_004.nii.gz")
    ] and "fetch Toy" in findings[0].remedy


def leaving_paths(place: Any) -> None:
    def change(folder: Path) -> None:
        listed = json.loads((folder / "dataset.json").read_text())
        listed["training"][0]["image"] = "../../etc/hostname"
        (folder / "dataset.json").write_text(json.dumps(listed))

    task, root = publish(place, change)
    with pytest.raises(
        TaskError,
        match=(
            r"dataset.json: '../../etc/hostname' leaves the folder; do not use this copy, fetch the"
            r" task again"
        ),
    ):
        fetch(TaskData(task, root), progress=False)
    assert not (root / "Toy").exists() and not list(root.glob("*.partial-*"))


def modes(place: Any) -> None:
    confined(place, "fifo", "device")
    extract(
        archive_of(place.root / "modes.tar", member("T/good", mode=0o4777)), place.root / "modes"
    )
    assert (place.root / "modes" / "T" / "good").stat().st_mode & 0o7133 == 0


CHECKS = {
    "B1": lambda place: confined(place, "parent", "absolute", "backslash", "drive"),
    "B2": lambda place: confined(place, "symlink", "hardlink"),
    "B3": modes,
    "B4": bombs,
    "B5": killed,
    "B6": droppings,
    "B7": lambda place: confined(place, "case twin", "twice"),
    "B8": rotten_member,
    "B9": leaving_paths,
}


@pytest.mark.parametrize("row", CHECKS)
def test_archive(row, place):
    CHECKS[row](place)


def test_every_row_is_here():
    assert {*CHECKS, *NOT_HERE} == set(LISTED)


@pytest.mark.faults
def test_hostile_archives_are_counted(place):
    through = archive_of(
        place.root / "through.tar",
        member("T/l", b"", type=tarfile.SYMTYPE, linkname=".."),
        member("T/l/evil"),
    )
    late = archive_of(
        place.root / "late.tar", *[member(f"T/{n}") for n in range(50)], member("../evil")
    )
    cut = place.root / "cut.tar"
    cut.write_bytes(late.read_bytes()[:700])
    rest = [
        through,
        late,
        cut,
        *(
            archive_of(place.root / f"{name}.tar", member("T/good"), bad)
            for name, (bad, _) in HOSTILE.items()
        ),
    ]
    before, contained = place.hash(place.root), 0
    for archive in rest:
        with pytest.raises(TaskError):
            extract(archive, place.root / "inner" / "out")
        contained += not (place.root / "inner" / "out").exists() or not any(
            path.is_file() for path in (place.root / "inner").rglob("*")
        )
    assert contained == len(rest) >= 12 and (
        place.hash(place.root) == before or not (place.root / "evil").exists()
    )
    record_figure(
        "archives",
        contained,
        len(rest),
        "crafted tar archives: paths, links, devices, twins, cut ones",
    )
