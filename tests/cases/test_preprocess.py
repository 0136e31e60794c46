"""Preprocessing: intensities by hand. Grids and the way back are in `test_grid`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from pipeline.cases.preprocess import FixedRange, Preprocess
from pipeline.errors import BadInput
from pipeline.store.cases import Case


def normalised(image: np.ndarray, how: Any) -> np.ndarray:
    """The image on its own grid."""
    space = image.shape[1:]
    return Preprocess(normalise=how).image(image, Case("c", 0, "c", "pool", True, space, None, space, None, None))


def test_normalisations_by_hand() -> None:
    """0, 0, 2, 2: mean 1, standard deviation 1; minmax halves; unit divides by 255."""
    image = np.array([[[0, 0], [2, 2]]], np.float32)
    assert normalised(image, "zscore").tolist() == [[[-1, -1], [1, 1]]]
    assert normalised(image, "minmax").tolist() == [[[0, 0], [1, 1]]]
    assert normalised(image * 127.5, "unit").tolist() == [[[0, 0], [1, 1]]]


def test_a_fixed_range_by_hand() -> None:
    """-160 to 240 becomes 0 to 1: 40 is the middle, 640 twice as far. Clipped or not; brought to -1 to 1. A constant
    image keeps its place."""
    image = np.array([[[-160, 40], [240, 640]]], np.float32)
    assert normalised(image, FixedRange(range=(-160, 240), clip=False)).tolist() == [[[0, 0.5], [1, 2]]]
    assert normalised(image, FixedRange(range=(-160, 240))).tolist() == [[[0, 0.5], [1, 1]]]
    assert normalised(image, FixedRange(range=(-160, 240), to=(-1, 1))).tolist() == [[[-1, 0], [1, 1]]]
    assert normalised(np.full((1, 2, 2), 40, np.float32), FixedRange(range=(-160, 240))).tolist() == [[[0.5] * 2] * 2]
    with pytest.raises(ValidationError, match=r"expected ranges from low to high, found \[2.0, 2.0\] to \[0.0, 1.0\]"):
        FixedRange(range=(2, 2))


def test_percentiles_bound_an_outlier() -> None:
    """0 to 999 and a million: percentile 99.5 of 1001 values is the 995th, so the outlier counts as 995."""
    image = np.append(np.arange(1000), 1e6).reshape(1, 7, 143).astype(np.float32)
    found = normalised(image, "percentile").ravel()
    assert found[-1] == found[995]
    assert found[-1] < 2
    assert found.mean() == pytest.approx(0, abs=1e-6)


def test_channels_can_be_normalised_differently() -> None:
    image = np.stack([np.eye(2) * 2, np.eye(2) * 255]).astype(np.float32)
    found = normalised(image, ("zscore", "unit"))
    assert found.tolist() == [[[1, -1], [-1, 1]], [[1, 0], [0, 1]]]
    with pytest.raises(BadInput, match="expected 2 entries, one for each channel, found 1"):
        normalised(image, ("zscore",))


def test_unit_refuses_what_is_no_picture() -> None:
    with pytest.raises(BadInput, match="'unit' expected intensities from 0 to 255, found 0 to 256"):
        normalised(np.array([[[0, 256]]], np.float32), "unit")


@given(
    arrays.arrays(np.float32, (1, 3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from(["zscore", "percentile", "minmax"]),
)
def test_normalised_images_are_finite(image: np.ndarray, how: Any) -> None:
    assert np.isfinite(normalised(image, how)).all()


@pytest.mark.parametrize("how", ["zscore", "percentile", "minmax"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_constant_images_become_zero(how: Any, value: float) -> None:
    assert not normalised(np.full((1, 5, 7), value, np.float32), how).any()
