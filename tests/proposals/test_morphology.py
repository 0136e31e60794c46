"""Outlines, components and holes of small masks drawn by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from pipeline.proposals.samplers.morphology import filled, moved, without_components
from pipeline.proposals.samplers.sampler import Draw, Setup
from tests.fixtures.builders import rows_of
from tests.fixtures.networks import case_of, sampler_of


def text(mask: np.ndarray) -> list[str]:
    return ["".join("x" if value == 255 else str(value) for value in row) for row in mask.tolist()]


SQUARE = ["00000", "01110", "01110", "01110", "00000"]


@pytest.mark.parametrize(
    ("kind", "radius", "expected"),
    [
        ("erode", 1, ["00000", "00000", "00100", "00000", "00000"]),
        # The corner of the square is 1.41 from the corner of the grid: only the larger radius reaches it.
        ("dilate", 1, ["01110", "11111", "11111", "11111", "01110"]),
        ("dilate", 1.5, ["11111"] * 5),
        ("erode", 2, ["00000"] * 5),
        # Eroded to the middle, which grows back to a plus.
        ("open", 1, ["00000", "00100", "01110", "00100", "00000"]),
        # The space between it and the edge of the image is no gap.
        ("close", 1, SQUARE),
    ],
)
def test_a_square(kind, radius, expected):
    assert text(moved(rows_of(SQUARE), kind, radius)) == expected


def test_opening_removes_what_is_thin_and_closing_fills_what_is_narrow():
    """A spur of one row loses all but the voxel that a ball in the bar reaches. A gap of one column closes."""
    spur = rows_of(["11100", "11111", "11100"])
    assert text(moved(spur, "open", 1)) == ["11100", "11110", "11100"]
    gap = rows_of(["11011", "11011", "11011"])
    assert text(moved(gap, "close", 1)) == ["11111", "11111", "11111"]


def test_the_border_of_the_image_erodes_nothing():
    """An organ that the field of view cuts ends at the image, not at its own surface: one column goes."""
    assert text(moved(rows_of(["1110", "1110"]), "erode", 1)) == ["1100", "1100"]
    assert text(moved(rows_of(["11", "11"]), "erode", 5)) == ["11", "11"]


def test_borders_between_classes_stay_and_new_voxels_take_the_nearest_class():
    """Class 1 left, class 2 right: only the outline moves. The voxel between them is as near to both: the lower one."""
    pair = rows_of(["000000", "011220", "000000"])
    assert text(moved(pair, "dilate", 1)) == ["011220", "111222", "011220"]
    wide = rows_of(["00000000", "11112222", "11112222", "11112222", "00000000"])
    assert text(moved(wide, "erode", 1)) == ["00000000", "00000000", "11112222", "00000000", "00000000"]
    assert text(moved(rows_of(["10002"]), "close", 2)) == ["11122"]


def test_unknown_voxels_stay_and_erode_nothing():
    assert text(moved(rows_of(["0110x0"]), "dilate", 1)) == ["1111x0"]
    assert text(moved(rows_of(["00111xx"]), "erode", 1)) == ["00011xx"]
    assert text(filled(rows_of(["11111", "1x0x1", "11111"]))) == ["11111", "1x1x1", "11111"]


def test_holes():
    """A hole in class 1 takes it; one between 1 and 2 the nearer, of equals the lower; an open bay stays."""
    assert text(filled(rows_of(["111", "101", "111"]))) == ["111"] * 3
    assert text(filled(rows_of(["1122", "1002", "1122"]))) == ["1122"] * 3
    assert text(filled(rows_of(["111", "100", "111"]))) == ["111", "100", "111"]
    # Across an edge background is not enclosed less: faces alone connect it.
    assert text(filled(rows_of(["0110", "1001", "0110"]))) == ["0110", "1111", "0110"]


COMPONENTS = ["1100022", "1100022", "0010002", "0000000", "1011000"]
"""Class 1: 4 + 1 voxels that touch in a corner, 1, and 2; class 2: 5."""


def test_the_largest_component_of_each_class():
    """Of class 1 the one of 5 voxels (corners connect), of class 2 its only one."""
    expected = ["1100022", "1100022", "0010002", "0000000", "0000000"]
    assert text(without_components(rows_of(COMPONENTS), None)) == expected


@pytest.mark.parametrize(
    ("rank", "last"), [(1, "0011000"), (2, "1000000"), (3, "1011000")], ids=["one", "two", "no third"]
)
def test_dropping_components_by_rank(rank, last):
    """Sizes 1 and 2 beside the largest ones of class 1 (5) and class 2 (5), which never go."""
    assert text(without_components(rows_of(COMPONENTS), rank)) == [*COMPONENTS[:-1], last]


def test_a_component_that_goes_leaves_what_surrounds_it():
    """A fragment of class 2 inside class 1 becomes class 1, not a hole; one at the rim becomes what most neighbours
    are: of its 5, three are background."""
    inside = rows_of(["1111100", "1211100", "1111100", "0000022", "0000022"])
    assert text(without_components(inside, None)) == ["1111100", "1111100", "1111100", "0000022", "0000022"]
    rim = rows_of(["1100", "2000", "0022", "0022"])
    assert text(without_components(rim, 1)) == ["1100", "0000", "0022", "0022"]


def test_components_of_equal_size():
    """The first one stays the largest."""
    assert text(without_components(rows_of(["101"]), None)) == ["100"]


@pytest.mark.parametrize("mask", [["000", "000"], ["111", "111"], ["x0x", "0x0"]], ids=["empty", "full", "unknown"])
def test_nothing_to_change(mask):
    case = case_of((2, 3))
    case.keep(Draw(rows_of(mask), "base", "base"))
    sampler = sampler_of("morphology", open=[2], close=[2], drop_component=[1, 2])
    draws = list(sampler.draw("m", case))
    assert {d.setting: text(d.mask) for d in draws} == dict.fromkeys(sampler.settings("m", Setup(2)), mask)


def test_settings_in_order():
    sampler = sampler_of("morphology", erode=[1, 2], dilate=[1.5], open=[1], close=[3], drop_component=[2])
    assert sampler.settings("m", Setup(2)) == [
        "erode=1",
        "erode=2",
        "dilate=1.5",
        "open=1",
        "close=3",
        "largest_component",
        "fill_holes",
        "drop_component=2",
    ]


@pytest.mark.parametrize("bad", [{"erode": [0]}, {"dilate": [-1]}, {"drop_component": [0]}])
def test_knobs_outside_their_range(bad):
    with pytest.raises(ValidationError):
        sampler_of("morphology", **bad)


masks = st.sampled_from([(5, 6), (3, 4, 4)]).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
)


@settings(max_examples=50)
@given(masks, st.sampled_from([1.0, 1.5, 2.0]))
def test_order_of_the_outlines(mask, radius):
    """Eroded within opened within the mask within closed within dilated; 255 and classes that stay are as before."""
    found = [moved(mask, kind, radius) for kind in ("erode", "open")]
    found += [mask, *(moved(mask, kind, radius) for kind in ("close", "dilate"))]
    known = mask != 255
    for smaller, larger in pairwise(found):
        assert ((smaller == 0) | (larger == smaller))[known].all()
        assert (larger == 255).tolist() == (~known).tolist()


@settings(max_examples=50)
@given(masks)
def test_what_components_and_holes_leave_alone(mask):
    """Known voxels stay known, and no class appears that was not there."""
    for out in (without_components(mask, None), filled(mask), without_components(mask, 1)):
        assert ((out == 255) == (mask == 255)).all()
        assert set(np.unique(out)) <= set(np.unique(mask)) | {0}
