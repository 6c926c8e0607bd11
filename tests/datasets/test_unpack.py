"""No member of an archive leaves its folder, and nothing that is not a plain file is written."""

from __future__ import annotations

import io
import tarfile

import pytest

from mvl.datasets.task import TaskError
from mvl.datasets.unpack import extract


def member(name, data=b"x", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive_of(path, *members):
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return path


HOSTILE = {
    "parent": (member("T/../../evil"), "would leave the folder"),
    "absolute": (member("/evil"), "would leave the folder"),
    "backslash": (member("T\\..\\evil"), "would leave the folder"),
    "drive": (member("C:evil"), "would leave the folder"),
    "symlink": (member("T/l", b"", type=tarfile.SYMTYPE, linkname="/etc"), "is a link to '/etc'"),
    "hardlink": (member("T/l", b"", type=tarfile.LNKTYPE, linkname="../x"), "is a link"),
    "fifo": (member("T/f", b"", type=tarfile.FIFOTYPE), "neither a plain file nor a folder"),
    "device": (member("T/d", b"", type=tarfile.CHRTYPE), "neither a plain file nor a folder"),
    "twice": (member("T/good"), "have one name"),
    "case twin": (member("T/GOOD"), "have one name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_write_nothing(tmp_path, name):
    bad, message = HOSTILE[name]
    archive = archive_of(tmp_path / "a.tar", member("T/good"), bad)
    with pytest.raises(TaskError, match=message):
        extract(archive, tmp_path / "out" / "in")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"] or not (tmp_path / "out").exists()


def test_archive_modes_droppings_and_damage(tmp_path, monkeypatch):
    archive = archive_of(
        tmp_path / "a.tar", member("T/good", mode=0o4777), member("T/._good"), member("T/.DS_Store")
    )
    extract(archive, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "T").iterdir()] == ["good"]
    assert (tmp_path / "out" / "T" / "good").stat().st_mode & 0o7133 == 0
    for data in (b"no tar at all" * 100, archive.read_bytes()[:700]):
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(TaskError, match=r"b.tar: (damaged|member)"):
            extract(tmp_path / "b.tar", tmp_path / "out2")
    monkeypatch.setattr(
        "mvl.datasets.unpack.shutil.disk_usage", lambda _: type("", (), {"free": 0})()
    )
    with pytest.raises(TaskError, match=r"1 bytes needed to unpack a\.tar, 0 free"):
        extract(archive, tmp_path / "out3")
