"""Slices of a pair: the way of a volume to the page, the slice that comes first, and intensities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cases.on_page import STORED_UP, case_on_page, on_page
from pipeline.review.views import MOST, View, view_of
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import read_json, write_json
from tests.fixtures.builders import case_store


def seen(
    image: np.ndarray,
    masks: np.ndarray,
    spacing: tuple[float, ...] | None = None,
    orientation: str | None = None,
    files: str | None = "nifti",
) -> View:
    return view_of(image, masks, on_page(spacing or (1.0,) * (image.ndim - 1), orientation, files), False)


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
    view = seen(*corner_volume(), spacing, orientation)
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
    view = seen(*corner_volume(), spacing, orientation)
    assert view.edges == tuple(edges)
    assert view.display.startswith("radiological: ")


@pytest.mark.parametrize("orientation", ["unknown", None])
def test_a_volume_of_unknown_orientation_lies_as_stored(orientation: str | None) -> None:
    """x goes to the right and y up, as in the report."""
    view = seen(*corner_volume(), None, orientation)
    assert bright(orientation, (1, 1, 1)) == (4, 0, 2)
    assert (view.edges, view.display) == (None, STORED_UP)


@pytest.mark.parametrize(
    ("files", "orientation", "place", "edges", "display"),
    [
        ("pictures", None, (1, 2), None, ""),
        ("nifti", None, (1, 1), None, STORED_UP),
        # x goes to the right of the patient and y to the front, so both axes are turned around.
        ("nifti", "RA", (1, 2), "RLAP", "radiological: right of the patient on the left of the page"),
        ("nifti", "LP", (2, 1), "RLAP", "radiological: right of the patient on the left of the page"),
        # A sagittal image, and a coronal one whose first axis goes to the head.
        ("nifti", "PS", (1, 1), "APSI", "radiological: front on the left of the page"),
        ("nifti", "SL", (2, 2), "RLSI", "radiological: right of the patient on the left of the page"),
    ],
)
def test_an_image_of_two_axes_lies_as_its_format_says(
    files: str, orientation: str | None, place: tuple[int, int], edges: str | None, display: str
) -> None:
    """An image of 4 x 4 pixels is bright at [1, 2]: in row 1 of a picture, and at x = 1 and y = 2 of a NIfTI file."""
    image, masks = np.zeros((1, 4, 4), np.float32), np.zeros((2, 4, 4), np.uint8)
    image[0, 1, 2] = masks[0, 1, 2] = 1
    view = seen(image, masks, None, orientation, files)
    assert view.image.argmax() == view.masks[:, :1].argmax() == 4 * place[0] + place[1]
    assert view.edges == (None if edges is None else tuple(edges))
    assert view.display == display


@pytest.mark.parametrize("edges", [(np.float32(1.0000001), 1, 1), (1.001, 1.001, 0.99999998)])
def test_rounded_edges_do_not_choose_the_axis_that_is_cut(edges: tuple[float, ...]) -> None:
    assert on_page(edges, "RAS", "nifti").cut == 2
    assert on_page(edges, None, "pictures").cut == 0


def test_a_stack_of_pictures_is_cut_into_its_pictures() -> None:
    """TIFF stores slice, row and column, and often no spacing."""
    view = seen(*corner_volume(), files="pictures")
    assert view.image.shape == (3, 1, 4, 5)
    assert np.argwhere(view.image == MOST).tolist() == [[2, 0, 3, 4]]


def test_a_case_of_two_axes_has_the_directions_of_its_affine(tmp_path: Path) -> None:
    """x to the left and y to the back, as ITK writes; without an affine, nothing is known."""
    mask = np.zeros((4, 6), np.uint8)
    cases = case_store(tmp_path, [mask], ["pool"])
    write_json(tmp_path / "cases.json", {**read_json(tmp_path / "cases.json"), "files": "nifti"})
    affine = (-1.0, 0, 0, 0, 0, -2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    case = replace(cases.all[0], affine=affine, spacing_mm=(1.0, 2.0))
    page = case_on_page(CaseStore(tmp_path), case)
    assert (page.edges, page.aspect, page.laid(mask[None]).shape) == (tuple("RLAP"), 2.0, (1, 1, 6, 4))
    assert case_on_page(CaseStore(tmp_path), replace(case, affine=None)).display == STORED_UP


def test_the_slice_of_largest_difference_comes_first() -> None:
    """Slices across the last axis: the first mask has 2 voxels in slice 3, and the second has 1 in slice 1."""
    view = seen(*corner_volume())
    assert view.differ == [0, 1, 0, 2, 0]
    assert view.first == 3
    assert view.masks.shape == (5, 2, 4, 3)
    assert view.masks[3, 0].sum() == 2


def test_voxels_have_the_aspect_of_their_spacing() -> None:
    """Across the axis of 3 mm, rows are the second axis (2 mm) and columns the first (1 mm)."""
    assert seen(*corner_volume(), (1, 2, 3), "RAS").aspect == 2
    image, masks = np.zeros((1, 4, 6), np.float32), np.zeros((2, 4, 6), np.uint8)
    assert seen(image, masks, (0.5, 2.0), None, "pictures").aspect == 0.25


def test_numbers_go_back_to_intensities() -> None:
    image = np.stack([np.array([[-1.0, 3.0]]), np.array([[5.0, 5.0]])]).astype(np.float32)
    view = seen(image, np.zeros((2, 1, 2), np.uint8), files="pictures")
    assert view.scale == [(-1.0, 3.0), (5.0, 5.0)]
    assert view.image.tolist() == [[[[0, MOST]], [[0, 0]]]]
    # A constant channel has a window of width 1.
    assert view.window[1] == (5.0, 6.0)


def test_a_small_bright_organ_is_not_all_white() -> None:
    """Four voxels in 10,000 are bright, from 10 to 13: no percentile of the image shows them, those of the mask do."""
    image = np.zeros((1, 100, 100), np.float32)
    image[0, 50, 50:54] = [10, 11, 12, 13]
    masks = np.zeros((2, 100, 100), np.uint8)
    assert seen(image, masks).window == [(0.0, 1.0)]
    masks[0, 50, 50:54] = 1
    assert seen(image, masks).window[0][1] > 12.9


def test_unknown_voxels_are_in_no_difference() -> None:
    masks = np.array([[[0, 1, 1]], [[1, 1, 255]]], np.uint8)
    assert seen(np.zeros((1, 1, 3), np.float32), masks, files="pictures").differ == [1]
