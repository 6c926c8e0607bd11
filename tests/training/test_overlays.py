"""The outline lies where the mask is, in the scan's true shape, whatever way the scan is stored."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from PIL import Image

from mvl.training import overlays
from mvl.training.overlays import INKS, overlay_png, plane_of_scan

AFFINE = np.diag([1.5, 1.0, 3.0, 1.0])


def picture_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def inked(picture: np.ndarray, which: int) -> np.ndarray:
    ink = [int(INKS[which][i : i + 2], 16) for i in (1, 3, 5)]
    return (picture == ink).all(-1)


def volume() -> tuple[np.ndarray, np.ndarray]:
    """A scan of 20 x 30 x 9 voxels in RAS, and a mask at its right, anterior side in plane 6."""
    scan = np.random.default_rng(0).normal(100, 10, (20, 30, 9)).astype(np.float32)
    mask = np.zeros(scan.shape, np.uint8)
    mask[14:18, 22:27, 6] = 1
    mask[14:16, 22:24, 5] = 2
    return scan, mask


def turned(voxels: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same scan, stored along other axes."""
    turn = nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return apply_orientation(voxels, turn), AFFINE @ inv_ornt_aff(turn, voxels.shape)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "PIR"])
def test_the_same_plane_is_drawn_however_the_scan_is_stored(codes: str) -> None:
    scan, mask = volume()
    (stored, affine), (labels, _) = turned(scan, codes), turned(mask, codes)
    plane, drawn, spacing, index = plane_of_scan(stored, labels, affine)
    axis = next(place for place, code in enumerate(codes) if code in "SI")
    assert np.array_equal(np.take(labels, index, axis).sum(), mask[:, :, 6].sum())
    assert spacing == pytest.approx((1.0, 1.5)) and plane.shape == drawn.shape == (30, 20)
    # anterior is up
    assert np.nonzero(drawn)[0].max() < 15 and set(drawn[drawn > 0]) == {1}
    assert np.array_equal(plane, plane_of_scan(scan, mask, AFFINE)[0])


def test_the_patients_right_is_at_the_left() -> None:
    scan, mask = volume()
    plane, drawn, _, _ = plane_of_scan(scan, mask, AFFINE)
    assert np.nonzero(drawn)[1].max() < 10
    assert plane[0, 0] == scan[-1, -1, 6] and plane[-1, -1] == scan[0, 0, 6]


def test_an_empty_mask_shows_the_middle_plane_without_ink_and_channels_the_first() -> None:
    scan, _ = volume()
    empty = np.zeros(scan.shape, np.uint8)
    plane, drawn, spacing, index = plane_of_scan(np.stack([scan, 0 * scan], -1), empty, AFFINE)
    assert index == 4 and plane.std() > 1 and not drawn.any()
    picture = picture_of(overlay_png(plane, drawn, spacing))
    assert not any(inked(picture, each).any() for each in range(len(INKS)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (37, 5), (700, 900)])
def test_odd_shapes_are_drawn_in_their_proportions_with_the_outline_inside_the_mask(shape) -> None:
    plane = np.random.default_rng(1).normal(size=shape)
    mask = np.ones(shape, np.uint8)
    picture = picture_of(overlay_png(plane, mask))
    height, width = picture.shape[:2]
    assert height * shape[1] == width * shape[0]
    edge = inked(picture, 0)
    assert edge[0].all() and edge[:, -1].all() and edge.sum() <= 4 * (height + width)


def test_each_label_has_its_ink_where_it_lies_and_pixels_that_are_not_square_their_shape() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[4:12, 4:12], mask[24:36, 20:36] = 3, 7
    picture = picture_of(overlay_png(np.zeros((40, 40)), mask, (2.0, 1.0)))
    height, width = picture.shape[:2]
    assert height == 2 * width
    large = np.kron(mask, np.ones((height // 40, width // 40), np.uint8))
    for which, value in enumerate((3, 7)):
        edge = inked(picture, which)
        assert edge.any() and (large[edge] == value).all()
        assert not edge[overlays.ndimage.binary_erosion(large == value, iterations=4)].any()


def test_a_picture_keeps_its_colours_and_words_stand_below_it() -> None:
    red = np.zeros((400, 400, 3))
    red[..., 0] = 200
    picture = picture_of(overlay_png(red, np.zeros((400, 400), np.uint8)))
    assert (picture == [200, 0, 0]).all()
    said = picture_of(overlay_png(red, np.zeros((400, 400), np.uint8), words="axial"))
    assert said.shape[0] > 400 and (said[:400] == picture).all() and said[400:].max() > 200


def test_files_are_drawn_as_they_are_read(tmp_path: Path) -> None:
    scan, mask = volume()
    nibabel.save(nibabel.Nifti1Image(scan, AFFINE), tmp_path / "scan.nii.gz")
    drawn = overlays.drawn_mask(mask, "nifti", tmp_path / "scan.nii.gz", 1)
    plane, labels, spacing, _ = plane_of_scan(scan, mask, AFFINE)
    assert drawn == overlay_png(plane, labels, spacing, "axial, index 6 of the file")
    colours = np.random.default_rng(2).integers(0, 255, (50, 60, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "picture.png")
    for channels in (1, 3):
        found = picture_of(
            overlays.drawn_mask(
                np.zeros((50, 60), np.uint8), "picture", tmp_path / "picture.png", channels
            )
        )
        assert (np.ptp(found.astype(int), axis=-1).max() > 20) == (channels == 3)
