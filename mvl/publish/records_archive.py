"""All records of the published studies as one archive with checksums, beside the book's pages."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mvl.core.files import sha256_bytes, sha256_file

NAME = "records.zip"
SUMS = "SHA256SUMS"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"The date of every member, so that the same records give the same bytes."


def write_archive(records: Path, site: Path) -> Path:
    """Write `records.zip` and `records.zip.sha256` into a built site; returns the archive.

    It holds the folder of records without hidden files, and a list of the sha256 of each, which
    `sha256sum -c SHA256SUMS` checks after unpacking.
    """
    files = [
        path
        for path in sorted(records.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    sums = []
    out = site / NAME
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            place = path.relative_to(records).as_posix()
            data = path.read_bytes()
            sums.append(f"{sha256_bytes(data)}  {place}")
            archive.writestr(zipfile.ZipInfo(place, LONG_AGO), data, zipfile.ZIP_DEFLATED)
        archive.writestr(
            zipfile.ZipInfo(SUMS, LONG_AGO), "\n".join(sums) + "\n", zipfile.ZIP_DEFLATED
        )
    out.with_name(f"{NAME}.sha256").write_text(f"{sha256_file(out)}  {NAME}\n")
    return out
