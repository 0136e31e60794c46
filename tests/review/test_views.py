"""Slices of a pair: the way of a volume to the page, the slice that comes first, and intensities."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.review.views import MOST, STORED, view_of


def corner_volume() -> tuple[np.ndarray, np.ndarray]:
    """A volume of 3 x 4 x 5 voxels that is bright at its right, anterior, superior corner if it is RAS."""
    image = np.zeros((1, 3, 4, 5), np.float32)
    image[0, 2, 3, 4] = 1
    masks = np.zeros((2, 3, 4, 5), np.uint8)
    masks[0, 1, 1:3, 3] = 1
    masks[1, 1, 1, 1] = 1
    return image, masks


def bright(orientation: str | None, spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Slice, row and column of the bright voxel on the page."""
    view = view_of(*corner_volume(), spacing, orientation, False)
    slice_, channel, row, column = np.argwhere(view.image == MOST)[0].tolist()
    assert channel == 0
    return slice_, row, column


@pytest.mark.parametrize(
    ("orientation", "spacing", "place", "edges"),
    [
        # Axial: front at the top, and the patient's right on the left.
        ("RAS", (1, 1, 3), (4, 0, 0), "RLAP"),
        # The same volume, read as if the first axis went to the left and the second to the back.
        ("LPS", (1, 1, 3), (4, 3, 2), "RLAP"),
        # Coronal: head at the top, and the patient's right on the left.
        ("RAS", (1, 3, 1), (3, 0, 0), "RLSI"),
        # Sagittal: head at the top, and the front on the left.
        ("RAS", (3, 1, 1), (2, 0, 0), "APSI"),
        # Axes in another order: superior, right, anterior. Slices go across the first.
        ("SRA", (3, 1, 1), (2, 0, 0), "RLAP"),
    ],
)
def test_a_volume_lies_as_radiologists_look_at_it(
    orientation: str, spacing: tuple[float, ...], place: tuple[int, ...], edges: str
) -> None:
    assert bright(orientation, spacing) == place
    view = view_of(*corner_volume(), spacing, orientation, False)
    assert view.edges == tuple(edges)
    assert view.display.startswith("radiological: ")


@pytest.mark.parametrize("orientation", ["unknown", None])
def test_a_volume_of_unknown_orientation_lies_as_stored(orientation: str | None) -> None:
    """x goes to the right and y up, as in the report."""
    view = view_of(*corner_volume(), None, orientation, False)
    assert bright(orientation, (1, 1, 1)) == (4, 0, 2)
    assert (view.edges, view.display) == (None, STORED)


def test_the_slice_of_largest_difference_comes_first() -> None:
    """Slices across the last axis: the first mask has 2 voxels in slice 3, and the second has 1 in slice 1."""
    view = view_of(*corner_volume(), None, None, False)
    assert view.differ == [0, 1, 0, 2, 0]
    assert view.first == 3
    assert view.masks.shape == (5, 2, 4, 3)
    assert view.masks[3, 0].sum() == 2


def test_voxels_have_the_aspect_of_their_spacing() -> None:
    """Across the axis of 3 mm, rows are the second axis (2 mm) and columns the first (1 mm)."""
    assert view_of(*corner_volume(), (1, 2, 3), "RAS", False).aspect == 2
    image, masks = np.zeros((1, 4, 6), np.float32), np.zeros((2, 4, 6), np.uint8)
    assert view_of(image, masks, (0.5, 2.0), None, False).aspect == 0.25


def test_numbers_go_back_to_intensities() -> None:
    image = np.stack([np.array([[-1.0, 3.0]]), np.array([[5.0, 5.0]])]).astype(np.float32)
    view = view_of(image, np.zeros((2, 1, 2), np.uint8), None, None, False)
    assert view.scale == [(-1.0, 3.0), (5.0, 5.0)]
    assert view.image.tolist() == [[[[0, MOST]], [[0, 0]]]]
    # A constant channel has a window of width 1.
    assert view.window[1] == (5.0, 6.0)


def test_a_small_bright_organ_is_not_all_white() -> None:
    """Four voxels in 10,000 are bright, from 10 to 13: no percentile of the image shows them, those of the mask do."""
    image = np.zeros((1, 100, 100), np.float32)
    image[0, 50, 50:54] = [10, 11, 12, 13]
    masks = np.zeros((2, 100, 100), np.uint8)
    assert view_of(image, masks, None, None, False).window == [(0.0, 1.0)]
    masks[0, 50, 50:54] = 1
    assert view_of(image, masks, None, None, False).window[0][1] > 12.9


def test_unknown_voxels_are_in_no_difference() -> None:
    masks = np.array([[[0, 1, 1]], [[1, 1, 255]]], np.uint8)
    assert view_of(np.zeros((1, 1, 3), np.float32), masks, None, None, False).differ == [1]
