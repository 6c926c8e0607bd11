"""What names a person, a machine or a secret is taken out of a text."""

from pathlib import Path

import pytest

from mvl.core.privacy import redact


def test_a_token_and_the_home_folder_never_show(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token-1")
    text = redact(f"{Path.home()}/scans: secret-token-1 and hf_ABCDEFGHIJKL")
    assert "secret-token-1" not in text and "hf_ABC" not in text and str(Path.home()) not in text


def test_of_an_unknown_folder_the_last_part_is_left():
    assert redact("/mnt/hospital/smith/scan.nii.gz") == ".../scan.nii.gz"
    assert "smith" not in redact("cannot read /mnt/hospital/smith/scan.nii.gz here")
