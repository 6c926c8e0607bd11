"""All records of the published studies as one archive with checksums, beside the book's pages; and
what a release carries, the book and the records."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mvl.core.config import ROOT
from mvl.core.files import sha256_bytes, sha256_file
from mvl.core.run_folder import records_dir

NAME = "records.zip"
BOOK = "book.zip"
SUMS = "SHA256SUMS"
RELEASE = ROOT / "book" / "_build" / "release"
"Where `make release` puts the files of a release."
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"The date of every member, so that the same records give the same bytes."


def write_archive(records: Path, site: Path) -> Path:
    """Write `records.zip` and `records.zip.sha256` into a built site; returns the archive."""
    out = zip_folder(records, site / NAME)
    out.with_name(f"{NAME}.sha256").write_text(f"{sha256_file(out)}  {NAME}\n")
    return out


def zip_folder(folder: Path, out: Path) -> Path:
    """Write a folder without hidden files as an archive; returns it.

    It holds a list of the sha256 of each file, which `sha256sum -c SHA256SUMS` checks after
    unpacking. The same files give the same bytes.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    sums = []
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            place = path.relative_to(folder).as_posix()
            data = path.read_bytes()
            sums.append(f"{sha256_bytes(data)}  {place}")
            archive.writestr(zipfile.ZipInfo(place, LONG_AGO), data, zipfile.ZIP_DEFLATED)
        archive.writestr(
            zipfile.ZipInfo(SUMS, LONG_AGO), "\n".join(sums) + "\n", zipfile.ZIP_DEFLATED
        )
    return out


def write_release(site: Path, records: Path, target: Path) -> list[Path]:
    """Write the files of a release into a folder: the built book and the records as archives, and
    their sha256; returns the archives."""
    target.mkdir(parents=True, exist_ok=True)
    archives = [zip_folder(site, target / BOOK), zip_folder(records, target / NAME)]
    lines = [f"{sha256_file(path)}  {path.name}" for path in archives]
    (target / SUMS).write_text("\n".join(lines) + "\n")
    return archives


def main() -> None:
    """Write the release of the published book, which is built already."""
    for path in write_release(ROOT / "book" / "_build" / "html", records_dir(), RELEASE):
        print(path)


if __name__ == "__main__":
    main()
