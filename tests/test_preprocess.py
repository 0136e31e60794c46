"""Preprocessing: intensities and grids by hand, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.cases.preprocess import Preprocess, restore_probability
from pipeline.errors import BadInput
from tests.phantoms import disc


def test_normalisations_by_hand() -> None:
    """0, 0, 2, 2: mean 1, standard deviation 1; minmax halves; unit divides by 255."""
    image = np.array([[[0, 0], [2, 2]]], np.float32)
    assert Preprocess(normalise="zscore").image(image).tolist() == [[[-1, -1], [1, 1]]]
    assert Preprocess(normalise="minmax").image(image).tolist() == [[[0, 0], [1, 1]]]
    assert Preprocess(normalise="unit").image(image * 127.5).tolist() == [[[0, 0], [1, 1]]]


def test_percentiles_bound_an_outlier() -> None:
    """0 to 999 and a million: percentile 99.5 of 1001 values is the 995th, so the outlier counts as 995."""
    image = np.append(np.arange(1000), 1e6).reshape(1, 7, 143).astype(np.float32)
    found = Preprocess(normalise="percentile").image(image).ravel()
    assert found[-1] == found[995]
    assert found[-1] < 2
    assert found.mean() == pytest.approx(0, abs=1e-6)


def test_channels_can_be_normalised_differently() -> None:
    image = np.stack([np.eye(2) * 2, np.eye(2) * 255]).astype(np.float32)
    found = Preprocess(normalise=("zscore", "unit")).image(image)
    assert found.tolist() == [[[1, -1], [-1, 1]], [[1, 0], [0, 1]]]
    with pytest.raises(BadInput, match="expected 2 entries, one for each channel, found 1"):
        Preprocess(normalise=("zscore",)).image(image)


def test_unit_refuses_what_is_no_picture() -> None:
    with pytest.raises(BadInput, match="'unit' expected intensities from 0 to 255, found 0 to 256"):
        Preprocess(normalise="unit").image(np.array([[[0, 256]]], np.float32))


@given(
    arrays.arrays(np.float32, (1, 3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from(["zscore", "percentile", "minmax"]),
)
def test_normalised_images_are_finite(image: np.ndarray, how: Any) -> None:
    assert np.isfinite(Preprocess(normalise=how).image(image)).all()


@pytest.mark.parametrize("how", ["zscore", "percentile", "minmax"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_constant_images_become_zero(how: Any, value: float) -> None:
    assert not Preprocess(normalise=how).image(np.full((1, 5, 7), value, np.float32)).any()


def test_the_working_grid_has_the_axes_of_the_cases() -> None:
    assert Preprocess(resize=(4, 5)).working_shape((9, 9)) == (4, 5)
    assert Preprocess().working_shape((9, 9)) == (9, 9)
    with pytest.raises(BadInput, match=r"preprocess.resize: expected 3 axes as the cases have, found \[4, 5\]"):
        Preprocess(resize=(4, 5)).working_shape((9, 9, 9))


def test_labels_keep_their_area_and_values_when_resized() -> None:
    """A disc of radius 20 on 64x64 has 1257 pixels, a quarter of them on 32x32; 2 and 255 never mix to other values."""
    label = disc((64, 64), 20) * 2
    label[:8] = 255
    found = Preprocess(resize=(32, 32)).label(label)
    assert set(np.unique(found)) == {0, 2, 255}
    assert (found == 2).sum() == pytest.approx((label == 2).sum() / 4, rel=0.03)
    assert (found[:4] == 255).all()
    assert (found == 255).sum() == 4 * 32


def test_probability_returns_to_the_original_grid() -> None:
    """On 4 pixels a step from 0 to 1; on 8, linear between the centres: .25 and .75 at the step. Classes sum to 1."""
    step = np.array([0, 0, 1, 1], np.float32)
    working = np.stack([np.broadcast_to(1 - step, (4, 4)), np.broadcast_to(step, (4, 4))]).astype(np.float32)
    found = restore_probability(working, (4, 8))
    assert found.shape == (2, 4, 8)
    assert found[1, 0].tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]
    assert np.allclose(found.sum(axis=0), 1)
    assert restore_probability(working, (4, 4)) is working
    assert restore_probability(working[:, :, :, None].repeat(3, 3), (8, 4, 3)).shape == (2, 8, 4, 3)


def test_a_disc_survives_the_way_there_and_back() -> None:
    """A working pixel is 2.8 pixels, so grids aligned by corners would move the centroid by 0.9; centres do not."""
    label = disc((90, 60), 18, offset=7)
    working = Preprocess(resize=(32, 32)).label(label)
    onehot = np.stack([working == 0, working == 1]).astype(np.float32)
    back = restore_probability(onehot, label.shape).argmax(axis=0)
    assert np.abs(np.argwhere(back).mean(axis=0) - np.argwhere(label).mean(axis=0)).max() < 0.25
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.95
