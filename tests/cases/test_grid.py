"""Working grids: orientation, spacing and size by hand, and the exact way back to the file's own grid."""

from __future__ import annotations

import itertools
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from pydantic import ValidationError

from pipeline.cases.grid import to_source, to_working, working_affine
from pipeline.cases.preprocess import Preprocess, one_orientation
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from pipeline.store.cases import Case
from tests.fixtures.phantoms import disc

RAS = Preprocess(orientation="RAS")
CODES = ["".join(code) for order in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*order)]
"""All 48 orientations."""


def volume(shape: tuple[int, ...], affine: np.ndarray, spacing_mm: tuple[float, ...] | None = None) -> Source:
    edges = nibabel.affines.voxel_sizes(affine).tolist() if spacing_mm is None else spacing_mm
    return Source("v", shape, "v.nii", "l.nii", tuple(edges), tuple(affine.ravel().tolist()))


def case(source: Source, knobs: Preprocess) -> Case:
    grid = knobs.grid(source)
    edges = source.spacing_mm
    return Case(
        "v", 0, "v", "pool", True, grid.shape, grid.spacing_mm, source.shape, edges, source.affine, grid.orientation
    )


def working(shape: tuple[int, ...], source: tuple[int, ...], orientation: tuple[int, ...] | None = None) -> Case:
    return Case("v", 0, "v", "pool", True, shape, None, source, None, None, orientation)


def affine_of(codes: str, shape: tuple[int, ...], edges: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Affine of a grid in this orientation, with the edges of its own axes."""
    ras = np.argsort(axcodes2ornt(codes)[:, 0])
    world = np.diag([*np.array(edges)[ras], 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return world @ inv_ornt_aff(turn, tuple(np.array(shape)[ras]))


# ---- affine of the working grid ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", CODES)
def test_voxels_keep_their_place_when_axes_are_turned(codes: str) -> None:
    """As nibabel turns a volume to RAS."""
    affine = affine_of(codes, (4, 5, 6), (1.0, 2.0, 3.0))
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine))
    assert np.allclose(working_affine(case(volume((4, 5, 6), affine), RAS)), turned.affine)


def test_resampled_grids_share_their_outer_edges() -> None:
    """6 voxels of 1 mm from the left edge at -.5 become 2 of 3 mm: centres at 1 and 4. One of 2 mm becomes 2 of 1 mm:
    its edges at -1 and 1 give centres at -.5 and .5. The second axis is reversed, so voxel 0 is the last."""
    source = (1.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 7.0, 0.0, 0.0, 0.0, 1.0)
    case = Case("v", 0, "v", "pool", True, (2, 2, 1), None, (6, 1, 1), None, source, (1, -2, 3))
    found = working_affine(case)
    assert found is not None
    assert (found @ [0, 0, 0, 1]).tolist() == [1, -0.5, 7, 1]
    assert (found @ [1, 1, 0, 1]).tolist() == [4, 0.5, 7, 1]
    assert working_affine(working((2, 2), (2, 2))) is None


# ---- orientation ------------------------------------------------------------------------------------------------


def test_orientation_by_hand() -> None:
    """Axes down, left, anterior of 2 x 3 x 4 voxels: right is the second reversed, anterior the third, superior the
    first reversed, so 3 x 4 x 2; voxel (0, 0, 1) is the last to the right, second forward and last up: (2, 1, 1)."""
    affine = np.array([[0, -0.5, 0, 0], [0, 0, 3, 0], [-2, 0, 0, 0], [0, 0, 0, 1]])
    source = volume((2, 3, 4), affine)
    assert source.spacing_mm == (2.0, 0.5, 3.0)
    found = case(source, RAS)
    assert found.orientation == (-3, -1, 2)
    assert (found.shape, found.original_shape) == ((3, 4, 2), (2, 3, 4))
    assert found.spacing_mm == (0.5, 3.0, 2.0)
    assert found.resampled
    label = np.zeros((2, 3, 4), np.uint8)
    label[0, 0, 1] = 7
    assert np.argwhere(to_working(label, found)).tolist() == [[2, 1, 1]]


def test_the_canonical_grid_is_as_stored() -> None:
    found = case(volume((2, 3, 4), np.diag([1.0, 2, 3, 1])), RAS)
    assert (found.orientation, found.resampled) == (None, False)
    label = np.zeros((2, 3, 4), np.uint8)
    assert to_working(label, found) is label
    probability = np.zeros((2, 2, 3, 4), np.float32)
    assert to_source(probability, found) is probability


@pytest.mark.parametrize("codes", CODES)
def test_every_orientation_becomes_ras_and_returns_exactly(codes: str) -> None:
    """As nibabel's closest canonical; the round trip is the identity, to the bit."""
    shape, edges = (2, 3, 4), (0.5, 1.0, 3.0)
    affine = affine_of(codes, shape, edges)
    assert "".join(nibabel.aff2axcodes(affine)) == codes
    label = np.arange(24, dtype=np.uint8).reshape(shape)
    found = case(volume(shape, affine), RAS)
    assert found.resampled == (codes != "RAS")
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(label, affine))
    assert np.array_equal(to_working(label, found), np.asarray(canonical.dataobj))
    assert found.spacing_mm == pytest.approx(canonical.header.get_zooms())
    image = Preprocess(orientation="RAS", normalise="unit").image(label[None].astype(np.float32), found)
    assert np.array_equal(np.round(image[0] * 255), to_working(label, found))
    probability = np.stack([label, 255 - label]).astype(np.float32)
    turned = np.stack([to_working(one.astype(np.uint8), found) for one in probability]).astype(np.float32)
    assert np.array_equal(to_source(turned, found), probability)


