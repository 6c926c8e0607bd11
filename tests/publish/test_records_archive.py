"""The archive of the records: every file, its checksum, the same bytes each time."""

import hashlib
import zipfile

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
