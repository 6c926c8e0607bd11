"""Bytes become voxels whole or not at all."""

from __future__ import annotations

from contextlib import suppress

import nibabel
import numpy as np

from mvl.datasets.nifti import FileFault, decode, nifti_bytes


def test_flip_of_any_content_bit_fails_the_gzip_checksum():
    raw = bytearray(
        nifti_bytes(np.random.default_rng(0).integers(0, 9, (9, 9, 9)).astype(np.int16), np.eye(4))
    )
    decode(bytes(raw), 1)
    whole, unnoticed = decode(bytes(raw), 1).voxels, []
    for place in range(10, len(raw)):
        raw[place] ^= 4
        with suppress(FileFault):
            unnoticed.append(decode(bytes(raw), 1).voxels)
        raw[place] ^= 4
    assert len(unnoticed) <= 1 and all(np.array_equal(v, whole) for v in unnoticed), (
        "padding bits may flip, voxels not"
    )


def test_big_endian_and_plain_nii_are_read():
    voxels = np.arange(8 * 8 * 8, dtype=np.int16).reshape(8, 8, 8)
    header = nibabel.Nifti1Header(endianness=">")
    file = nibabel.Nifti1Image(voxels, np.eye(4), header)
    assert np.array_equal(decode(file.to_bytes(), 1).voxels, voxels)