def test_an_oblique_anisotropic_volume_goes_to_the_nearest_axes() -> None:
    """Turned by 30 degrees about the third axis, whose slices run down: the nearest axes are A, L, I."""
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[s, -c, 0], [c, s, 0], [0, 0, -1]]) @ np.diag([0.5, 0.8, 5.0])
    source = volume((6, 5, 4), affine)
    found = case(source, RAS)
    assert nibabel.aff2axcodes(affine) == ("A", "L", "I")
    assert found.orientation == (2, -1, -3)
    assert found.shape == (5, 6, 4)
    assert found.spacing_mm == pytest.approx((0.8, 0.5, 5.0))
    label = np.arange(120, dtype=np.uint8).reshape(6, 5, 4)
    assert to_working(label, found)[4 - 1, 2, 3 - 3] == label[2, 1, 3]


def test_orientation_and_resizing_together() -> None:
    """LPS, halved: a corner of class 1 at the left, posterior, superior end is at the first, first, last voxels."""
    affine = np.diag([-1.0, -1, 1, 1])
    found = case(volume((8, 8, 8), affine), Preprocess(orientation="RAS", resize=(4, 4, 4)))
    assert (found.orientation, found.spacing_mm) == ((-1, -2, 3), (2.0, 2.0, 2.0))
    label = np.zeros((8, 8, 8), np.uint8)
    label[6:, 6:, 6:] = 1
    small = to_working(label, found)
    assert np.argwhere(small).tolist() == [[0, 0, 3]]
    back = to_source(np.stack([small == 0, small == 1]).astype(np.float32), found)
    assert back.shape == (2, 8, 8, 8)
    assert np.unravel_index(back[1].argmax(), (8, 8, 8)) == (7, 7, 7)
    assert np.allclose(back.sum(axis=0), 1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            Source("v", (4, 4, 4), "v.tif", None),
            "case 'v': expected a volume with an affine .* found 3 axes and no aff",
        ),
        (volume((4, 4), np.eye(4), (1.0, 1.0)), "found 2 axes and an affine; set the knob to null"),
        (volume((4, 4, 4), np.diag([1.0, 1, 0, 1]), (1.0, 1.0, 1.0)), "an affine with three directions, found"),
    ],
)
def test_what_has_no_orientation_is_refused(source: Source, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RAS.grid(source)
    assert Preprocess().grid(source).orientation is None


def test_mixed_orientations_are_refused_as_stored() -> None:
    """Flips and sided classes act on axes, so an axis must mean the same in every volume."""
    ras, lps = volume((4, 4, 4), np.eye(4)), volume((4, 4, 4), np.diag([-1.0, -1, 1, 1]))
    unknown = Source("u", (4, 4, 4), "u.nii", None, (1.0, 1.0, 1.0))
    assert one_orientation([ras, ras]) == "RAS"
    assert one_orientation([lps]) == "LPS"
    assert one_orientation([unknown, unknown]) == "unknown"
    assert one_orientation([volume((4, 4), np.eye(4)), volume((4, 4), np.diag([-1.0, -1, 1, 1]))]) is None
    with pytest.raises(
        BadInput,
        match=r"found RAS \(case 'v'\) and LPS \(case 'v'\); set .*: RAS`, or, for an nnU-Net .* bring all",
    ):
        one_orientation([ras, lps])
    with pytest.raises(BadInput, match=r"found RAS \(case 'v'\) and unknown \(case 'u'\)"):
        one_orientation([ras, unknown])


# ---- spacing and size -------------------------------------------------------------------------------------------


def test_spacing_by_hand() -> None:
    """10 x 12 x 3 voxels of 0.5 x 1 x 5 mm on 1 x 1 x 2 mm: 5, 12 and 7.5 voxels, which is 8; so 15 / 8 mm."""
    source = Source("v", (10, 12, 3), "v.nii", None, (0.5, 1.0, 5.0))
    found = Preprocess(spacing=(1.0, 1.0, 2.0)).grid(source)
    assert found.shape == (5, 12, 8)
    assert found.spacing_mm == (1.0, 1.0, 1.875)
    assert Preprocess(spacing=(100.0, 1.0, 5.0)).grid(source).shape == (1, 12, 3)


def test_spacing_is_of_the_working_axes() -> None:
    """Slices are the first axis as stored, 2 voxels of 3 mm, and the third in RAS: 2 mm there makes 3 slices."""
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    found = Preprocess(orientation="RAS", spacing=(1.0, 1.0, 2.0)).grid(volume((2, 6, 8), affine))
    assert found.orientation == (3, 1, 2)
    assert found.shape == (6, 8, 3)
    assert found.spacing_mm == (1.0, 1.0, 2.0)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=3))
