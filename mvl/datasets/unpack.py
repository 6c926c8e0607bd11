"""Unpack a tar that may be anything: every member is looked at before the first is written."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from mvl.datasets.task import TaskError, is_stray


def extract(archive: Path, folder: Path) -> Path:
    """Unpack `archive` into the new `folder`: plain files and folders only, mode 0644, desktop
    droppings left out.

    Raises:
        TaskError: a member would leave the folder, is a link or a device, or comes twice; the
            archive is damaged; or space is short.
            Nothing has been written then, save for an archive that is damaged further on.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            members = [
                member for member in _listed(tar) if not is_stray(PurePosixPath(member.name).name)
            ]
            check_members(members, archive, folder)
            folder.mkdir(parents=True)
            for member in members:
                _write(tar, member, folder)
    except tarfile.TarError as error:
        raise TaskError(
            f"{archive}: damaged or not a tar archive ({error}); delete it and fetch again"
        ) from error
    return folder


def _listed(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Every member; a size that leads nowhere is damage like any other."""
    try:
        return tar.getmembers()
    except (OSError, ValueError, OverflowError) as error:
        raise tarfile.ReadError(f"a member's header is wrong: {error}") from error


def check_members(members: list[tarfile.TarInfo], archive: Path, folder: Path) -> None:
    """Nothing when every member may be written below `folder`.

    Raises:
        TaskError: names the first member that may not, and why.
    """
    seen: dict[str, str] = {}
    for member in members:
        if reason := _refusal(member):
            raise TaskError(
                f"{archive}: member {member.name!r} {reason}; nothing was unpacked. Do not use this"
                " archive, delete it"
            )
        key = str(PurePosixPath(member.name)).casefold()
        if key in seen and not member.isdir():
            raise TaskError(
                f"{archive}: members {seen[key]!r} and {member.name!r} have one name; nothing was"
                " unpacked. Delete the archive"
            )
        seen[key] = member.name
    total, parent = sum(member.size for member in members), folder.parent
    if (free := shutil.disk_usage(parent).free) < total:
        raise TaskError(
            f"{parent}: {total} bytes needed to unpack {archive.name}, {free} free; free space,"
            " then fetch again"
        )


def _refusal(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in member.name
        or ":" in member.name
        or "\0" in member.name
    ):
        return "would leave the folder"
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is neither a plain file nor a folder"
    return None


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    target = folder / PurePosixPath(member.name)
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, member.name
    with source, open(target, "xb") as file:
        shutil.copyfileobj(source, file, 2**20)
    if target.stat().st_size != member.size:
        raise TaskError(
            f"{folder}: member {member.name!r} ends early; delete the archive and fetch again"
        )
