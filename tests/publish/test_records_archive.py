"""The archive of the records: every file, its checksum, the same bytes each time."""

import hashlib
import zipfile

from mvl.publish import records_archive
from mvl.publish.records_archive import write_archive


def test_it_holds_every_record_and_its_checksum_and_nothing_hidden(tmp_path):
    records = tmp_path / "results"
    (records / "study" / "runs").mkdir(parents=True)
    (records / "study" / "runs" / "cases.csv").write_text("a,b\n1,2\n")
    (records / "README.md").write_text("# Results\n")
    (records / ".hidden").write_text("x")
    (tmp_path / "site").mkdir()
    out = write_archive(records, tmp_path / "site")
    first = out.read_bytes()
    said = (tmp_path / "site" / "records.zip.sha256").read_text().split()
    assert said == [hashlib.sha256(first).hexdigest(), "records.zip"]
    with zipfile.ZipFile(out) as archive:
        sums = dict(
            line.split("  ")[::-1]
            for line in archive.read("SHA256SUMS").decode().split("\n")
            if line
        )
        assert set(sums) == {"README.md", "study/runs/cases.csv"}
        assert set(archive.namelist()) == {*sums, "SHA256SUMS"}
        for name, digest in sums.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
    (records / "README.md").touch()
    assert write_archive(records, tmp_path / "site").read_bytes() == first


def test_a_release_is_the_book_and_the_records_with_their_checksums(tmp_path):
    for name in ("site", "records"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "a.txt").write_text(name)
        (tmp_path / name / ".hidden").write_text("no")
    target = tmp_path / "release"
    archives = records_archive.write_release(tmp_path / "site", tmp_path / "records", target)
    assert [path.name for path in archives] == ["book.zip", "records.zip"]
    lines = [line.split("  ") for line in (target / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in lines] == ["book.zip", "records.zip"]
    for (digest, name), content in zip(lines, ("site", "records")):
        assert records_archive.sha256_file(target / name) == digest
        with zipfile.ZipFile(target / name) as archive:
            assert archive.namelist() == ["inner/a.txt", "SHA256SUMS"]
            assert archive.read("inner/a.txt").decode() == content