def test_a_grid_keeps_its_extent_and_misses_the_spacing_by_half_a_voxel(axes: list[tuple[int, float, float]]) -> None:
    """Voxels times edge is the extent of the source; the number of voxels is within a half of extent / asked."""
    shape, edges, asked = zip(*axes, strict=True)
    found = Preprocess(spacing=asked).grid(Source("v", shape, "v.nii", None, edges))
    assert found.spacing_mm is not None
    for length, edge, mm, after, spacing in zip(shape, edges, asked, found.shape, found.spacing_mm, strict=True):
        assert after * spacing == pytest.approx(length * edge)
        assert after == 1 or abs(after - length * edge / mm) <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("knobs", "source", "message"),
    [
        ({"resize": (4, 5)}, Source("v", (9, 9, 9), "v.nii", None), r"preprocess.resize: expected 3 axes as case 'v'"),
        (
            {"spacing": (1.0, 1.0)},
            Source("v", (9, 9, 9), "v.nii", None, (1.0, 1.0, 1.0)),
            r"preprocess.spacing: expected 3 axes as case 'v' has, found \[1.0, 1.0\]; give one value per axis",
        ),
        (
            {"spacing": (1.0, 1.0)},
            Source("v", (9, 9), "v.png", None),
            "v.png: case 'v': expected a known spacing for preprocess.spacing, found none; use preprocess.resize",
        ),
    ],
)
def test_grids_that_cannot_be(knobs: Any, source: Source, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Preprocess(**knobs).grid(source)


def test_spacing_and_size_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="both set the working grid; set one to null"):
        Preprocess(spacing=(1.0, 1.0), resize=(4, 4))
    with pytest.raises(ValidationError, match="greater than 0"):
        Preprocess(spacing=(1.0, 0.0))
    assert Preprocess(resize=(4, 5)).grid(Source("v", (9, 9), "v.png", None)).shape == (4, 5)
    assert Preprocess().grid(Source("v", (9, 9), "v.png", None)).shape == (9, 9)


# ---- there and back ---------------------------------------------------------------------------------------------


def test_labels_keep_their_area_and_values_when_resized() -> None:
    """A disc of radius 20 on 64x64 has 1257 pixels, a quarter of them on 32x32; 2 and 255 never mix to other values."""
    label = disc((64, 64), 20) * 2
    label[:8] = 255
    found = to_working(label, working((32, 32), (64, 64)))
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 2, 255}
    assert (found == 2).sum() == pytest.approx((label == 2).sum() / 4, rel=0.03)
    assert (found[:4] == 255).all()
    assert (found == 255).sum() == 4 * 32


@pytest.mark.parametrize("value", [0, 1, 255])
def test_labels_of_one_value_keep_it(value: int) -> None:
    found = to_working(np.full((7, 5, 3), value, np.uint8), working((3, 8, 2), (7, 5, 3)))
    assert found.shape == (3, 8, 2)
    assert (found == value).all()


def test_probability_returns_to_the_original_grid() -> None:
    """On 4 pixels a step from 0 to 1; on 8, linear between the centres: .25 and .75 at the step. Classes sum to 1."""
    step = np.array([0, 0, 1, 1], np.float32)
    small = np.stack([np.broadcast_to(1 - step, (4, 4)), np.broadcast_to(step, (4, 4))]).astype(np.float32)
    found = to_source(small, working((4, 4), (4, 8)))
    assert found.shape == (2, 4, 8)
    assert found.dtype == np.float32
    assert found[1, 0].tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]
    assert np.allclose(found.sum(axis=0), 1)
    assert to_source(small[:, :, :, None].repeat(3, 3), working((4, 4, 3), (8, 4, 3))).shape == (2, 8, 4, 3)


def test_a_disc_survives_the_way_there_and_back() -> None:
    """A working pixel is 2.8 pixels, so grids aligned by corners would move the centroid by 0.9; centres do not."""
    label = disc((90, 60), 18, offset=7)
    there = working((32, 32), label.shape)
    small = to_working(label, there)
    back = to_source(np.stack([small == 0, small == 1]).astype(np.float32), there).argmax(axis=0)
    assert np.abs(np.argwhere(back).mean(axis=0) - np.argwhere(label).mean(axis=0)).max() < 0.25
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.95


def test_arrays_on_another_grid_are_refused() -> None:
    there = working((4, 6), (8, 9))
    with pytest.raises(BadInput, match=r"case 'v': expected \(8, 9\) voxels, the source's grid, found \(4, 6\);"):
        to_working(np.zeros((4, 6), np.uint8), there)
    with pytest.raises(BadInput, match=r"case 'v': expected \(4, 6\) voxels, the working grid, found \(8, 9\);"):
        to_source(np.zeros((2, 8, 9), np.float32), there)
